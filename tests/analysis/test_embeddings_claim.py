"""Mantel tests against values worked out by hand, and the verdict on planted structures."""

import numpy as np
import pandas as pd
import pytest

from analysis.embeddings.claim import ALL, WITHIN, judge, judge_claim
from analysis.embeddings.claim_text import verdict
from analysis.embeddings.mantel import bootstrap_means, make_pairs, mantel_test
from analysis.task_vectors import TaskEmbeddings
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASK_SETS, TASKS


def symmetric(upper: list[float]) -> np.ndarray:
    count = int((1 + np.sqrt(1 + 8 * len(upper))) / 2)
    matrix = np.eye(count)
    matrix[np.triu_indices(count, 1)] = upper
    return np.maximum(matrix, matrix.T)


def planted(task_set: str, body=0.0, aim=0.0, suite=0.0, noise=1.0, seed=0) -> TaskEmbeddings:
    """Embeddings with a direction for each embodiment, objective and suite."""
    rng = np.random.default_rng(seed)
    directions: dict[str, np.ndarray] = {}
    rows = []
    for name in TASK_SETS[task_set]:
        task = TASKS[name]
        row = noise * rng.standard_normal(96)
        for weight, label in (
            (body, f"e {task.embodiment}"),
            (aim, f"o {task.objective}"),
            (suite, f"s {task.domain}"),
        ):
            row += weight * directions.setdefault(label, rng.standard_normal(96))
        rows.append(row / np.linalg.norm(row))
    return TaskEmbeddings("run", "tdmpc2", "multi", 5, task_set, 1, TASK_SETS[task_set], np.array(rows))


def four_tasks(suites=None):
    # Pairs 01 02 03 12 13 23; 0 and 1 share the body, 1 and 2 the objective. Centred at their mean of 2 the
    # similarities are 4 -2 -2 1 -2 1, of squared length 30; the centred indicators have 5/6: r = 4/5 and 1/5, and
    # between the indicators -1/5.
    return make_pairs(symmetric([6, 0, 0, 3, 0, 3]), ["a", "a", "b", "c"], ["x", "y", "y", "z"], suites)


def test_mantel_correlations_are_those_worked_out_by_hand():
    test = mantel_test(four_tasks())
    assert test.embodiment.r.value == pytest.approx(0.8)
    assert test.objective.r.value == pytest.approx(0.2)
    assert test.difference.value == pytest.approx(0.6)
    # (0.8 + 0.2 x 0.2) / sqrt((1 - 0.2²)(1 - 0.2²)) and (0.2 + 0.8 x 0.2) / sqrt((1 - 0.8²)(1 - 0.2²))
    assert test.embodiment.partial.value == pytest.approx(0.875)
    assert test.objective.partial.value == pytest.approx(np.sqrt(6) / 4)


def test_p_values_of_four_tasks_are_exact():
    test = mantel_test(four_tasks())
    assert (test.exact, test.permutations) == (True, 24)
    # the pair that shares the body lands on each of the six pairs four times; only on 01 is |r| as large
    assert test.embodiment.p == pytest.approx(4 / 24)
    assert test.objective.p == 1  # 0.2 is the smallest |r| that any pair gives
    assert test.embodiment.partial_p == pytest.approx(1 / 24)  # 01 with 12 alone: with 02, 03, 13 it is 0.80
    assert np.isnan(test.difference.low)  # too few tasks for an interval


def test_drawn_permutations_give_nearly_the_exact_p_and_count_the_observed_order():
    similarity = symmetric(np.random.default_rng(4).standard_normal(21).tolist())
    labels = ["a", "a", "b", "b", "c", "c", "d"], ["x", "y", "x", "y", "x", "y", "y"]
    exact = mantel_test(make_pairs(similarity, *labels), permutations=5040)
    drawn = mantel_test(make_pairs(similarity, *labels), permutations=5039)
    assert (exact.exact, drawn.exact) == (True, False)
    assert drawn.objective.p == pytest.approx(exact.objective.p, abs=0.025)  # 3 standard errors: 3 x 0.5 / sqrt(5039)
    assert drawn.embodiment.partial_p == pytest.approx(exact.embodiment.partial_p, abs=0.025)
    perfect = mantel_test(make_pairs(symmetric([1.0, *[0.0] * 44]), [*"aabcdefghi"], [*"qwertyuiop"]), permutations=19)
    assert perfect.embodiment.p >= 1 / 20


def test_a_label_that_no_pair_or_every_pair_shares_has_no_correlation():
    none = mantel_test(make_pairs(symmetric([1, 2, 3]), ["a", "b", "c"], ["x", "x", "x"]))
    assert all(np.isnan(found.r.value) and np.isnan(found.p) for found in (none.embodiment, none.objective))
    one = mantel_test(make_pairs(symmetric([0.5]), ["a", "a"], ["x", "y"]))
    assert np.isnan(one.embodiment.r.value)


