"""Signs of trouble in one run, found by simple rules.

A rule looks at what was logged and says where it holds; it does not know why. Each answers with its signs, with an
empty list where it looked and found nothing, or with None where too little is recorded to tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.run_report.record import RunRecord, logged_metrics, mean_scores, random_score, speeds
from analysis.tables import counted
from analysis.words import listed
from tdmpc2.tasks import TASKS

MIN_ROWS = 12
"""Rows of a log from which a rule on its course over time can tell anything."""
RISE = 0.2
"""Share of its level by which a loss rises over the last third of the run to be named."""
SCALE_CHANGE = 10.0
"""Factor by which the running scale falls from its peak, or grows over its middle level, to be named."""
VALUE_LOSS_CHANGE = 3.0
"""Factor by which the value loss exceeds its middle level to be named."""
SLOWER = 0.5
"""Share of the earlier speed below which the speed is named."""
BELOW_TRAINING = 0.5
"""Share of the training episodes' mean below which an evaluation is named."""
NOTABLE = 5.0
"""Points of normalised score by which two scores differ to be named."""
RANDOM_MARGIN = 2.0
"""Points of normalised score within which a score is at the random policy's level."""
FALL = 20.0
"""Points of normalised score below its best from which an agent has lost what it could do, if that is half of it."""
NEAR_PERFECT = 95.0
"""Normalised score from which no improvement is no sign of trouble."""
MIN_EPISODES = 3
"""Training episodes that an evaluation is compared with."""
_SLOPE_ROWS = 300
_TASKS_NAMED = 4


class Sign(NamedTuple):
    """Something conspicuous."""

    step: float
    """Where it was seen first, on the run's axis."""
    text: str
    """What, with its numbers."""


Verdict = list[Sign] | None


class Rule(NamedTuple):
    """Something to look for."""

    name: str
    meaning: str
    """When it is named, in words."""
    check: Callable[[RunRecord], Verdict]


class Finding(NamedTuple):
    """What a rule said of a run."""

    rule: Rule
    verdict: Verdict


def find_signs(record: RunRecord) -> list[Finding]:
    """All rules' answers, the gravest rule first."""
    return [Finding(rule, rule.check(record)) for rule in RULES]


def not_finite(record: RunRecord) -> Verdict:
    """A metric of the updates that is infinite, or lacks in a row in which others have a value: NaN is written so.

    A run that stopped for it need not have written such a row; then its message tells.
    """
    if "training diverged" in str(record.row["reason"]):
        return [Sign(float(record.row[record.axis]), "training diverged and was stopped")]
    names = [name for group in logged_metrics(record.training).values() for name in group]
    if not names:
        return None
    rows = record.training[["step", *names]]
    values = rows[names].to_numpy(float)
    learning = np.isfinite(values).any(axis=1)
    bad = np.isinf(values) | (np.isnan(values) & learning[:, None])
    if not bad.any():
        return []
    first = int(np.flatnonzero(bad.any(axis=1))[0])
    which = listed([name for name, is_bad in zip(names, bad[first], strict=True) if is_bad])
    return [
        Sign(float(rows["step"].iloc[first]), f"{which} not finite, in {counted(int(bad.any(axis=1).sum()), 'row')}")
    ]


def lost_what_it_could(record: RunRecord) -> Verdict:
    """The last evaluation is far below the best one."""
    scores = mean_scores(record.logged)
    if len(scores) < 2:
        return None
    best, last = scores.iloc[int(np.argmax(scores["score"]))], scores.iloc[-1]
    if best["score"] - last["score"] < FALL or last["score"] > best["score"] / 2:
        return []
    text = f"score fell from {best['score']:.1f} at {best['step']:,.0f} to {last['score']:.1f} at {last['step']:,.0f}"
    return [Sign(float(best["step"]), text)]


