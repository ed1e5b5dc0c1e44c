import itertools

import numpy as np
from matplotlib.figure import Figure

from analysis import style
from analysis.multitask.buffers import read_buffers
from analysis.multitask.comparison import compare
from analysis.multitask.difference_figures import series_differences, task_differences
from analysis.multitask.figures import kinds_compared, update_curves
from analysis.multitask.overview import compare_means
from analysis.study import load_study
from tdmpc2.tasks import TASK_SETS, TASKS


def value(task: str, share: float) -> float:
    return share * 1000 if TASKS[task].metric == "return" else share


def loaded(writer):
    study = load_study([writer.folder])
    return study.ours, compare(study, read_buffers(study.runs)[0])


def many(writer, tasks, sizes, seeds=(1,)):
    for task in tasks:
        points = [(0, 0.0, 0.0), (3000, value(task, 0.6), 0.6)]
        writer.add(task, 1, points if TASKS[task].metric == "success" else [point[:2] for point in points])
    for size, seed in itertools.product(sizes, seeds):
        points = [(0, dict.fromkeys(tasks, 0.0)), (2000, {task: value(task, 0.5) for task in tasks})]
        writer.add_multi(tasks, seed, points, size=size)
    return loaded(writer)


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def overlaps(figure: Figure) -> list[tuple[int, int]]:
    """Pairs of panels whose boxes, with titles and tick labels, overlap; -1 is the legend."""
    with style.applied():
        figure.canvas.draw()
        boxes = [(i, axes.get_tightbbox().padded(-1.0)) for i, axes in enumerate(figure.axes)]
        boxes.append((-1, figure.legends[0].get_window_extent()))
    assert all(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 for _, box in boxes)
    return [(a, b) for (a, x), (b, y) in itertools.combinations(boxes, 2) if x.overlaps(y)]


def test_curves_over_updates_stand_beside_the_single_task_score_and_the_random_one(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 500.0)])
    writer.add_multi(["walker-walk", "mw-reach"], 1, [(0, {"walker-walk": 30.0, "mw-reach": 0.0})], size=5)
    points = [(0, {"walker-walk": 30.0, "mw-reach": 0.0}), (2000, {"walker-walk": 300.0, "mw-reach": 0.5})]
    writer.add_multi(["walker-walk", "mw-reach"], 1, points)
    figure = update_curves(*loaded(writer))
    walker, reach = figure.axes
    assert [walker.get_title(), reach.get_title()] == ["walker-walk", "mw-reach"]
    assert figure.get_supxlabel() == "Updates"
    assert (walker.get_ylabel(), reach.get_ylabel()) == ("Return", "")
    levels = {float(line.get_ydata()[0]) for line in walker.lines if list(line.get_xdata()) == [0, 1]}
    assert levels == {31.88, 500.0}
    curves = [line.get_ydata().tolist() for line in walker.lines if list(line.get_xdata()) == [0, 2000]]
    assert curves == [[30.0, 300.0]]
    assert [text.get_text() for text in walker.texts] == ["single-task"]
    assert reach.texts[:] == []  # it has no single-task run
    assert walker.get_ylim()[1] > 500
    assert legend_labels(figure) == [
        "TD-MPC2 1M multi-task (2 tasks)",
        "TD-MPC2 5M multi-task (2 tasks)",
        "TD-MPC2 1M single-task",
        "random policy",
    ]


