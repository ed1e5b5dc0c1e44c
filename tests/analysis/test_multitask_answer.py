"""The verdict in words: better, worse, undecided and the reasons for it."""

import numpy as np
import pandas as pd
import pytest

from analysis.multitask import answer, result_text
from analysis.multitask.comparison import COMPARISON_COLUMNS
from analysis.multitask.explaining import explain, rank_correlation
from analysis.multitask.grouping import OTHERS, group_differences
from analysis.multitask.overview import compare_means
from analysis.study import load_study
from tdmpc2.tasks import TASK_SETS, TASKS


def pairs(differences, seeds=3, single_seeds=3, size=5, p=np.nan, tasks=None):
    """Rows of a comparison in which the single-task agents score 50 on every task."""
    names = list(TASK_SETS["mt30"][: len(differences)]) if tasks is None else tasks
    rows = pd.DataFrame({"task": names, "difference": differences})
    rows = rows.assign(
        suite=[TASKS[name].domain for name in names],
        embodiment=[TASKS[name].embodiment for name in names],
        objective=[TASKS[name].objective for name in names],
        algorithm="tdmpc2",
        kind="multi",
        size=size,
        task_set="some",
        updates=2000,
        seeds=seeds,
        score=50.0 + rows["difference"],
        single_algorithm="tdmpc2",
        single_kind="single",
        single_size=5,
        single_seeds=single_seeds,
        single_score=np.where(rows["difference"].notna(), 50.0, np.nan),
        p=p,
        p_holm=p,
        over_random=10.0,
    )
    return rows.reindex(columns=COMPARISON_COLUMNS)


def sentence(rows, writer):
    writer.add("walker-walk", 1, [(3000, 500.0)])
    return answer.answer(load_study([writer.folder]), compare_means(rows))


def test_better_is_said_with_difference_interval_p_and_the_extreme_tasks(writer):
    rows = pairs([4.0, 6.0, 5.0, 3.0, 7.0, 5.0, -1.0, 3.0])
    (row,) = compare_means(rows).to_dict("records")
    assert (row["verdict"], row["difference"], row["higher"], row["lower"]) == ("better", 4.0, 7, 1)
    # of the 256 sign patterns only all as seen, or the smallest turned, reach the sum of 32; both ways round
    assert row["p"] == pytest.approx(4 / 256)
    assert 0 < row["low"] < 4 < row["high"]
    text = sentence(rows, writer)
    lead = "TD-MPC2 5M multi-task (some) is better than TD-MPC2 5M single-task agents: mean difference +4.0 of"
    assert text.startswith(lead)
    assert "over 8 tasks (54.0 against 50.0, permutation p = 0.016)" in text
    assert (
        "It scores higher on 7 and lower on 1 of 8 tasks; corrected for many tests, better on 0 and worse on 0" in text
    )
    first, _, _, _, most, _, least, _ = rows["task"]
    assert f"largest gain: {most} (+7.0), largest loss: {least} (-1.0)." in text
    assert first not in text


def test_worse_is_said_where_the_differences_are_the_other_way_round(writer):
    rows = pairs([-4.0, -6.0, -5.0, -3.0, -7.0, -5.0, -1.0, -3.0])
    text = sentence(rows, writer)
    assert "is worse than TD-MPC2 5M single-task agents: mean difference -4.2" in text
    assert "largest gain" not in text


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (pairs([9.0, -8.0, 7.0, -6.0, 5.0, -6.0]), "the interval holds 0"),
        (pairs([9.0, 8.0, 7.0, 6.0]), "4 tasks are too few, at least 5 are needed"),
        (pairs([9.0]), "1 task is too few, at least 5 are needed"),
        (pairs([4.0, 6.0, 5.0, 3.0, 7.0]), "the permutation test gives no p below 0.05"),  # 2 of 32
        (pairs([9.0] * 6 + [8.0], seeds=1, single_seeds=1), "either side has one seed a task"),
        (pairs([9.0] * 6 + [8.0], seeds=1), "the multi-task side has one seed a task"),
        (pairs([9.0] * 6 + [8.0]).assign(agents_low=-3.0, agents_high=20.0), "(interval over agents: -3.0 to +20.0)"),
    ],
)
def test_undecided_is_said_with_its_reason(writer, rows, reason):
    text = sentence(rows, writer)
    assert text.startswith("Whether TD-MPC2 5M multi-task (some) is better or worse than")
    assert "is undecided: mean difference" in text
    assert reason in text
    assert "is better than" not in text


def test_tasks_without_both_scores_do_not_count_and_are_told(writer):
    rows = pairs([4.0, 6.0, 5.0, 3.0, 7.0, 5.0, 4.0, np.nan])
    (row,) = compare_means(rows).to_dict("records")
    assert (row["tasks"], row["tasks_compared"], row["difference"]) == (8, 7, pytest.approx(34 / 7))
    assert "over 7 of its 8 tasks" in sentence(rows, writer)


def test_nothing_to_compare_is_said_with_what_is_needed(writer):
    empty = pairs([])
    assert compare_means(empty).empty
    assert sentence(empty, writer).startswith("No agent that learned several tasks from a data set is among the runs")
    (row,) = compare_means(pairs([np.nan, np.nan])).to_dict("records")
    assert row["verdict"] == "not compared"