def at_random_level(record: RunRecord) -> Verdict:
    """The last evaluation of a task, after learning began, is no better than a random policy's."""
    learned = record.logged[(record.logged["updates"] > 0) & record.logged["score"].notna()]
    last = learned.sort_values("step", kind="stable").drop_duplicates("task", keep="last")
    last = last.assign(random=[random_score(TASKS[task]) for task in last["task"]]).dropna(subset=["random"])
    if last.empty:
        return None
    low = last[last["score"] <= last["random"] + RANDOM_MARGIN]
    if low.empty:
        return []
    step = float(low["step"].min())
    if len(record.tasks) == 1:
        row = low.iloc[0]
        return [Sign(step, f"last evaluation scores {row['score']:.1f}, a random policy {row['random']:.1f}")]
    names = list(low["task"])
    more = f" and {len(names) - _TASKS_NAMED} more" if len(names) > _TASKS_NAMED else ""
    told = f"{', '.join(names[:_TASKS_NAMED])}{more}"
    return [Sign(step, f"{len(low)} of {counted(len(last), 'task')} no better than a random policy: {told}")]


def below_training(record: RunRecord) -> Verdict:
    """The last evaluation is far below the training episodes since the one before."""
    evaluations = record.logged[record.logged["value"].notna()].sort_values("step")
    if len(record.tasks) != 1 or evaluations.empty or "return" not in record.training:
        return None
    task, last = TASKS[record.tasks[0]], evaluations.iloc[-1]
    earlier = evaluations.loc[evaluations["step"] < last["step"], "step"].max()
    column = "success" if task.metric == "success" else "return"
    since = (record.training["step"] <= last["step"]) & ~(record.training["step"] <= earlier)
    episodes = (record.training.loc[since, column].dropna() - task.score_low) * task.score_scale
    if len(episodes) < MIN_EPISODES:
        return None
    mean = float(episodes.mean())
    if last["score"] >= BELOW_TRAINING * mean or mean - last["score"] < NOTABLE:
        return []
    text = (
        f"evaluation scores {last['score']:.1f}, the {len(episodes)} training episodes before it {mean:.1f} on average"
    )
    return [Sign(float(last["step"]), text)]


def scale_off(record: RunRecord) -> Verdict:
    """The running scale of the values fell to a tenth of its peak, or grew tenfold over its middle level."""
    scale = _metric(record, "pi_scale")
    if len(scale) < MIN_ROWS:
        return None
    level = scale["value"].rolling(3, center=True, min_periods=1).median()
    last, peak, middle = _tail(scale), float(level.max()), _middle(scale)
    if last < peak / SCALE_CHANGE:
        at = float(scale["step"].iloc[int(np.argmax(level))])
        return [Sign(at, f"pi_scale collapsed from {peak:.3g} to {last:.3g}")]
    if last > SCALE_CHANGE * middle:
        return [Sign(_last_third(scale), f"pi_scale exploded from {middle:.3g} in the middle of the run to {last:.3g}")]
    return []


def value_loss_off(record: RunRecord) -> Verdict:
    """The value loss at the end is a multiple of its level in the middle of the run."""
    loss = _metric(record, "value_loss")
    if len(loss) < MIN_ROWS:
        return None
    last, middle = _tail(loss), _middle(loss)
    if last <= VALUE_LOSS_CHANGE * middle:
        return []
    return [
        Sign(_last_third(loss), f"value_loss {last:.3g}, {last / middle:.1f} times its level in the middle of the run")
    ]