def test_within_suites_permutes_tasks_of_a_suite_alone_and_suites_explain_nothing():
    test = mantel_test(four_tasks(["s", "s", "t", "t"]))
    assert (test.exact, test.permutations) == (True, 4)
    # similarity is high inside suites and the same throughout; bodies are shared inside suites only
    bodies, suites = ["a", "a", "b", "c", "c", "d"], ["s", "s", "s", "t", "t", "t"]
    similarity = symmetric([float(suites[i] == suites[j]) for i in range(6) for j in range(i + 1, 6)])
    aims = ["x", "y", "z", "x", "y", "z"]
    assert mantel_test(make_pairs(similarity, bodies, aims)).embodiment.r.value > 0.3
    assert np.isnan(mantel_test(make_pairs(similarity, bodies, aims, suites)).embodiment.r.value)


def test_mean_similarities_by_hand_and_their_difference():
    pairs = four_tasks()
    groups = np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]], dtype=bool)
    first, second, empty, difference = bootstrap_means(pairs, groups)
    assert [first.value, second.value, difference.value] == [6, 3, 3]
    assert np.isnan(empty.value)


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        ({"body": 1.0}, ("supported", "embodiment")),
        ({"aim": 1.0}, ("not supported", "objective")),
        ({"body": 0.7, "aim": 0.7}, ("undecided", "both")),
        ({}, ("undecided", "noise")),
    ],
)
def test_planted_structures_get_their_verdict(structure, expected):
    agent = planted("mt30", **structure)
    claim = judge_claim(agent, permutations=500, resamples=400)
    assert (claim.word, claim.reason) == expected
    assert claim.scope == ALL
    assert verdict(agent, claim).lower().startswith(claim.word)


def test_a_suites_common_direction_is_not_taken_for_structure():
    claim = judge_claim(planted("mt80", suite=1.0), permutations=300, resamples=300)
    rows = claim.tests.set_index(["scope", "label"])
    assert rows.loc[(ALL, "embodiment"), "r"] > 0.1  # bodies are shared inside suites: confounded
    assert abs(rows.loc[(WITHIN, "embodiment"), "r"]) < 0.1
    assert (claim.scope, claim.word, claim.reason) == (WITHIN, "undecided", "neither")
    assert list(dict.fromkeys(claim.tests["scope"])) == [ALL, WITHIN, "dmcontrol", "metaworld"]


def test_effect_sizes_are_those_planted():
    claim = judge_claim(planted("mt30", body=1.0), permutations=100, resamples=400)
    means = claim.classes.set_index("shares")
    # a direction in common beside noise of the same length: cosine 1/2; else none
    assert means.loc["embodiment only", "mean"] == pytest.approx(0.5, abs=0.06)
    assert means.loc["neither", "mean"] == pytest.approx(0.0, abs=0.06)
    assert means.loc["embodiment only", "low"] < 0.5 < means.loc["embodiment only", "high"]
    assert means.loc["embodiment only", "contrast_low"] > 0.3
    assert means["pairs"].sum() == 30 * 29 / 2


def test_few_tasks_are_too_few_and_the_sentence_says_how_many():
    tasks = ("pendulum-spin", "cheetah-run", "cartpole-swingup", "finger-spin")
    vectors = np.random.default_rng(0).standard_normal((4, 96))
    agent = TaskEmbeddings("run", "tdmpc2", "multi", 1, "4 tasks", 1, tasks, vectors)
    claim = judge_claim(agent)
    assert (claim.word, claim.reason) == ("undecided", "few")
    sentence = verdict(agent, claim)
    assert "of 6 pairs, 0 share the embodiment alone and 1 the objective alone" in sentence
    with pytest.raises(UserError, match="permutations: must be at least 1"):
        judge_claim(agent, permutations=0)


def rows_for_judge(body_p, aim_p, low, high, pairs=10, tasks=30):
    tests = pd.DataFrame({
        "label": ["embodiment", "objective"], "tasks": tasks, "partial_r": 0.3, "partial_p": [body_p, aim_p],
        "difference_low": low, "difference_high": high,
    })  # fmt: skip
    classes = pd.DataFrame({"shares": ["embodiment only", "objective only", "both", "neither"], "pairs": pairs})
    return tests, classes


@pytest.mark.parametrize(
    ("rows", "random_p", "expected"),
    [
        (rows_for_judge(0.01, 0.5, 0.1, 0.3), 0.001, ("supported", "embodiment")),
        (rows_for_judge(0.5, 0.01, -0.3, -0.1), 0.001, ("not supported", "objective")),
        (rows_for_judge(0.01, 0.5, -0.1, 0.3), 0.001, ("undecided", "open")),
        (rows_for_judge(0.06, 0.5, 0.1, 0.3), 0.001, ("undecided", "neither")),
        (rows_for_judge(0.01, 0.01, -0.1, 0.3), 0.001, ("undecided", "both")),
        (rows_for_judge(0.01, 0.5, 0.1, 0.3), 0.06, ("undecided", "noise")),
        (rows_for_judge(0.01, 0.5, 0.1, 0.3, pairs=2), 0.001, ("undecided", "few")),
        (rows_for_judge(0.01, 0.5, 0.1, 0.3, tasks=5), 0.001, ("undecided", "few")),
        (rows_for_judge(0.01, 0.5, np.nan, np.nan), 0.001, ("undecided", "open")),
    ],
)
def test_the_verdict_needs_the_partial_test_and_the_difference(rows, random_p, expected):
    assert judge(*rows, random_p) == expected
