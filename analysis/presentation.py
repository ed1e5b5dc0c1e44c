"""Words and HTML tables of the reports, generated from the tables: no number here that is not computed."""

from __future__ import annotations

import html
import time
from collections.abc import Sequence

import numpy as np
import pandas as pd

from analysis.figures import MAX_RUN_LINES
from analysis.reference import Reference
from analysis.results import SERIES, SweepResults, is_offline
from analysis.runs import STATES
from analysis.scores import (
    MIN_SEEDS_FOR_INTERVAL,
    PUBLISHED,
    offline,
    online,
    overall_scores,
    planned_scores,
    published_algorithms,
)
from analysis.style import human_steps, series_name
from analysis.tables import counted
from tdmpc2 import __version__

MISSING = "\N{EN DASH}"
"""Stands in tables where there is no number."""


def facts(sweep: SweepResults, reference: Reference | None) -> pd.DataFrame:
    """What the report was made from: a table of two columns, fact and value."""
    runs = sweep.runs
    hours = runs["seconds"].sum() / 3600
    rows = {
        "Sweep folder": str(sweep.folder),
        "Published curves": "none given" if reference is None else str(reference.folder),
        "Hardware of the runs": _distinct(runs["hardware"]),
        "Device": _distinct(runs["device"]),
        "Project version of the runs": _distinct(runs["version"]),
        "Project version of this report": __version__,
        "Training time, all runs": f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.0f} min",
        "Report made": time.strftime("%Y-%m-%d %H:%M %Z"),
    }
    return pd.DataFrame({"fact": list(rows), "value": list(rows.values())})


def _distinct(values: pd.Series) -> str:
    """Distinct non-empty texts, each with how many runs have it where they differ."""
    counts = values[values != ""].value_counts()
    if counts.empty:
        return "not recorded"
    return str(counts.index[0]) if len(counts) == 1 else "; ".join(f"{name} ({n} runs)" for name, n in counts.items())


