"""The sections of the page on one run: what is shown of it, or what is lacking."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis import display
from analysis.run_report import figures, planning, score_figures, text
from analysis.run_report.choice import Choice
from analysis.run_report.record import (
    RunRecord,
    changed_settings,
    log_tail,
    logged_metrics,
    mean_scores,
    others_training,
    read_run,
    smoothed,
    smoothing_window,
    speeds,
)
from analysis.run_report.signs import Finding
from analysis.run_report.videos import place_film, read_films
from analysis.scores import curves, primary
from analysis.study import Study
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASKS
from tdmpc2.training.folder import RunFolder

NOTEBOOK, TITLE = "run_report", "A run in detail"
_FILM_WIDTH = 384


def answer(
    record: RunRecord | None, choice: Choice | None, findings: Sequence[Finding], output: Path, study: Study
) -> None:
    """The page's answer, and what could not be read of the run."""
    if record is None or choice is None:
        sentence = f"There is no run to look at in {study.name}: a report on a run needs a sweep's folder in results."
        display.headline(output, NOTEBOOK, TITLE, sentence)
        return
    display.headline(output, NOTEBOOK, TITLE, text.headline(record, choice, findings), _headline_figure(record))
    display.listing("What could not be read of this run", record.problems)


def _headline_figure(record: RunRecord) -> str | None:
    """The figure that says most of those that the page will have."""
    if len(record.tasks) > 1 and record.logged["score"].notna().any():
        return "run_tasks"
    if len(record.tasks) == 1 and _has_returns(record):
        return "run_returns"
    return "run_losses" if logged_metrics(record.training)["losses"] else None


def _has_returns(record: RunRecord) -> bool:
    acted = "return" in record.training and record.training["return"].notna().any()
    return bool(acted or record.logged["value"].notna().any())


def what_it_is(record: RunRecord, choice: Choice, output: Path) -> None:
    """Facts, settings that differ from the defaults, speed, the end of run.log."""
    display.heading("What the run is")
    display.table(text.run_facts(record, choice))
    if record.config is None:
        display.paragraph("Its settings cannot be read, so it is not known which differ from the defaults.")
    else:
        changed = changed_settings(record.config)
        if changed.empty:
            display.paragraph("All settings are the defaults.")
        else:
            shown = changed.map(lambda value: "none" if value is None else str(value))
            display.table(shown, "Settings that differ from the defaults.", output, "run_settings", changed)
    speed = speeds(record.training)
    if len(speed) > 1:
        drawn = figures.line_panel(speed, "speed", "Updates a second", record.axis)
        caption = "Speed between two rows of train.csv, by the clock; evaluations and checkpoints in between count."
        display.figure(drawn, output, "run_speed", caption, "Updates a second over the run")
    else:
        display.paragraph("Speed over time needs three rows of train.csv from when learning starts.")
    display.listing("The end of run.log", log_tail(record.folder))


def signs_of_trouble(record: RunRecord, findings: Sequence[Finding], output: Path) -> None:
    """Signs in words, and the rules that they come from."""
    display.heading("Signs of trouble")
    sentences = text.sign_sentences(record, findings)
    if record.training.empty and record.evaluations.empty:
        display.paragraph("Nothing is logged yet, so there are no signs to read.")
        return
    for sentence in sentences or [text.nothing_conspicuous(findings)]:
        display.paragraph(sentence)
    display.table(text.rules_table(record, findings), "What was looked for, and where.", output, "run_signs")


def returns(record: RunRecord, study: Study, smoothing: int | None, output: Path) -> None:
    """Returns of training episodes and evaluations; of an agent of several tasks, each task's score."""
    display.heading("Returns")
    if len(record.tasks) != 1:
        _task_scores(record, output)
        return
    if not _has_returns(record):
        display.paragraph("No episode and no evaluation is recorded yet.")
        return
    (task,) = record.tasks
    columns = [name for name in ("return", "success") if name in record.training]
    window = smoothing_window(len(record.training), smoothing)
    theirs = _published(study, task, str(record.row["algorithm"]))
    published = curves(theirs) if len(theirs) and record.axis == "env_steps" else None
    drawn = figures.returns(
        TASKS[task], record.training, smoothed(record.training, columns, window), record.logged, record.axis, published
    )
    caption = text.returns_caption(record, window, published is not None)
    display.figure(drawn, output, "run_returns", caption, f"Returns of {task} over the run")


def _published(study: Study, task: str, algorithm: str) -> pd.DataFrame:
    """The task's published curves of the run's own algorithm; of all where it has none."""
    theirs = primary(study.published[study.published["task"] == task])
    same = theirs[theirs["algorithm"] == algorithm.partition(" ")[0]]
    return same if len(same) else theirs


