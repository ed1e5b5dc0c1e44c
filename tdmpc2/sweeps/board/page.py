"""The page: draws what `contents` and `curves` say, again every few seconds. Streamlit is imported nowhere else."""

from __future__ import annotations

import html
import itertools
import math
import time
from typing import Any

import streamlit as st

from tdmpc2.sweeps.board import contents, curves
from tdmpc2.sweeps.board.reading import Snapshot, SweepReader
from tdmpc2.sweeps.folder import Kind
from tdmpc2.sweeps.progress import RunView
from tdmpc2.sweeps.tables import STAGE_NAMES

REFRESH_SECONDS = 4.0
ROWS = 50
"""Runs on one page of the table."""
PANELS = 6
"""Tasks whose curves are shown at a time."""
PANEL_HEIGHT = 260
"""Pixels."""
MOST_REASONS = 8
"""Reasons of failure that are listed; the others are counted."""
_TOGETHER, _EACH = "mean and range", "each seed"


def draw(results_dir: str, name: str) -> None:
    """Draw the page of a sweep.

    Args:
        results_dir: folder of all results.
        name: the sweep's name.
    """
    st.set_page_config(page_title=f"{name} · sweep", layout="wide")
    st.html("<style>[data-testid=stMainBlockContainer] {padding-top: 2rem}</style>")
    reader = _reader(results_dir, name)
    _draw_overview(reader)
    _draw_troubles(reader)
    _draw_curves(reader)
    _draw_runs(reader)
    _draw_cost(reader)


@st.cache_resource(show_spinner=False)
def _reader(results_dir: str, name: str) -> SweepReader:
    """One reader for all open pages."""
    return SweepReader(results_dir, name)


@st.fragment(run_every=REFRESH_SECONDS)
def _draw_overview(reader: SweepReader) -> None:
    snapshot = reader.snapshot()
    st.title(reader.folder.name, anchor=False)
    if snapshot.fault:
        st.error(f"The sweep cannot be read: {_plain(snapshot.fault)}")
    elif not snapshot.views:
        path, name = reader.folder.path, reader.folder.name
        st.info(f"Not started: `{path}` holds no runs yet. Start it with `tdmpc2 sweep run {name}`.")
    else:
        with st.container(horizontal=True, gap="large"):
            for figure in contents.overview(snapshot, time.time()):
                st.metric(
                    figure.label,
                    figure.value,
                    figure.note or None,
                    delta_color="off",
                    delta_arrow="off",
                    help=figure.help or None,
                    width="content",
                )
        _draw_states(snapshot)
    read_at = time.strftime("%H:%M:%S", time.localtime(snapshot.read_at))
    st.caption(f"{reader.folder.path} · as of {read_at} · read again every few seconds")


def _draw_states(snapshot: Snapshot) -> None:
    """One bar of all runs, divided by state, and the states in words."""
    counts = contents.count_states(snapshot)
    parts = "".join(
        f'<div style="flex: {count} 0 3px; background: {contents.STATE_COLOURS[state]}"></div>'
        for state, count in counts.items()
    )
    words = "".join(
        f'<span style="white-space: nowrap"><span style="color: {contents.STATE_COLOURS[state]}">&#9632;</span> '
        f"{contents.state_name(state)} {count:,}</span>"
        for state, count in counts.items()
    )
    st.html(
        '<div style="display: flex; height: 14px; border-radius: 4px; overflow: hidden; gap: 1px">' + parts + "</div>"
        '<div style="display: flex; flex-wrap: wrap; gap: 0 1.5rem; margin-top: 0.4rem">' + words + "</div>"
    )


