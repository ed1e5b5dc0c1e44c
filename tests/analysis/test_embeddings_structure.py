"""Clustering, maps, neighbours and stability of task embeddings, by hand."""

from itertools import pairwise

import numpy as np
import pytest

from analysis.embeddings import figures, maps, text
from analysis.embeddings.structure import (
    agents_table,
    choose_shown,
    cluster,
    leaf_order,
    nearest_neighbours,
    neighbour_shares,
    perplexity,
    principal_components,
    stability,
    tsne_maps,
)
from analysis.task_vectors import TaskEmbeddings, cosine_similarity
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASK_SETS

FOUR = ("walker-walk", "walker-run", "cheetah-run", "cup-catch")
# at 0°, 30°, 70° and 180°
ANGLES = np.deg2rad([0.0, 30.0, 70.0, 180.0])
ROUND = np.column_stack([np.cos(ANGLES), np.sin(ANGLES)])


def agent(vectors, tasks=FOUR, run="run", kind="multi", size=1, seed=1, task_set="4 tasks") -> TaskEmbeddings:
    return TaskEmbeddings(run, "tdmpc2", kind, size, task_set, seed, tuple(tasks), np.asarray(vectors, float))


def test_clusters_stand_side_by_side_and_merge_at_their_mean_distance():
    similarity = np.eye(4)
    for i, j, value in ((0, 2, 0.9), (1, 3, 0.8), (0, 1, 0.1), (0, 3, 0.2), (2, 1, 0.3), (2, 3, 0.4)):
        similarity[i, j] = similarity[j, i] = value
    tree = cluster(similarity)
    np.testing.assert_allclose(tree[:, 2], [0.1, 0.2, 0.75])  # 1 - 0.9, 1 - 0.8, the mean of the other four
    order = leaf_order(tree).tolist()
    # pairs together, and of their ends the most similar ones (2 and 3) meet in the middle
    assert order in ([0, 2, 3, 1], [1, 3, 2, 0])


def test_neighbours_are_ordered_by_similarity_and_labelled():
    near = nearest_neighbours(agent(ROUND), 2).set_index(["task", "rank"])
    assert near["neighbour"].tolist() == [
        "walker-run", "cheetah-run", "walker-walk", "cheetah-run",
        "walker-run", "walker-walk", "cheetah-run", "walker-run",
    ]  # fmt: skip
    first = near.loc[("walker-walk", 1)]
    assert (first["similarity"], first["same_embodiment"], first["same_objective"]) == (
        pytest.approx(np.cos(np.pi / 6)), True, False,
    )  # fmt: skip
    assert near.loc[("cheetah-run", 1), "same_objective"]
    with pytest.raises(UserError, match="neighbours: must be at least 1"):
        nearest_neighbours(agent(ROUND), 0)
    shown = text.neighbours_shown(nearest_neighbours(agent(ROUND), 9))
    assert shown.columns.tolist() == ["task", "nearest", "2nd nearest", "3rd nearest"]
    assert shown.iloc[0].tolist()[:2] == ["walker-walk", "walker-run 0.87 E"]


def test_shares_of_nearest_tasks_count_those_that_have_a_sibling():
    shares = neighbour_shares(nearest_neighbours(agent(ROUND), 1), FOUR).set_index("label")
    # the two walkers are each other's nearest; of the two runs, the walker's nearest is the walk
    assert shares.loc["embodiment"].tolist() == [2, 1.0, pytest.approx(1 / 3)]
    assert shares.loc["objective"].tolist() == [2, 0.5, pytest.approx(1 / 3)]
    alone = neighbour_shares(nearest_neighbours(agent(ROUND[:2], FOUR[2:]), 1), FOUR[2:])
    assert alone["tasks"].tolist() == [0, 0]


def test_untrained_embeddings_are_told_from_trained_ones():
    rng = np.random.default_rng(1)
    tasks = TASK_SETS["mt30"]
    untrained = agent(rng.uniform(-0.02, 0.02, (30, 96)), tasks, "untrained")
    trained = agent(rng.standard_normal((30, 96)) + 0.7 * rng.standard_normal(96), tasks, "trained")
    table = agents_table([untrained, trained, agent(np.eye(4))], draws=400).set_index("run", append=True)
    first, second, square = (table.iloc[i] for i in range(3))
    assert first["norm_untrained"] == pytest.approx(np.sqrt(96 * 0.02**2 / 3))
    assert first["norm_median"] == pytest.approx(first["norm_untrained"], rel=0.05)
    assert first["mean_square"] == pytest.approx(1 / 96, rel=0.2)
    assert first["p"] > 0.05
    assert second["p"] == pytest.approx(2 / 401)
    assert (square["mean_square"], square["norm_min"], square["norm_max"]) == (0, 1, 1)
    assert "Not to be told from random directions: untrained." in text.agents_caption(table.reset_index("run"))