def _task_scores(record: RunRecord, output: Path) -> None:
    last = text.last_by_task(record)
    if last.empty:
        display.paragraph("No evaluation is recorded yet.")
        return
    first = record.logged.sort_values("step", kind="stable").drop_duplicates("task")
    caption = f"Normalised score of each task at the run's first and last evaluation, by {text.UNITS[record.axis]}."
    drawn = score_figures.task_scores(last, first)
    display.figure(drawn, output, "run_tasks", caption, "Normalised scores, one row a task, the highest first")
    display.table(text.task_table(last, record.axis), "Last evaluation of each task.", output, "run_tasks", last)
    means = mean_scores(record.logged)
    if len(means) > 1:
        drawn = figures.line_panel(means, "score", f"Mean normalised score, {len(last)} tasks", record.axis)
        caption = "Mean over the tasks at each evaluation of all of them."
        display.figure(drawn, output, "run_mean_score", caption, "Mean normalised score over the run")


def metrics(record: RunRecord, study: Study, smoothing: int | None, output: Path) -> None:
    """Losses, gradients, policy and scale: what train.csv keeps of the updates."""
    logged = logged_metrics(record.training)
    others = others_training(study, record)
    every = [name for columns in logged.values() for name in columns]
    learning = record.training[record.training[every].notna().any(axis=1)]
    window = smoothing_window(len(learning), smoothing)
    caption = text.metrics_caption(record, window, others["run"].nunique())
    for subject, columns in logged.items():
        display.heading(subject.capitalize())
        if not columns:
            display.paragraph(text.no_updates(record))
            continue
        clip = record.config.grad_clip_norm if subject == "gradients" and record.config is not None else None
        drawn = figures.metric_panels(learning, smoothed(learning, columns, window), columns, record.axis, others, clip)
        name = f"run_{subject.split()[0]}"
        display.figure(drawn, output, name, caption, f"{subject.capitalize()} over the run, a panel each")
        if subject == "gradients":
            gradients = text.gradient_table(record, columns)
            what = (
                "Norms before clipping, of the model and of the policy (pi). A row at or above the threshold has at "
                "least one clipped update; single updates are not logged. The figure shows the threshold where norms "
                "come within a tenth of it."
            )
            display.table(text.gradient_text(gradients), what, output, "run_gradients", gradients)


def planning_against_policy(record: RunRecord, study: Study, episodes: int, output: Path) -> RunRecord:
    """Planning and the policy alone, where both were evaluated; with `episodes`, evaluates both first.

    Returns:
        The run, read again where it was evaluated.
    """
    display.heading("Planning against policy")
    if planning.check_episodes(episodes):
        try:
            planning.evaluate_both(record, episodes)
        except UserError as error:
            display.paragraph(f"It could not be evaluated now: {error}", "note")
        record = read_run(study, record.name)
    compared = planning.compare_planning(record.evaluations)
    if compared.empty:
        display.paragraph(text.no_planning(record))
        if not RunFolder(record.folder).checkpoint.is_file():
            display.paragraph("There is no checkpoint to evaluate.")
            return record
        last = float(record.row[record.axis]) if record.row["state"] == "done" else None
        display.paragraph("These commands record what is missing:" if last is None else "This records what is missing:")
        _command(planning.recording_command(record, last))
        return record
    at_last = planning.latest(compared)
    display.paragraph(text.planning_sentence(at_last, record.axis))
    caption = "Bars: \N{PLUS-MINUS SIGN} one standard deviation of the episodes, at the last step with both."
    drawn = score_figures.planning_scores(at_last)
    display.figure(drawn, output, "run_planning", caption, "Scores by planning and by the policy alone, a row a task")
    what = "Means over episodes (standard deviation); 95% intervals of the difference by Welch's t-test."
    display.table(text.planning_table(compared, record.axis), what, output, "run_planning", compared)
    return record


def videos(record: RunRecord, output: Path) -> None:
    """The run's films, with frames of each."""
    display.heading("Videos")
    films, left_out = read_films(record.folder)
    if not films:
        display.paragraph("There is no film that can be shown.")
        if RunFolder(record.folder).checkpoint.is_file():
            only = f" only={record.tasks[0]}" if len(record.tasks) > 1 else ""
            display.paragraph("This makes one:")
            _show(
                f"<pre>{html.escape(planning.evaluate_command(record))} episodes=1 video=true{html.escape(only)}</pre>"
            )
        else:
            display.paragraph("There is no checkpoint to film.")
    else:
        for film in films:
            _film(film.path.name, *place_film(film, output))
        drawn = score_figures.contact_sheet(films)
        caption = "Frames of the first episode, evenly spaced; seconds of the film above each."
        display.figure(drawn, output, "run_films", caption, "Frames of the films, a row each")
    display.listing("Films that are not shown", left_out)


def _command(lines: str) -> None:
    _show(f"<pre>{html.escape(lines)}</pre>")


def _film(name: str, path: str, poster: str) -> None:
    """A film that plays in the page, at most as wide as the page."""
    source, picture = html.escape(path), html.escape(poster)
    _show(
        '<figure style="display: inline-block; margin: 0 1em 1em 0">'
        f'<video controls preload="none" src="{source}" poster="{picture}" width="{_FILM_WIDTH}" '
        f'style="max-width: 100%"></video><figcaption>{html.escape(name)}</figcaption></figure>'
    )


def _show(content: str) -> None:
    from IPython.display import HTML, display

    display(HTML(content))
