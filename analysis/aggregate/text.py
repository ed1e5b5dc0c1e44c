"""Words and tables on single tasks: their runs, curves and final scores. No number here that is not computed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.results import SERIES
from analysis.scores import (
    MIN_SEEDS_FOR_INTERVAL,
    PUBLISHED,
    offline,
    online,
    planned_scores,
    published_algorithms,
)
from analysis.style import human_steps, series_name
from analysis.tables import counted
from analysis.words import MISSING, ranges, rounded, series_names, states


def summary(runs: pd.DataFrame, final: pd.DataFrame) -> str:
    """One paragraph: what was run, how far it came, and how it stands against a random policy.

    Args:
        runs: table of runs (`Study.runs`).
        final: as `scores.final_scores` returns it.
    """
    sentences = [f"{counted(len(runs), 'run')}: {states(runs)}."]
    alone = len(offline(runs))
    acting, final = online(runs), online(final)
    if alone:
        verb = "learns" if alone == 1 else "learn"
        sentences.append(f"{alone} of them {verb} from a data set alone.")
    seeds = planned_scores(acting).groupby(["task", *SERIES], dropna=False)["seed"].nunique()
    if seeds.empty:
        return " ".join(sentences)
    sizes = ", ".join(f"{size}M" for size in sorted(final["size"].dropna().unique()))
    span = str(seeds.max()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    whose = "The runs that act" if alone else ("They" if len(runs) > 1 else "It")
    verb = "covers" if whose == "It" else "cover"
    noun = "seed" if seeds.max() == 1 else "seeds"
    tasks = counted(final["task"].nunique(), "task")
    sentences.append(f"{whose} {verb} {tasks}, model size {sizes} and {span} {noun} for each.")
    scored = final[final["score"].notna()]
    if scored.empty:
        return " ".join([*sentences, "No evaluation has been recorded yet."])
    sentences.append(f"Evaluations reach up to {human_steps(int(scored['env_steps'].max()))} environment steps.")
    return " ".join([*sentences, *_against_random(scored)])


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


def curve_caption(ours: pd.DataFrame, published: pd.DataFrame, final: pd.DataFrame) -> str:
    """What the lines, bands and scales of the tasks' learning curves are.

    Args:
        ours: evaluations of the runs that act, by the tasks' own metrics; perhaps none.
        published: published evaluations that are drawn; perhaps none.
        final: as `scores.final_scores` returns it, of the runs that act.
    """
    parts = ["Evaluation over environment steps (agent steps times action repeat)."]
    if ours.empty:
        parts.append("Published curves: mean over their seeds, straight between their points.")
    else:
        parts.extend(_spread_words(ours))
    if final["random_return"].notna().any() or ours.empty:
        parts.append("Dotted: mean return of a random policy, where it is known.")
    if len(ours) and len(published):
        parts.append(
            "Dashed: published curves, mean over their seeds, straight between their points, over the steps of these "
            "runs only."
        )
    without = final.groupby("task")["mean"].count()
    if (without == 0).any():
        parts.append(f"{counted(int((without == 0).sum()), 'task')} without any evaluation.")
    return " ".join(parts)


def _spread_words(ours: pd.DataFrame) -> list[str]:
    """What shows the seeds' spread, by how many there are."""
    several = int(ours.groupby(["task", *SERIES], dropna=False)["seed"].nunique().max())
    if several == 1:
        return ["One seed a curve: nothing here says how much another seed would differ."]
    lines = "Thick lines are means over the seeds that reached each step, thin lines single seeds."
    if several == 2:
        return [lines, "The shading is the range of the two seeds; two are too few for an interval."]
    return [
        lines,
        "The shading is the 95% interval of the mean over seeds (Student's t), cut to the metric's range; where only "
        "two seeds are left, it is their range; where one is left, there is none.",
    ]


def score_caption(final: pd.DataFrame, published: pd.DataFrame) -> str:
    """What the final scores are, and which seeds count.

    Args:
        final: as `scores.final_scores` returns it.
        published: published evaluations of the same tasks; perhaps none.
    """
    parts = [
        "Each task's last evaluation. Seeds are compared at the same environment steps: the last step that any seed of "
        "the task and model reached; a seed that ended earlier does not count and is named under notes.",
    ]
    if (final["note"] != "").any() and len(set(final["task"])) > 1:
        parts.append("Where runs are missing, the models' means over tasks are over different tasks or steps.")
    if (final["seeds"] >= MIN_SEEDS_FOR_INTERVAL).any():
        parts.append("Interval: 95% of the mean over seeds (Student's t), from three seeds on.")
    if len(published):
        parts.append(
            "Published: at the same environment steps, by linear interpolation between published points, mean over "
            "published seeds; no value where the published curve ends earlier."
        )
        sparse = _second_published_step(published, final["task"])
        if sparse and final["env_steps"].notna().any() and int(final["env_steps"].max()) < sparse:
            parts.append(
                f"These runs end before the second published point ({human_steps(sparse)} steps), so the published "
                "values are a straight line from the untrained agent, not a measurement."
            )
    return " ".join(parts)


def _second_published_step(published: pd.DataFrame, tasks: pd.Series) -> int:
    """The earliest published evaluation after the untrained agent's, on these tasks; 0 where there is none."""
    later = published.loc[(published["env_steps"] > 0) & published["task"].isin(tasks), "env_steps"]
    return int(later.min()) if len(later) else 0


def task_caption(rows: pd.DataFrame, of_table: bool = False) -> str:
    """What the scores by task are.

    Args:
        rows: as `comparison.task_table` returns it, of each run's last evaluation.
        of_table: whether it stands beside a table, not a figure.
    """
    parts = ["Normalised scores at each run's last evaluation, mean over runs."]
    if rows["runs"].max() > 1:
        parts.append("In brackets: the lowest and the highest run." if of_table else "Bars: lowest to highest run.")
    if rows["runs"].min() < rows["runs"].max():
        parts.append(f"Runs a task: {rows['runs'].min()} to {rows['runs'].max()}.")
    return " ".join(parts)


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
