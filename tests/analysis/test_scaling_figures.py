import itertools

import numpy as np
import pandas as pd
import pytest

from analysis import style
from analysis.scaling.figures import cost_axes, device_hours, scaling_curves, task_slopes
from analysis.scaling.fits import measure
from analysis.scaling.published import published_points
from analysis.scaling.series import SizeSeries
from tdmpc2.errors import UserError

SIZES = (1, 5, 19, 48, 317)


def scaling(task_set="mt80", kind="multi", sizes=SIZES, tasks=6, hours=1.0):
    rng = np.random.default_rng(0)
    mean = 75 - 60 * np.array(sizes, dtype=float) ** -0.5
    scores = mean[:, None, None] + rng.normal(0, 6, (1, tasks, 1)) + rng.normal(0, 2, (len(sizes), tasks, 3))
    costs = pd.DataFrame({"size": sizes, "updates": 1e7, "hours": hours, "device": "cuda:0", "hardware": "a GPU"})
    names = tuple(f"task-{i}" for i in range(tasks))
    millions = np.array(sizes, dtype=float)
    return measure(
        SizeSeries("tdmpc2", kind, task_set, names, (), (), tuple(sizes), millions, (), (), scores, costs), resamples=50
    )


def dashed_ends(axes) -> list[float]:
    return [float(max(line.get_xdata())) for line in axes.lines if line.get_linestyle() == "--"]


def diamonds(axes) -> int:
    return sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "D")


def overlaps(figure) -> list[tuple[int, int]]:
    """Pairs of axes whose boxes, with titles and labels, overlap; -1 is the legend."""
    with style.applied():
        figure.canvas.draw()
        boxes = [(i, axes.get_tightbbox().padded(-1.0)) for i, axes in enumerate(figure.axes)]
        boxes += [(-1, legend.get_window_extent()) for legend in figure.legends]
    assert all(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 for _, box in boxes)
    assert all(box.y0 >= -1 and box.y1 <= figure.bbox.y1 + 1 for _, box in boxes)
    return [(a, b) for (a, x), (b, y) in itertools.combinations(boxes, 2) if x.overlaps(y)]


@pytest.mark.parametrize(("asked", "end"), [(None, 634.0), (1000.0, 1000.0)])
def test_extrapolation_is_dashed_and_ends_where_it_is_asked_to(asked, end):
    (axes,) = scaling_curves([scaling()], None, asked).axes
    assert dashed_ends(axes) == pytest.approx([end, end])
    solid = [max(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 2]
    assert max(solid) == pytest.approx(317.0)


def test_nothing_is_extrapolated_up_to_the_largest_model():
    (axes,) = scaling_curves([scaling()], None, 100.0).axes
    assert dashed_ends(axes) == []


def test_published_points_stand_with_their_task_set_and_else_by_themselves():
    own, other = scaling_curves([scaling("mt30"), scaling("mt80")], published_points()).axes
    assert (diamonds(own), diamonds(other)) == (0, 5)
    beside, alone = scaling_curves([scaling("mt30")], published_points()).axes
    assert (diamonds(beside), diamonds(alone)) == (0, 5)
    assert alone.get_title() == "TD-MPC2's paper (mt80)"
    (only,) = scaling_curves([], published_points()).axes
    assert diamonds(only) == 5


def test_panels_do_not_overlap_with_many_series():
    several = [scaling(name, kind) for name in ("mt30", "mt80", "12 tasks") for kind in ("single", "multi")]
    assert overlaps(scaling_curves(several, published_points())) == []
    assert overlaps(cost_axes(several[:2])) == []


def test_costs_that_were_not_recorded_are_said_to_be_so():
    figure = cost_axes([scaling(hours=np.nan)])
    parameters, updates, hours = figure.axes
    assert [text.get_text() for text in hours.texts] == ["not recorded"]
    assert (len(parameters.texts), len(updates.texts)) == (0, 0)
    assert hours.get_xlabel() == "GPU-hours, all tasks, one seed"


def test_hours_are_named_by_the_device_they_were_spent_on():
    assert device_hours(["cpu", "cpu"]) == "CPU-hours"
    assert device_hours(["cuda", "cuda:0, cuda:1"]) == "GPU-hours"
    assert device_hours(["cpu", "cuda"]) == "Device-hours"
    assert device_hours([""]) == "Device-hours"


@pytest.mark.parametrize("count", [1, 4, 104])
def test_slopes_of_many_tasks_stay_apart_and_sorted(count):
    slope = np.linspace(12, -5, count)
    verdict = np.where(slope > 8, "gain", np.where(slope < -4, "loss", "not decided"))
    tasks = [f"mw-button-press-topdown-wall-{i}" for i in range(count)]
    table = pd.DataFrame(
        {"task": tasks, "runs": 15, "slope": slope, "low": slope - 3, "high": slope + 3, "verdict": verdict}
    )
    figure = task_slopes(table)
    assert overlaps(figure) == []
    labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert labels == tasks
    assert all(label.get_fontsize() >= 5 for axes in figure.axes for label in axes.get_yticklabels())


def test_equal_costs_have_one_tick():
    _, updates, _ = cost_axes([scaling()]).axes
    assert [f"{tick:g}" for tick in updates.get_xticks()] == ["1e+07"]


def test_extrapolation_to_nothing_is_refused():
    with pytest.raises(UserError, match="extrapolate_to"):
        scaling_curves([], published_points(), 0.0)