def losses_rise(record: RunRecord) -> Verdict:
    """A loss of the world model rises over the last third: Theil and Sen's slope, with its 95% interval above zero.

    The slope is the median over all pairs of rows (P. K. Sen, J. Am. Stat. Assoc. 63, 1968), so that single peaks do
    not count. The policy's loss is left out: it follows the values, which rise as the agent gets better.
    """
    from scipy.stats import theilslopes

    names = [name for name in logged_metrics(record.training)["losses"] if name != "pi_loss"]
    rising, step, judged = [], np.inf, False
    for name in names:
        loss = _metric(record, name)
        if len(loss) < MIN_ROWS:
            continue
        judged = True
        tail = loss.iloc[-(len(loss) // 3) :]
        tail = tail.iloc[np.unique(np.linspace(0, len(tail) - 1, _SLOPE_ROWS).astype(int))]
        slope, _, low, _ = theilslopes(tail["value"], tail["step"])
        level = float(tail["value"].median())
        rise = slope * float(tail["step"].iloc[-1] - tail["step"].iloc[0])
        if low > 0 and level > 0 and rise >= RISE * level:
            rising.append(f"{name} by {rise / level:.0%}")
            step = min(step, float(tail["step"].iloc[0]))
    if not judged:
        return None
    return [Sign(step, f"rising over the last third of the run: {listed(rising)}")] if rising else []


def always_clipped(record: RunRecord) -> Verdict:
    """A gradient norm is at or above the clipping threshold in every row of the last third."""
    if record.config is None:
        return None
    clip, signs, judged = record.config.grad_clip_norm, [], False
    for name in logged_metrics(record.training)["gradients"]:
        norm = _metric(record, name)
        if len(norm) < MIN_ROWS:
            continue
        judged = True
        below = np.flatnonzero(norm["value"] < clip)
        since = 0 if len(below) == 0 else int(below[-1]) + 1
        if len(norm) - since >= len(norm) // 3:
            text = f"{name} at or above the clipping threshold of {clip:g} in every row since"
            signs.append(Sign(float(norm["step"].iloc[since]), text))
    return signs if judged else None


def no_improvement(record: RunRecord) -> Verdict:
    """The best evaluation of the second half is no better than that of the first half."""
    scores = mean_scores(record.logged)
    if scores.empty:
        return None
    half = scores["step"].iloc[-1] / 2
    first, second = scores[scores["step"] <= half], scores[scores["step"] > half]
    if len(first) < 2 or len(second) < 2:
        return None
    before, after = float(first["score"].max()), float(second["score"].max())
    if after > before or before >= NEAR_PERFECT:
        return []
    text = f"best score {before:.1f} in the first half of the run, {after:.1f} in the second"
    return [Sign(float(first["step"].iloc[int(np.argmax(first["score"]))]), text)]


def slower(record: RunRecord) -> Verdict:
    """The median speed of the last third is less than half of that before."""
    speed = speeds(record.training)
    if len(speed) < MIN_ROWS:
        return None
    third = len(speed) // 3
    before, last = float(speed["speed"].iloc[:-third].median()), float(speed["speed"].iloc[-third:].median())
    if last >= SLOWER * before:
        return []
    return [Sign(float(speed["step"].iloc[-third]), f"speed fell from {before:.3g} to {last:.3g} updates a second")]


RULES = (
    Rule("not finite", "a loss, gradient norm or scale is NaN or infinite", not_finite),
    Rule("lost", f"last score {FALL:g} points below the best one, and less than half of it", lost_what_it_could),
    Rule(
        "random level",
        f"last score of a task at most {RANDOM_MARGIN:g} points above a random policy's (no success counts as 0)",
        at_random_level,
    ),
    Rule(
        "below training",
        f"last evaluation below {BELOW_TRAINING:.0%} of the training episodes since the one before, and by "
        f"{NOTABLE:g} points",
        below_training,
    ),
    Rule(
        "scale",
        f"pi_scale below its peak / {SCALE_CHANGE:g}, or {SCALE_CHANGE:g} times its median over the middle third",
        scale_off,
    ),
    Rule("value loss", f"value_loss {VALUE_LOSS_CHANGE:g} times its median over the middle third", value_loss_off),
    Rule(
        "losses rise",
        f"a loss of the world model rises over the last third, by {RISE:.0%} or more (Theil-Sen slope, 95% interval "
        "above zero)",
        losses_rise,
    ),
    Rule(
        "clipped", "a gradient norm at or above the clipping threshold in every row of the last third", always_clipped
    ),
    Rule(
        "no improvement",
        f"best score of the second half not above that of the first, which is below {NEAR_PERFECT:g}",
        no_improvement,
    ),
    Rule("slower", f"median speed of the last third below {SLOWER:.0%} of that before", slower),
)
"""All rules, the gravest first."""


def _metric(record: RunRecord, name: str) -> pd.DataFrame:
    """The finite values of a logged metric in order: step, value."""
    if name not in record.training:
        return pd.DataFrame({"step": [], "value": []})
    rows = record.training[["step", name]].rename(columns={name: "value"})
    return rows[np.isfinite(rows["value"].astype(float))].sort_values("step", kind="stable", ignore_index=True)


def _tail(rows: pd.DataFrame) -> float:
    """The median over the last tenth, three rows at the least."""
    return float(rows["value"].iloc[-max(3, len(rows) // 10) :].median())


def _middle(rows: pd.DataFrame) -> float:
    """The median over the middle third."""
    third = len(rows) // 3
    return float(rows["value"].iloc[third:-third].median())


def _last_third(rows: pd.DataFrame) -> float:
    return float(rows["step"].iloc[-(len(rows) // 3)])