def test_components_hold_the_variance_that_they_say():
    positions, variance = principal_components(np.array([[3.0, 0, 1], [-3.0, 0, 1], [0, 1.0, 1], [0, -1.0, 1]]))
    np.testing.assert_allclose(variance, [0.9, 0.1])
    np.testing.assert_allclose(np.abs(positions), [[3, 0], [3, 0], [0, 1], [0, 1]], atol=1e-12)
    _, variance = principal_components(np.ones((3, 5)))
    assert variance.tolist() == [0, 0]


def test_tsne_maps_keep_clear_groups_together_from_every_start():
    assert [perplexity(n) for n in (6, 7, 31, 104)] == [2, 2, 10, 30]
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(2), 5, axis=0) + 0.05 * rng.standard_normal((10, 2))
    found = tsne_maps(cosine_similarity(rows), [0, 1])
    assert list(found) == [0, 1]
    for positions in found.values():
        distance = np.linalg.norm(positions[:, None] - positions, axis=2) + np.diag(np.full(10, np.inf))
        nearest = distance.argmin(axis=1)
        assert ((nearest < 5) == (np.arange(10) < 5)).all()
    assert not np.allclose(found[0], found[1])


def test_stability_is_one_for_the_same_directions_and_minus_one_for_the_reverse_order():
    same = agent(3 * ROUND[::-1], FOUR[::-1], "b", seed=2)  # other lengths, other order of the tasks
    table = stability([agent(ROUND, run="a"), same], k=1)
    assert table[["tasks", "relation"]].iloc[0].tolist() == [4, "another seed"]
    assert table[["correlation", "overlap", "chance"]].iloc[0].tolist() == pytest.approx([1, 1, 1 / 3])
    twins = stability([agent(ROUND, run="a/run"), agent(ROUND, run="b/run")], k=1)  # one name, two sweeps
    assert twins[["name", "other_name"]].iloc[0].str.split(" ").str[-1].tolist() == ["(a/run)", "(b/run)"]
    # 5 tasks spanned so that similarities are free: S and 0.5 - S as Gram matrices rank the pairs in opposite order
    names = (*FOUR, "finger-spin")
    rng = np.random.default_rng(0)
    upper = np.triu(0.15 * rng.random((5, 5)), 1)
    grams = [np.eye(5) + sign * (upper + upper.T) for sign in (1, -1)]
    reverse = stability([agent(np.linalg.cholesky(g), names, str(i), size=i + 1) for i, g in enumerate(grams)], k=2)
    assert reverse["correlation"].tolist() == pytest.approx([-1])
    assert reverse["relation"].tolist() == ["another size"]


def test_stability_leaves_out_finetuned_agents_and_too_few_common_tasks():
    finetuned = agent(ROUND, run="f", kind="finetuned")
    other = agent(ROUND[:3], FOUR[:3], "c")
    assert stability([agent(ROUND), finetuned, other], k=1).empty
    assert "not known" in text.one_agent([agent(ROUND), finetuned])


def test_the_largest_agents_first_seed_is_shown_for_each_list_of_tasks():
    small, first, second = agent(ROUND, size=1), agent(ROUND, size=5, seed=1), agent(ROUND, size=5, seed=2)
    three = agent(ROUND[:3], FOUR[:3], task_set="3 tasks")
    finetuned = agent(np.vstack([ROUND, [1, 1]]), (*FOUR, "dog-run"), kind="finetuned")
    shown = choose_shown([small, second, three, first, finetuned])
    assert [one.agent for one in shown] == [first, three]
    assert [one.suffix for one in shown] == ["", "_3_tasks"]
    assert [one.agent for one in choose_shown([finetuned])] == [finetuned]
    assert choose_shown([]) == []


@pytest.mark.parametrize("task_set", ["mt30", "all", "two"])
def test_figures_name_every_task_and_stay_inside_the_page(task_set):
    tasks = TASK_SETS.get(task_set, ("walker-walk", "mw-door-open"))
    similarity = cosine_similarity(np.random.default_rng(0).standard_normal((len(tasks), 64)))
    figure = figures.similarity_heatmap(tasks, similarity, cluster(similarity))
    figure.draw_without_rendering()
    heat = figure.axes[0]
    labels = heat.get_yticklabels()
    assert sorted(label.get_text() for label in labels) == sorted(tasks)
    boxes = [label.get_window_extent() for label in labels]
    assert max(box.x1 for box in boxes) <= figure.bbox.x1
    assert all(above.y0 >= below.y1 - 1 for above, below in pairwise(boxes))
    assert min(label.get_fontsize() for label in labels) >= 5


def test_names_on_a_map_do_not_overlap():
    tasks = TASK_SETS["mt80"]
    positions = np.random.default_rng(0).standard_normal((80, 2))
    figure = maps.component_map(tasks, positions, np.array([0.4, 0.2]))
    figure.draw_without_rendering()
    [axes] = figure.axes
    boxes = [name.get_window_extent() for name in axes.texts]
    assert 20 < len(boxes) <= 80
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert "40% of variance" in axes.get_xlabel()