def test_compared_kinds_place_every_score_and_interval(writer):
    for seed, reached in ((1, 400.0), (2, 500.0), (3, 600.0)):
        writer.add("walker-walk", seed, [(3000, reached)])
    for seed, reached in ((1, 200.0), (2, 300.0)):
        writer.add_multi(["walker-walk", "dog-run"], seed, [(2000, {"walker-walk": reached, "dog-run": 50.0})])
    writer.add_multi(["walker-walk", "dog-run"], 1, None, size=5)
    figure = kinds_compared(loaded(writer)[1])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dog-run", "walker-walk"]
    # no mark, no legend entry: size 5 has not started
    assert legend_labels(figure) == ["TD-MPC2 1M single-task", "TD-MPC2 1M multi-task (2 tasks)", "random policy"]
    segments = [np.asarray(c.get_segments()) for c in axes.collections if hasattr(c, "get_segments")]
    bars = {tuple(np.round(bar[:, 0], 3)) for bars in segments for bar in bars if len(bar)}
    assert (25.159, 74.841) in bars  # three seeds: 50 -+ 4.302653 x 10 / sqrt(3), Student's t
    assert (20.0, 30.0) in bars  # two seeds: their range
    marks = {
        round(float(x), 3) for c in axes.collections for x in np.asarray(c.get_offsets())[:, 0] if len(c.get_offsets())
    }
    assert {50.0, 25.0, 5.0} <= marks  # single-task, multi-task on both tasks
    assert 3.188 in marks  # random
    (joined,) = [line.get_xdata() for line in axes.lines]
    assert np.ravel(joined).tolist() == [50.0, 25.0]


def test_curves_of_thirty_tasks_stay_apart(writer):
    tasks = TASK_SETS["mt30"]
    figure = update_curves(*many(writer, tasks, (1, 5, 19)))
    assert sorted(axes.get_title().replace("\n", "") for axes in figure.axes) == sorted(tasks)
    assert overlaps(figure) == []


def test_compared_kinds_of_all_tasks_stay_legible(writer):
    tasks = TASK_SETS["all"]
    figure = kinds_compared(many(writer, tasks, (1, 5))[1])
    assert sum(len(axes.get_yticks()) for axes in figure.axes) == len(tasks)
    assert overlaps(figure) == []
    assert figure.get_size_inches()[1] < 12
    row = figure.axes[0].get_position().height * figure.get_size_inches()[1] / len(figure.axes[0].get_yticks())
    assert row > 0.25  # inches: the marks of a row stay apart


def test_curves_of_one_task_set_leave_out_the_agents_of_another(writer):
    for tasks in (["walker-walk", "dog-run"], ["walker-walk", "dog-run", "mw-reach"]):
        writer.add_multi(tasks, 1, [(0, dict.fromkeys(tasks, 0.0)), (2000, dict.fromkeys(tasks, 0.5))])
    table, rows = loaded(writer)
    figure = update_curves(table, rows[rows["task_set"] == "2 tasks"])
    assert legend_labels(figure)[0] == "TD-MPC2 1M multi-task (2 tasks)"
    assert not any("3 tasks" in label for label in legend_labels(figure))


def test_differences_are_sorted_and_hollow_without_an_interval(writer):
    _, rows = many(writer, TASK_SETS["mt80"], (5,))
    rows = rows.assign(difference=np.arange(80.0) - 40, difference_low=np.nan)
    rows.loc[0, ["difference_low", "difference_high"]] = [-50.0, -30.0]
    figure = task_differences(rows)
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == list(rows["task"])[::-1]
    marks = [c for c in axes.collections if len(c.get_offsets()) == 1 and not hasattr(c, "get_segments")]
    assert [float(mark.get_offsets()[0, 0]) for mark in marks] == list(range(39, -41, -1))
    hollow = [bool((mark.get_facecolor() == 1).all()) for mark in marks]
    assert hollow == [True] * 79 + [False]
    assert axes.get_yticklabels()[0].get_fontsize() >= 5
    assert figure.get_size_inches()[1] < 9.5
    assert overlaps(figure) == []


def test_overview_has_a_hollow_mark_for_an_undecided_series(writer):
    _, rows = many(writer, ["walker-walk", "dog-run"], (1, 5))
    figure = series_differences(compare_means(rows))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "TD-MPC2 5M multi-task (2 tasks), 2 tasks",
        "TD-MPC2 1M multi-task (2 tasks), 2 tasks",
    ]
    marks = [c for c in figure.axes[0].collections if not hasattr(c, "get_segments")]
    assert all((mark.get_facecolor() == 1).all() for mark in marks)