def summary(sweep: SweepResults, final: pd.DataFrame) -> str:
    """One paragraph: what was run, what came of the runs that act, what is missing.

    Agents that learned from data alone are counted; what came of them, `multitask_presentation` tells.
    """
    learned_offline = len(offline(sweep.runs))
    sentences = [f"{counted(len(sweep.runs), 'run')}: {states(sweep.runs)}."]
    runs, final = online(sweep.runs), online(final)
    if learned_offline:
        verbs = (
            "learns from a data set alone, and has" if learned_offline == 1 else "learn from a data set alone, and have"
        )
        sentences.append(f"{learned_offline} of them {verbs} a part of this page below.")
        if runs.empty:
            return " ".join(sentences)
    tasks = final["task"].nunique()
    sizes = ", ".join(f"{size}M" for size in sorted(final["size"].dropna().unique()))
    seeds = planned_scores(runs).groupby(["task", *SERIES], dropna=False)["seed"].nunique()
    if len(seeds):
        span = str(seeds.max()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
        one, several = ("The other covers", "The others cover") if learned_offline else ("It covers", "They cover")
        covers = one if len(runs) == 1 else several
        noun = "seed" if seeds.max() == 1 else "seeds"
        sentences.append(f"{covers} {counted(tasks, 'task')}, model size {sizes} and {span} {noun} for each.")
    scored = final[final["score"].notna()]
    if scored.empty:
        return " ".join([*sentences, "No evaluation has been recorded yet."])
    sentences.append(f"Evaluations reach up to {human_steps(int(scored['env_steps'].max()))} environment steps.")

    series = overall_scores(final)
    if len(series) > 1:
        sentences.append(_between_series(scored, len(series)))
    else:
        row = series.iloc[0]
        over = counted(int(row["tasks"]), "task")
        over += "" if row["tasks"] == row["tasks_planned"] else " with evaluations"
        mean = f"mean normalised score (0 to 100) over {over}"
        if len(scored) == 1:
            mean = f"normalised score (0 to 100) on {scored['task'].iloc[0]}"
        sentences.append(f"The {mean} is {row['score']:.1f}.")
    sentences.extend(_against_random(scored))
    return " ".join(sentences)


def _between_series(scored: pd.DataFrame, series: int) -> str:
    """Mean scores side by side, over the tasks where all series were evaluated at the same step: else unfair."""
    per_task = scored.groupby("task")["env_steps"].agg(["size", "nunique"])
    common = list(per_task[(per_task["size"] == series) & (per_task["nunique"] == 1)].index)
    if not common:
        return "No task has been evaluated with all models at the same step, so they are not compared here."
    shared = overall_scores(scored[scored["task"].isin(common)])
    means = [f"{score:.1f} with {name}" for score, name in zip(shared["score"], series_names(shared), strict=True)]
    over = "Over all tasks" if len(common) == scored["task"].nunique() else f"Over the {counted(len(common), 'task')}"
    if len(common) == 1:
        over = f"On {common[0]}"
    return (
        f"{over}, evaluated with all models at the same step, the mean normalised score (0 to 100) is {listed(means)}."
    )


def _against_random(scored: pd.DataFrame) -> list[str]:
    """The task that gained most over a random policy, and how many are above it, where that is known."""
    known = scored[scored["random_return"].notna()]
    if known.empty:
        return []
    best = known.iloc[int((known["mean"] - known["random_return"]).to_numpy().argmax())]
    numbers = f"{best['mean']:.0f} against {best['random_return']:.0f} at random"
    after = f"after {human_steps(int(best['env_steps']))} steps"
    if len(known) == 1:
        return [f"The return on {best['task']} is {numbers}, {after}."]
    above = int((known["mean"] > known["random_return"]).sum())
    sentences = [f"{above} of {len(known)} mean returns {'is' if above == 1 else 'are'} above the random policy's."]
    if above:
        model = series_name(*best[SERIES])
        sentences.append(f"The largest gain is on {best['task']} with {model}: {numbers}, {after}.")
    return sentences


def states(runs: pd.DataFrame) -> str:
    """The states of the runs, counted, e.g. `5 done, 1 failed`."""
    counts = runs["state"].value_counts()
    return ", ".join(f"{counts[state]} {state}" for state in STATES if state in counts)


def curve_caption(curves: pd.DataFrame, final: pd.DataFrame, reference: Reference | None) -> str:
    """What the lines, bands and scales of the learning curves are.

    Args:
        curves: as `scores.curves` returns it.
        final: as `scores.final_scores` returns it.
        reference: published curves, if drawn.
    """
    seeds = set(curves["seeds"].astype(int))
    several = max(seeds, default=0)
    parts = ["Evaluation over environment steps (agent steps times action repeat)."]
    if several <= 1:
        parts.append("One seed a curve: nothing here says how much another seed would differ.")
    else:
        parts.append("Thick lines are means over the seeds that reached each step, thin lines single seeds.")
    if several == 2:
        parts.append("The shading is the range of the two seeds; two are too few for an interval.")
    if several >= MIN_SEEDS_FOR_INTERVAL:
        parts.append("The shading is the 95% interval of the mean over seeds (Student's t), cut to the metric's range.")
        if 2 in seeds:
            parts.append("Where only two seeds are left, it is their range; where one is left, there is none.")
    if final["random_return"].notna().any():
        parts.append("Dotted: mean return of a random policy.")
    if reference is not None:
        parts.append(
            "Dashed: published curves, mean over their seeds, straight between their points, over the steps of these "
            "runs only."
        )
        parts.extend(_suite_caveats(final))
    without = final.groupby("task")["score"].count()
    if (without == 0).any():
        parts.append(f"{counted(int((without == 0).sum()), 'task')} without any evaluation.")
    return " ".join(parts)


def _suite_caveats(final: pd.DataFrame) -> list[str]:
    """Known differences between the simulators of published curves and those here."""
    suites = set(final["suite"])
    caveats = {
        "metaworld": "Meta-World's published curves come from its V2 environments on an older simulator: handle-pull's "
        "bonus, two success radii and some starting positions differ.",
        "myosuite": "MyoSuite's come from an older release with slightly other reach and pose dynamics.",
    }
    return [text for suite, text in caveats.items() if suite in suites]


def score_caption(final: pd.DataFrame, reference: Reference | None) -> str:
    """What the final scores are, and which seeds count."""
    parts = [
        "Each task's last evaluation. Seeds are compared at the same environment steps: the last step that any seed of "
        "the task and model reached; a seed that ended earlier does not count and is named under notes.",
    ]
    if (final["note"] != "").any() and len(set(final["task"])) > 1:
        parts.append("Where runs are missing, the models' means over tasks are over different tasks or steps.")
    if (final["seeds"] >= MIN_SEEDS_FOR_INTERVAL).any():
        parts.append("Interval: 95% of the mean over seeds (Student's t), from three seeds on.")
    if reference is not None:
        parts.append(
            "Published: at the same environment steps, by linear interpolation between published points, mean over "
            "published seeds; no value where the published curve ends earlier."
        )
        sparse = _first_published_step(reference, final["task"])
        if sparse and final["env_steps"].notna().any() and int(final["env_steps"].max()) < sparse:
            parts.append(
                f"These runs end before the second published point ({human_steps(sparse)} steps), so the published "
                "values are a straight line from the untrained agent, not a measurement."
            )
    return " ".join(parts)


def _first_published_step(reference: Reference, tasks: pd.Series) -> int:
    """The earliest published evaluation after the untrained agent's, on these tasks; 0 where there is none."""
    table = reference.table
    later = table.loc[(table["env_steps"] > 0) & table["task"].isin(tasks), "env_steps"]
    return int(later.min()) if len(later) else 0


def training_caption(training: pd.DataFrame, axis: str = "env_steps") -> str:
    """What the lines of a training figure are; `axis` is env_steps or updates."""
    runs = training["run"].nunique()
    over = {"env_steps": "environment steps", "updates": "updates"}[axis]
    if runs <= MAX_RUN_LINES:
        return f"{counted(runs, 'run')}, a line each, over {over}; losses start when learning does."
    return (
        f"{counted(runs, 'run')} over {over}. Line: median over runs; shading: 10th to 90th percentile; "
        "losses start when learning does."
    )


def runs_caption(sweep: SweepResults) -> str:
    """What is missing, in a sentence."""
    runs = sweep.runs
    missing = runs[runs["state"] != "done"]
    remarked = runs[(runs["state"] == "done") & (runs["reason"] != "")]
    parts = list(sweep.notes)
    if missing.empty:
        parts.append("Every run that was found is done." if sweep.notes else "Every run is done; nothing is missing.")
    else:
        parts.append(f"{counted(len(missing), 'run')} of {len(runs)} not done: {states(missing)}.")
    if len(remarked):
        parts.append(f"{counted(len(remarked), 'finished run')} with a remark.")
    return " ".join(part if part.endswith(".") else f"{part}." for part in parts)


def score_table(final: pd.DataFrame) -> pd.DataFrame:
    """Final scores as a table of text, for people."""
    digits = np.where(final["metric"] == "return", 1, 2)
    shown = pd.DataFrame(
        {
            "task": final["task"],
            "model": series_names(final),
            "metric": final["metric"].map({"return": "return", "success": "success rate"}),
            "seeds": [f"{n} of {m}" for n, m in zip(final["seeds"], final["seeds_planned"], strict=True)],
            "environment steps": [MISSING if pd.isna(steps) else f"{steps:,}" for steps in final["env_steps"]],
            "mean": rounded(final["mean"], digits),
            "std": rounded(final["std"], digits),
            "min to max": ranges(final["min"], final["max"], digits, final["seeds"] > 1),
            "95% interval": ranges(final["low"], final["high"], digits, final["low"].notna()),
            "random policy": rounded(final["random_return"], digits),
        }
    )
    shown["normalised score"] = rounded(final["score"], np.full(len(final), 1))
    shown["notes"] = final["note"]
    optional = ["std", "min to max", "95% interval", "random policy", "notes"]
    return shown.drop(columns=[column for column in optional if shown[column].isin(["", MISSING]).all()])


def published_table(final: pd.DataFrame) -> pd.DataFrame:
    """Final scores beside the published ones at the same environment steps, as a table of text."""
    digits = np.where(final["metric"] == "return", 1, 2)
    columns = ["task", "model", "environment steps", "mean"]
    shown = score_table(final)[columns].rename(columns={"mean": "here"})
    for algorithm in published_algorithms(final):
        label = series_name(algorithm, "published", None)
        shown[label] = rounded(final[f"{PUBLISHED}{algorithm}"], digits)
    if "reference_note" in final and final["reference_note"].fillna("").any():
        shown["notes"] = final["reference_note"].fillna("")
    return shown


def overall_table(final: pd.DataFrame) -> pd.DataFrame:
    """Mean normalised score of each series, as a table of text."""
    rows = overall_scores(final)
    return pd.DataFrame(
        {
            "model": series_names(rows),
            "tasks with a score": [f"{n} of {m}" for n, m in zip(rows["tasks"], rows["tasks_planned"], strict=True)],
            "mean normalised score": rounded(rows["score"], np.full(len(rows), 1)),
        }
    )


def runs_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs as a table of text, those with something to tell first."""
    order = {state: position for position, state in enumerate(["failed", "unknown", "interrupted", "not started"])}
    rank = runs["state"].map(order).fillna(len(order)) + (runs["reason"] == "")
    runs = runs.assign(rank=rank).sort_values("rank", kind="stable")
    shown = pd.DataFrame(
        {
            "run": runs["run"],
            "state": runs["state"],
            "progress": [MISSING if pd.isna(p) else f"{p:.0%}" for p in runs["progress"]],
            "environment steps": _progress(runs, "env_steps").mask(is_offline(runs), MISSING),
            "updates": _progress(runs, "updates").where(is_offline(runs), MISSING),
            "evaluations": runs["evaluations"].astype(str),
            "time": [MISSING if pd.isna(s) else _duration(s) for s in runs["seconds"]],
            "remarks": runs["reason"],
        }
    )
    unused = [c for c in ("environment steps", "updates") if shown[c].eq(MISSING).all() and len(shown)]
    return shown.drop(columns=unused)


def _progress(runs: pd.DataFrame, axis: str) -> pd.Series:
    """How far runs are on an axis, e.g. `500 of 3,000`."""
    texts = [
        f"{done:,}" + ("" if pd.isna(total) else f" of {int(total):,}")
        for done, total in zip(runs[axis], runs[f"total_{axis}"], strict=True)
    ]
    return pd.Series(texts, index=runs.index, dtype=object)


def html_table(table: pd.DataFrame) -> str:
    """A table of text as HTML, numbers to the right, state words coloured by the page's style."""
    kinds = dict.fromkeys(("task", "model", "single-task model", "metric", "run", "state", "fact"), "text")
    kinds |= dict.fromkeys(("notes", "remarks", "value"), "long")
    head = "".join(f'<th class="{kinds.get(str(c), "number")}">{html.escape(str(c))}</th>' for c in table)
    lines = [f"<thead><tr>{head}</tr></thead><tbody>"]
    for row in table.to_dict("records"):
        cells = []
        for column, value in row.items():
            kind = kinds.get(str(column), "number")
            if column == "state":
                kind += " state-" + str(value).replace(" ", "-")
            cells.append(f'<td class="{kind}">{html.escape(str(value))}</td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="table"><table>{"".join(lines)}</tbody></table></div>'


def series_names(rows: pd.DataFrame) -> list[str]:
    """Names of series for people, one a row."""
    return [series_name(*key) for key in rows[SERIES].itertuples(index=False, name=None)]


def listed(parts: Sequence[str]) -> str:
    """Parts as people list them: a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def rounded(values: pd.Series, digits: np.ndarray) -> list[str]:
    """Numbers as text, each with its own number of digits."""
    return [MISSING if pd.isna(v) else f"{v:.{d}f}" for v, d in zip(values, digits, strict=True)]


def ranges(low: pd.Series, high: pd.Series, digits: np.ndarray, shown: pd.Series) -> list[str]:
    """Ranges as text, where they are to be shown."""
    ends = zip(rounded(low, digits), rounded(high, digits), shown, strict=True)
    return [f"{a} to {b}" if show else MISSING for a, b, show in ends]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
