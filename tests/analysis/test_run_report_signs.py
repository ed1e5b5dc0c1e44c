"""Every sign of trouble: a run that has it, and one that does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.run_report.record import EVALUATION_COLUMNS, RunRecord
from analysis.run_report.signs import RULES, Sign, Verdict
from tdmpc2.config import Config
from tdmpc2.tasks import TASKS

TASK = "pendulum-swingup"
ROWS = 15


def run(
    logged: dict[str, Sequence[float]] | None = None,
    evaluations: Sequence[tuple[Any, ...]] = (),
    task: str = TASK,
    reason: str = "",
) -> RunRecord:
    """A run whose rows stand at 1,000, 2,000, ... environment steps; evaluations are (task, step, value[, updates])."""
    logged = logged or {}
    rows = max((len(values) for values in logged.values()), default=0)
    steps = 1000.0 * np.arange(1, rows + 1)
    training = pd.DataFrame({"step": steps, "updates": steps / 2, "seconds": steps / 100, **logged})
    records = []
    for name, step, value, *updates in evaluations:
        score = value * TASKS[name].score_scale
        known = {"task": name, "step": float(step), "updates": updates[0] if updates else step / 2, "score": score}
        records.append({**known, "value": value, "source": "eval.csv"})
    table = pd.DataFrame(records, columns=pd.Index(EVALUATION_COLUMNS))
    row = {"kind": "single", "reason": reason, "env_steps": 1000 * rows}
    return RunRecord("run", Path("run"), row, Config(task=task), {}, training, table, ())


def verdict(rule: str, record: RunRecord) -> Verdict:
    (check,) = (r.check for r in RULES if r.name == rule)
    return check(record)


def only_sign(rule: str, record: RunRecord) -> Sign:
    found = verdict(rule, record)
    assert found is not None
    (sign,) = found
    return sign


STEADY = [0.5] * ROWS


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_no_number_is_named_with_the_step_at_which_it_appears(bad):
    losses = {"value_loss": [np.nan, 0.5, bad, 0.5], "reward_loss": [np.nan, 0.1, 0.1, 0.1]}
    assert only_sign("not finite", run(losses)) == Sign(3000, "value_loss not finite, in 1 row")


def test_rows_without_any_update_and_metrics_never_logged_are_no_fault():
    losses = {"value_loss": [np.nan, 0.5, np.nan, 0.5], "reward_loss": [np.nan, 0.1, np.nan, 0.1]}
    assert verdict("not finite", run({**losses, "termination_loss": [np.nan] * 4})) == []
    assert verdict("not finite", run({"return": [1.0, 2.0]})) is None


def test_a_run_that_was_stopped_for_diverging_is_named_without_a_row_that_shows_it():
    stopped = run({"value_loss": STEADY}, reason="training diverged at update 9: a loss is not finite")
    assert only_sign("not finite", stopped) == Sign(15_000, "training diverged and was stopped")


def test_a_score_that_falls_to_less_than_half_is_named():
    fallen = run(evaluations=[(TASK, 0, 10), (TASK, 1000, 800), (TASK, 2000, 300)])
    assert only_sign("lost", fallen) == Sign(1000, "score fell from 80.0 at 1,000 to 30.0 at 2,000")
    assert verdict("lost", run(evaluations=[(TASK, 0, 10), (TASK, 1000, 800), (TASK, 2000, 500)])) == []
    assert verdict("lost", run(evaluations=[(TASK, 0, 150), (TASK, 1000, 10)])) == []  # 14 points alone
    assert verdict("lost", run(evaluations=[(TASK, 0, 10)])) is None


def test_a_score_at_the_random_policys_level_is_named_only_after_learning_began():
    level = TASKS["walker-walk"].random_return
    assert level is not None
    low = [("walker-walk", 0, 500, 0), ("walker-walk", 4000, level + 15)]  # 1.5 points above it
    sign = only_sign("random level", run(evaluations=low, task="walker-walk"))
    assert sign.step == 4000
    assert sign.text == f"last evaluation scores {level / 10 + 1.5:.1f}, a random policy {level / 10:.1f}"
    high = [("walker-walk", 4000, level + 25)]
    assert verdict("random level", run(evaluations=high, task="walker-walk")) == []
    assert verdict("random level", run(evaluations=[("walker-walk", 0, level, 0)], task="walker-walk")) is None


def test_of_several_tasks_those_without_success_are_counted_and_named():
    tasks = ("mw-reach", "mw-push", "mw-door-open")
    mixed = [("mw-reach", 2000, 0.0), ("mw-push", 2000, 0.9), ("mw-door-open", 2000, 0.01)]
    sign = only_sign("random level", run(evaluations=mixed, task=",".join(tasks)))
    assert sign.text == "2 of 3 tasks no better than a random policy: mw-reach, mw-door-open"


def test_an_evaluation_far_below_the_training_episodes_since_the_one_before_is_named():
    returns = {"return": [900.0, 900, 300, 400, 500]}  # the first two are from before the evaluation at 2,000
    low = run(returns, [(TASK, 2000, 900), (TASK, 5000, 190)])
    text = "evaluation scores 19.0, the 3 training episodes before it 40.0 on average"
    assert only_sign("below training", low) == Sign(5000, text)
    assert verdict("below training", run(returns, [(TASK, 2000, 900), (TASK, 5000, 210)])) == []
    assert verdict("below training", run(returns, [(TASK, 3000, 900), (TASK, 5000, 0)])) is None  # two episodes


def test_a_running_scale_that_collapses_or_explodes_is_named():
    collapsed = run({"pi_scale": [1.0, 20, 50, 50, 50, 50, 50, 50, 40, 20, 10, 8, 4, 4, 4]})
    assert only_sign("scale", collapsed) == Sign(3000, "pi_scale collapsed from 50 to 4")
    exploded = run({"pi_scale": [2.0] * 10 + [4, 10, 30, 30, 30]})
    text = "pi_scale exploded from 2 in the middle of the run to 30"
    assert only_sign("scale", exploded) == Sign(11_000, text)
    assert verdict("scale", run({"pi_scale": np.linspace(1, 60, ROWS)})) == []
    assert verdict("scale", run({"pi_scale": [1.0] * 11})) is None


def test_a_value_loss_far_above_its_middle_level_is_named():
    high = run({"value_loss": [2.0] * 5 + [0.5] * 5 + [1.0, 1.5, 2, 2, 2]})
    text = "value_loss 2, 4.0 times its level in the middle of the run"
    assert only_sign("value loss", high) == Sign(11_000, text)
    assert verdict("value loss", run({"value_loss": [2.0] * 5 + [0.5] * 5 + [1.0] * 5})) == []


def test_a_loss_that_rises_over_the_last_third_is_named_and_one_peak_is_not_a_rise():
    rising = run({"value_loss": [*STEADY[:10], 1.0, 1.1, 1.2, 1.3, 1.4], "reward_loss": STEADY, "pi_loss": range(ROWS)})
    # slope 0.1 a row over 4 rows, at a median of 1.2
    assert only_sign("losses rise", rising) == Sign(11_000, "rising over the last third of the run: value_loss by 33%")
    peak = [*STEADY[:12], 5.0, 0.5, 0.5]
    assert verdict("losses rise", run({"value_loss": peak})) == []
    slight = [*STEADY[:10], 1.00, 1.01, 1.02, 1.03, 1.04]
    assert verdict("losses rise", run({"value_loss": slight})) == []
    assert verdict("losses rise", run({"value_loss": STEADY[:11]})) is None


def test_a_gradient_norm_that_never_comes_below_the_threshold_again_is_named_from_there():
    clipped = run({"grad_norm": [3.0] * 9 + [20.0] * 6, "pi_grad_norm": [0.1] * ROWS})
    text = "grad_norm at or above the clipping threshold of 20 in every row since"
    assert only_sign("clipped", clipped) == Sign(10_000, text)
    assert verdict("clipped", run({"grad_norm": [25.0] * 12 + [19.0, 25, 25]})) == []


def test_no_improvement_over_the_second_half_is_named_unless_the_score_is_near_perfect():
    flat = [(TASK, 0, 10), (TASK, 2000, 500), (TASK, 3000, 480), (TASK, 4000, 500)]
    text = "best score 50.0 in the first half of the run, 50.0 in the second"
    assert only_sign("no improvement", run(evaluations=flat)) == Sign(2000, text)
    assert verdict("no improvement", run(evaluations=[*flat[:3], (TASK, 4000, 501)])) == []
    perfect = [(TASK, 0, 10), (TASK, 2000, 960), (TASK, 3000, 940), (TASK, 4000, 950)]
    assert verdict("no improvement", run(evaluations=perfect)) == []
    assert verdict("no improvement", run(evaluations=flat[1:])) is None  # one evaluation in the first half


def test_a_speed_that_falls_to_less_than_half_is_named():
    updates = 100.0 * np.arange(16)
    seconds = np.cumsum([0.0] + [10.0] * 10 + [25.0] * 5)  # 10 updates a second, then 4
    slowed = run({"value_loss": [0.5] * 16, "updates": updates, "seconds": seconds})
    text = "speed fell from 10 to 4 updates a second"
    assert only_sign("slower", slowed) == Sign(12_000, text)  # rows 12 to 16 are the last third of 15 differences
    steady = run({"value_loss": [0.5] * 16, "updates": updates, "seconds": 10 * np.arange(16.0)})
    assert verdict("slower", steady) == []


def test_a_run_of_which_nothing_is_logged_cannot_be_judged_by_any_rule():
    assert [rule.check(run()) for rule in RULES] == [None] * len(RULES)