def test_several_models_are_counted_by_verdict_and_p_is_corrected_over_them(writer):
    good, bad = [4.0, 6.0, 5.0, 3.0, 7.0, 5.0, 6.0, 3.0], [9.0, -8.0, 7.0, -6.0, 5.0, -6.0, 1.0, -2.0]
    rows = pd.concat([pairs(good, size=19), pairs(bad, size=1)])
    means = compare_means(rows).set_index("size")
    assert means.loc[19, "p"] == pytest.approx(2 / 256)
    assert means.loc[19, "p_holm"] == pytest.approx(4 / 256)
    text = sentence(rows, writer)
    assert text.startswith("Of 2 multi-task models beside single-task agents, 1 better in the mean over their tasks")
    assert "1 undecided. TD-MPC2 19M multi-task (some) is better than" in text


def test_tasks_are_better_or_worse_by_their_corrected_p():
    rows = pairs([4.0, 6.0, -5.0, 3.0, 7.0, 5.0, 6.0, 3.0], p=0.5)
    rows.loc[[0, 2], "p_holm"] = [0.01, 0.04]
    (row,) = compare_means(rows).to_dict("records")
    assert (row["better"], row["worse"]) == (1, 1)


def test_three_seeds_against_three_cannot_find_a_task_different_and_the_table_says_so():
    assert result_text.smallest_p(3, 3) == pytest.approx(0.1)
    assert result_text.smallest_p(3, 2) == pytest.approx(0.1)
    note = result_text.tests_note(pairs([1.0, 2.0], p=0.1), 0.05)
    assert "3 against 3 seeds cannot give p below 0.1 on a task" in note
    assert "needs at least two seeds" in result_text.tests_note(pairs([1.0]), 0.05)


def test_groups_have_means_and_single_tasks_stand_together():
    tasks = ["walker-walk", "walker-run", "walker-stand", "cheetah-run", "pendulum-swingup"]
    grouped = group_differences(pairs([1.0, 2.0, 6.0, 4.0, -2.0], tasks=tasks))
    assert "suite" not in set(grouped["grouping"])  # all of one suite
    rows = grouped[grouped["grouping"] == "embodiment"].set_index("group")
    assert rows["difference"].to_dict() == {"walker": 3.0, OTHERS: 1.0}
    assert rows["tasks"].to_dict() == {"walker": 3, OTHERS: 2}
    # standard deviation 7^(1/2), Student's t with 2 degrees of freedom 4.302653: 4.302653 x (7 / 3)^(1/2) = 6.572408
    assert rows.loc["walker", "low"] == pytest.approx(3 - 6.572408, abs=1e-4)
    assert np.isnan(rows.loc[OTHERS, "low"])
    assert rows.loc["walker", "p"] == pytest.approx(0.25)  # 2 of 8 sign patterns
    assert rows.loc[OTHERS, "members"] == "cheetah-run, pendulum-swingup"
    objectives = grouped[grouped["grouping"] == "objective"].set_index("group")
    assert objectives.loc["run", "difference"] == 3.0  # walker-run 2, cheetah-run 4


def with_predictors(n, rng):
    rows = pairs(np.zeros(n))
    x, z = rng.normal(size=n), rng.normal(size=n)
    difference = 5 + 4 * (x - x.mean()) / x.std(ddof=1) + rng.normal(scale=0.1, size=n)
    return rows.assign(data_share=x, single_score=z, nearness=np.nan, difference=difference)


def test_regression_finds_the_predictor_that_the_differences_were_made_from():
    rows = with_predictors(30, np.random.default_rng(0))
    explained = explain(rows, resamples=500).set_index("predictor")
    share, single = explained.loc["data_share"], explained.loc["single_score"]
    assert set(explained.index) == {"data_share", "single_score"}  # no embedding is known
    assert share["together"] == pytest.approx(4, abs=0.1)
    assert share["together_low"] < 4 < share["together_high"] or abs(share["together"] - 4) < 0.1
    assert share["together_p"] == share["alone_p"] == pytest.approx(1 / 501)
    assert share["together_p_holm"] == pytest.approx(2 / 501)
    assert abs(single["together"]) < 0.2
    assert share["rank_correlation"] > 0.95


def test_joint_regression_needs_eight_tasks_and_says_so():
    rows = with_predictors(7, np.random.default_rng(0))
    explained = explain(rows, resamples=100)
    assert explained["together"].isna().all()
    assert explained["alone"].notna().all()
    sentences = result_text.explaining_lacking(explained)
    assert "No nearness of the embedding: no task embeddings could be read." in sentences
    assert any("at least 8 tasks" in text for text in sentences)


def test_a_predictor_that_never_varies_is_left_out_with_a_sentence():
    rows = with_predictors(10, np.random.default_rng(0)).assign(data_share=0.1)
    explained = explain(rows, resamples=100)
    assert explained.set_index("predictor").loc["data_share", ["alone", "together"]].isna().all()
    assert any("never varies" in text for text in result_text.explaining_lacking(explained))


def test_rank_correlation_of_a_reversed_order_is_minus_one():
    rho, p = rank_correlation(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([9.0, 7.0, 5.0, 2.0, 1.0]), 4000)
    assert rho == pytest.approx(-1)
    assert p == pytest.approx(2 / 120, abs=0.008)  # 2 of 5! orders
