import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from analysis import figures, style
from analysis.reference import load_reference
from analysis.results import TABLE_COLUMNS, add_registry, load_sweep, load_training
from analysis.run_report.figures import training_losses
from analysis.scores import final_scores, last_evaluations
from tdmpc2.tasks import TASK_SETS, TASKS

NOW = 1_700_000_000.0


def synthetic_table(tasks: tuple[str, ...], seeds: tuple[int, ...]) -> pd.DataFrame:
    rows = [
        (task, "tdmpc2", "single", 5, seed, step, TASKS[task].metric, 0.5, f"{task}-{seed}")
        for task, seed, step in itertools.product(tasks, seeds, (0, 1_000_000, 2_000_000))
    ]
    columns = ["task", "algorithm", "kind", "size", "seed", "env_steps", "metric", "value", "run"]
    table = add_registry(pd.DataFrame(rows, columns=pd.Index(columns)).astype({"size": "Int64"}))
    assert list(table.columns) == TABLE_COLUMNS
    return table


def titles(figure: Figure) -> list[str]:
    return [axes.get_title().replace("\n", "") for axes in figure.axes]


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of panels whose boxes, with titles and tick labels, overlap."""
    with style.applied():
        figure.canvas.draw()
        boxes = [(axes.get_title(), axes.get_tightbbox()) for axes in figure.axes]
    shrunk = [(name, box.padded(-1.0)) for name, box in boxes]
    return [(a, b) for (a, x), (b, y) in itertools.combinations(shrunk, 2) if x.overlaps(y)]


def test_learning_curves_have_a_labelled_panel_for_every_task(writer, tmp_path):
    for seed, value in ((1, 400.0), (2, 500.0), (3, 600.0)):
        writer.add("walker-walk", seed, [(0, 30.0), (3000, value)])
    writer.add("mw-reach", 1, [(0, 10.0, 0.0), (3000, 40.0, 0.5)])
    writer.add("dog-run", 1, None)
    table = load_sweep(writer.folder, now=NOW).table
    figure = figures.learning_curves(table, tasks=["mw-reach", "walker-walk", "dog-run"])

    assert titles(figure) == ["dog-run", "walker-walk", "mw-reach"]
    assert figure.get_supxlabel() == "Environment steps"
    assert [axes.get_ylabel() for axes in figure.axes] == ["Return", "", ""]
    assert legend_labels(figure) == ["TD-MPC2 1M", "single seeds", "95% interval", "random policy"]
    dog, walker, reach = figure.axes
    assert [text.get_text() for text in dog.texts] == ["no evaluation"]
    assert len(walker.lines) == 1 + 3 + 1  # random policy, three seeds, their mean
    assert len(walker.collections) == 1  # the interval
    assert walker.lines[-1].get_ydata().tolist() == [30.0, 500.0]
    assert len(reach.lines) == 1  # one seed, and no random return is known
    assert reach.get_ylim() == (0, pytest.approx(1.04))
    png, svg, pdf = style.save(figure, tmp_path / "figures", "curves").values()
    assert png.stat().st_size > 5000
    assert b"<svg" in svg.read_bytes()[:500]
    assert pdf.read_bytes().startswith(b"%PDF")


def test_two_seeds_show_their_range_and_one_point_a_mark(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 100.0)])
    writer.add("walker-walk", 2, [(0, 30.0), (3000, 200.0)])
    writer.add("dog-run", 1, [(0, 4.0)], state="running")
    figure = figures.learning_curves(load_sweep(writer.folder, now=NOW).table)
    assert "range of 2 seeds" in legend_labels(figure)
    assert "95% interval" not in legend_labels(figure)
    dog = figure.axes[0]
    assert dog.lines[-1].get_marker() == "o"
    assert dog.get_xticks().tolist() == [0]


def test_published_curve_is_drawn_over_our_steps_only(writer, published):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 100.0)])
    text = "step,reward,seed\n0,20,1\n100000,900,1\n"
    reference = load_reference(published({"tdmpc2/walker-walk.csv": text, "sac/dog-run.csv": text}))
    figure = figures.learning_curves(load_sweep(writer.folder, now=NOW).table, reference.table)
    (axes,) = figure.axes
    assert axes.get_xlim()[1] < 4000
    assert axes.get_ylim()[1] < 150  # not stretched by the published curve's end
    assert legend_labels(figure) == ["TD-MPC2 1M", "TD-MPC2 (published)", "random policy"]  # none of another task


def test_published_curves_alone_are_drawn_whole_and_solid(published):
    text = "step,reward,seed\n0,20,1\n100000,900,1\n"
    reference = load_reference(published({"tdmpc2/walker-walk.csv": text, "sac/dog-run.csv": text})).table
    figure = figures.learning_curves(reference.iloc[:0], reference)
    assert titles(figure) == ["dog-run", "walker-walk"]
    walker = figure.axes[1]
    assert walker.get_xlim()[1] == pytest.approx(104_000)
    assert walker.lines[-1].get_ydata().tolist() == [20.0, 900.0]
    assert walker.lines[-1].get_linestyle() == "-"
    assert legend_labels(figure) == ["TD-MPC2 (published)", "SAC (published)", "random policy"]


def test_scores_of_many_series_stand_apart_within_a_task():
    keys = [("sac", "published"), ("tdmpc2", "published")]
    rows = pd.DataFrame(
        [(task, a, k, pd.NA, "", 50.0, 40.0, 60.0) for task in TASK_SETS["all"] for a, k in keys],
        columns=pd.Index(["task", "algorithm", "kind", "size", "task_set", "mean", "min", "max"]),
    )
    figure = figures.task_scores(rows)
    assert sum(len(axes.get_yticks()) for axes in figure.axes) == 104
    assert overlaps(figure) == []
    marks = [np.asarray(c.get_offsets()) for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    assert [mark[0].tolist() for mark in marks] == [pytest.approx([50.0, 0.32]), pytest.approx([50.0, -0.32])]


@pytest.mark.parametrize("name", ["dmcontrol", "all"])
def test_small_multiples_stay_apart_at_every_scale(name):
    tasks = TASK_SETS[name]
    figure = figures.learning_curves(synthetic_table(tasks, (1,)))
    assert sorted(titles(figure)) == sorted(tasks)
    assert overlaps(figure) == []
    assert figure.get_size_inches()[0] == pytest.approx(style.PAGE_WIDTH)
    labelled = [axes for axes in figure.axes if axes.get_ylabel()]
    assert {axes.get_position().x0 for axes in labelled} == {min(a.get_position().x0 for a in figure.axes)}


def test_legend_stands_above_the_panels():
    figure = figures.learning_curves(synthetic_table(TASK_SETS["dmcontrol"][:3], (1, 2, 3)))
    with style.applied():
        figure.canvas.draw()
        legend = figure.legends[0].get_window_extent()
        assert all(legend.y0 >= axes.get_tightbbox().y1 for axes in figure.axes)
        assert legend.y1 <= figure.bbox.y1
        assert legend.x0 >= 0
        assert legend.x1 <= figure.bbox.x1


def test_final_scores_place_mean_seeds_random_and_published(writer, published, tmp_path):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 300.0)])
    writer.add("walker-walk", 2, [(0, 30.0), (3000, 500.0)])
    writer.add("walker-walk", 3, [(0, 30.0), (1000, 90.0)], state="failed")
    writer.add("dog-run", 1, None)
    sweep = load_sweep(writer.folder, now=NOW)
    reference = load_reference(published({"tdmpc2/walker-walk.csv": "step,reward,seed\n0,0,1\n6000,800,1\n"}))
    final = final_scores(sweep.runs, sweep.table, reference.table)
    figure = figures.final_scores(final, last_evaluations(sweep.table))

    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog-run", "walker-walk"]
    assert legend_labels(figure) == ["TD-MPC2 1M", "TD-MPC2 (published)", "seed that ended early", "random policy"]
    drawn = [np.asarray(c.get_offsets())[:, 0].tolist() for c in axes.collections if len(np.asarray(c.get_offsets()))]
    assert [30.0, 50.0] in drawn  # counted seeds
    assert [9.0] in drawn  # the one that ended early
    means = next(points for points in drawn if 40.0 in points)
    assert len(means) == 2  # a row for the task without a score, too
    assert any(40.0 in points and points != means for points in drawn)  # published: halfway to 800
    assert style.save(figure, tmp_path, "final")["PNG"].exists()


def test_final_scores_of_many_tasks_stand_in_columns():
    table = synthetic_table(TASK_SETS["all"], (1,))
    last = last_evaluations(table)
    final = last.assign(seeds=1, mean=last["value"], min=last["value"], max=last["value"], random_return=np.nan)
    figure = figures.final_scores(final, last)
    assert len(figure.axes) == 3
    assert sum(len(axes.get_yticks()) for axes in figure.axes) == 104
    assert overlaps(figure) == []


def test_losses_have_a_panel_for_each_metric_that_was_logged(writer):
    writer.add("walker-walk", 1, [(0, 30.0)])
    writer.add("walker-walk", 2, [(0, 30.0)], size=5)
    figure = training_losses(load_training(load_sweep(writer.folder, now=NOW)))
    assert titles(figure) == ["consistency_loss", "value_loss"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    assert legend_labels(figure) == ["TD-MPC2 1M", "TD-MPC2 5M"]