@st.fragment(run_every=REFRESH_SECONDS)
def _draw_troubles(reader: SweepReader) -> None:
    snapshot = reader.snapshot()
    troubles = contents.troubles(snapshot)
    if not troubles:
        return
    st.subheader("Failures", anchor=False)
    for trouble in troubles[:MOST_REASONS]:
        state, count = contents.state_name(trouble.state), len(trouble.runs)
        st.markdown(f"**{state}, {count:,} run{'s' if count != 1 else ''}:** {_plain(trouble.reason)}")
    if len(troubles) > MOST_REASONS:
        st.caption(f"and {len(troubles) - MOST_REASONS:,} other reasons; see the notes in the table of runs")
    run = st.selectbox("Log of", [run for trouble in troubles for run in trouble.runs], key="log", bind="query-params")
    tail = reader.log_tail(run)
    if tail:
        st.code(tail, language=None, wrap_lines=True)
        st.caption(f"The end of {reader.folder.run(run).path / 'run.log'}")
    else:
        st.caption(f"{reader.folder.run(run).path} has no run.log: it ended before it began to write one")


@st.fragment(run_every=REFRESH_SECONDS)
def _draw_curves(reader: SweepReader) -> None:
    snapshot = reader.snapshot()
    known = contents.known_runs(snapshot.views)
    kinds = [kind for kind in STAGE_NAMES if any(view.entry.kind == kind for view in known)]
    if not kinds:
        return
    st.subheader("Learning curves", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind: Kind = kinds[0]
        if len(kinds) > 1:
            kind = st.segmented_control(
                "Stage", kinds, default=kinds[0], format_func=STAGE_NAMES.__getitem__, required=True, key="stage",
                bind="query-params",
            )  # fmt: skip
        views = [view for view in known if view.entry.kind == kind]
        sizes = sorted({view.entry.model_size for view in views})
        chosen_sizes: list[int] = []
        if len(sizes) > 1:
            chosen_sizes = st.pills(
                "Model sizes (none chosen: all)", sizes, selection_mode="multi", format_func=lambda size: f"{size}M",
                key=f"sizes-{kind}", bind="query-params",
            )  # fmt: skip
        seeds = st.segmented_control(
            "Seeds", [_TOGETHER, _EACH], default=_TOGETHER, required=True, key="seeds", bind="query-params"
        )
        all_tasks = curves.tasks_of_stage(views, kind)
        tasks = st.multiselect(
            "Tasks (none chosen: all)", all_tasks, placeholder=f"all {len(all_tasks)} tasks", key=f"tasks-{kind}",
            bind="query-params",
        )  # fmt: skip
    tasks = tasks or all_tasks
    pages = math.ceil(len(tasks) / PANELS)
    page = 1
    if pages > 1:
        page = st.pagination(pages, key=f"panels-{kind}", bind="query-params")
    shown = tasks[PANELS * (page - 1) : PANELS * page]
    chosen = [view for view in views if not chosen_sizes or view.entry.model_size in chosen_sizes]
    _draw_panels(reader, kind, chosen, shown, seeds == _TOGETHER)


def _draw_panels(reader: SweepReader, kind: Kind, views: list[RunView], tasks: list[str], together: bool) -> None:
    entries = [view.entry for view in views]
    names = curves.series_names(entries)
    looks = curves.series_looks(names.values())
    points, faults = curves.points_by_task(reader, entries, tasks, names)
    _draw_legend(looks)
    with st.grid(3, min_column_width=320, gap="medium"):
        for task in tasks:
            drawn: list[dict[str, Any]] = curves.over_seeds(points[task]) if together else points[task]
            with st.container(border=True):
                if not drawn:
                    st.markdown(f"**{_plain(task)}**")
                    st.caption("no evaluation yet")
                    continue
                dots = len(drawn) <= curves.MOST_POINTS * len(looks)
                spec = curves.panel_spec(task, kind, looks, together, dots)
                st.vega_lite_chart(drawn, spec, width="stretch", height=PANEL_HEIGHT, key=f"panel-{kind}-{task}")
    for fault in faults[:MOST_REASONS]:
        st.warning(_plain(fault))


def _draw_legend(looks: list[curves.Series]) -> None:
    """Name the series; the panels have no legends of their own."""
    words = []
    for each in looks:
        dashes, end = [], 0
        for length, colour in zip(each.dash, itertools.cycle((each.colour, "transparent"))):
            dashes.append(f"{colour} {end}px {end + length}px")
            end += length
        line = f"repeating-linear-gradient(90deg, {', '.join(dashes)})"
        words.append(
            '<span style="white-space: nowrap"><span style="display: inline-block; width: 34px; height: 3px; '
            f'vertical-align: middle; background: {line}"></span> {html.escape(each.name)}</span>'
        )
    st.html('<div style="display: flex; flex-wrap: wrap; gap: 0 1.5rem">' + "".join(words) + "</div>")


@st.fragment(run_every=REFRESH_SECONDS)
def _draw_runs(reader: SweepReader) -> None:
    snapshot = reader.snapshot()
    if not snapshot.views:
        return
    counts = contents.count_states(snapshot)
    chosen = st.session_state.get("states-chosen") or ()
    st.subheader("Runs", anchor=False)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        states = st.pills(
            "States (none chosen: all)",
            [state for state in contents.SHOWN_STATES if state in counts or state in chosen],
            selection_mode="multi",
            format_func=contents.state_name,
            key="states-chosen",
            bind="query-params",
        )
        text = st.text_input(
            "Name", placeholder="words in the name, such as walker 5M", key="words", bind="query-params"
        )
    views = contents.choose_runs(snapshot, states, text)
    pages = max(1, math.ceil(len(views) / ROWS))
    page = 1
    if pages > 1:
        page = st.pagination(pages, key="rows", bind="query-params")
    rows = [contents.run_row(view, snapshot) for view in views[ROWS * (page - 1) : ROWS * page]]
    if not rows:
        st.caption("no such run")
        return
    st.dataframe(rows, column_config=_run_columns(), hide_index=True, height="content", placeholder="", key="table")


def _run_columns() -> dict[str, Any]:
    column = st.column_config
    options = [contents.state_name(state) for state in contents.SHOWN_STATES]
    colours = [contents.STATE_COLOURS[state] for state in contents.SHOWN_STATES]
    return {
        "run": column.TextColumn("run", pinned=True),
        "state": column.MultiselectColumn("state", options=options, color=colours),
        "progress": column.ProgressColumn("progress", format="%d%%", min_value=0, max_value=100, color="#0072B2"),
        "steps": column.TextColumn("learned for"),
        "score": column.NumberColumn(
            "score",
            format="%.4g",
            help="At the last evaluation: return or success rate; of several tasks, mean normalised score of 0 to 100.",
        ),
        "spent": column.TextColumn("run time"),
        "left": column.TextColumn("time left"),
        "note": column.TextColumn("note", width="large"),
    }


@st.fragment(run_every=REFRESH_SECONDS)
def _draw_cost(reader: SweepReader) -> None:
    snapshot = reader.snapshot()
    if not snapshot.views:
        return
    st.subheader("Cost", anchor=False)
    column = st.column_config
    columns = {
        "runs": column.TextColumn("runs done"),
        "speed": column.NumberColumn(
            "ms per update", format="%.3g", help="Measured over these runs, acting and evaluation included."
        ),
        "spent": column.TextColumn("run time so far"),
        "to come": column.TextColumn("run time to come"),
        "GPU-hours spent": column.NumberColumn("GPU-hours so far", format="%.1f"),
        "GPU-hours to come": column.NumberColumn("GPU-hours to come", format="%.1f"),
    }
    rows = contents.cost_rows(contents.known_runs(snapshot.views))
    st.dataframe(rows, column_config=columns, hide_index=True, height="content", placeholder="", key="cost")


def _plain(text: str) -> str:
    """Text that stands for itself within a line of Markdown."""
    return "".join(f"\\{character}" if character in "\\`*_[]#|<>~:$&" else character for character in text)
