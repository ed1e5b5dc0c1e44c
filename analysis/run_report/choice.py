"""Which run to look at."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.results import SERIES
from analysis.scores import run_scores
from analysis.study import Study
from analysis.tables import counted
from tdmpc2.errors import unknown_name

FAR_BELOW = 10.0
"""Points of normalised score below its siblings from which a finished run is picked for it."""


class Choice(NamedTuple):
    """A run of a study, and why it is the one looked at."""

    run: str
    reason: str


def choose_run(study: Study, asked: str | None = None) -> Choice | None:
    """The run that is asked for, or the one that most needs a look; None where the study has no run.

    Picked is the first that there is of these, in the study's order: a run that diverged; another that failed; one
    that was interrupted, or whose state is unknown; one that is still running, the silent ones first; a finished one
    that was never evaluated; the finished one furthest below the median of its siblings' scores (same task, algorithm,
    kind and size, other seeds), where that is at least `FAR_BELOW` points; the finished one with the lowest score; one
    that was never started. A run of several tasks has their mean score, at its own last evaluation.

    Args:
        study: a loaded study.
        asked: a name in `study.runs`; of a study of several sweeps also the bare name, where one sweep alone has it.

    Raises:
        UserError: there is no run of this name; the nearest is given.
    """
    runs = study.runs
    names = [] if runs.empty else [str(name) for name in runs["run"]]
    if asked is not None:
        found = [name for name in names if name == asked] or [name for name in names if name.endswith(f"/{asked}")]
        if len(found) != 1:
            raise unknown_name("run", asked, names, where="run")
        return Choice(found[0], "asked for by the parameter run")
    if runs.empty:
        return None

    reasons = runs["reason"].astype(str)
    failed, silent = runs["state"] == "failed", reasons.str.contains("no sign of life")
    for chosen, reason in (
        (failed & reasons.str.contains("diverged"), "picked because it diverged"),
        (failed, "picked because it failed"),
        (runs["state"].isin(["interrupted", "unknown"]), "picked because it is not finished and nothing works on it"),
        ((runs["state"] == "running") & silent, "picked because it runs without a sign of life"),
        (runs["state"] == "running", "picked because it is not finished yet"),
    ):
        if chosen.any():
            more = int(chosen.sum()) - 1
            also = f"; {counted(more, 'other run')} likewise" if more else ""
            return Choice(str(runs.loc[chosen, "run"].iloc[0]), reason + also)
    done = runs[runs["state"] == "done"]
    if done.empty:
        return Choice(names[0], "picked as the first one; no run was started")
    return _finished(done, run_scores(study.ours))


def _finished(done: pd.DataFrame, scores: pd.DataFrame) -> Choice:
    """Among finished runs: without an evaluation, far below its siblings, or the lowest score."""
    score = done["run"].map(scores.groupby("run")["score"].mean()).astype(float)
    unmeasured = score.isna() & (done["evaluations"] == 0)
    if unmeasured.any():
        return Choice(str(done.loc[unmeasured, "run"].iloc[0]), "picked because it is done and was never evaluated")
    score = score.dropna()  # what is left out did not count: another run has the same task, model and seed
    if score.empty:
        return Choice(str(done["run"].iloc[0]), "picked as the first one; no evaluation counts")
    done = done.loc[score.index]
    behind = np.zeros(len(done))
    siblings = done.assign(place=range(len(done))).groupby(["task", *SERIES], dropna=False)["place"]
    for places in (group.to_numpy() for _, group in siblings if len(group) > 1):
        for place in places:
            others = score.to_numpy()[places[places != place]]
            behind[place] = float(np.median(others)) - score.iloc[place]
    worst, lowest = int(np.argmax(behind)), int(np.argmin(score))
    if behind[worst] >= FAR_BELOW:
        below = f"{behind[worst]:.1f} points below the median of its siblings"
        return Choice(str(done["run"].iloc[worst]), f"picked because its score, {score.iloc[worst]:.1f}, is {below}")
    only = len(done) == 1
    what = "it is the only finished run" if only else f"its score, {score.iloc[lowest]:.1f}, is the lowest of all runs"
    return Choice(str(done["run"].iloc[lowest]), f"picked because {what}")
