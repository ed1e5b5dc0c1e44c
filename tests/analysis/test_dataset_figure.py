"""The table and the figure of a data set: what they say of its tasks, and that all of it can be read."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis import datasets, style
from analysis.datasets import (
    by_place,
    dataset_table,
    density,
    draw_returns,
    main,
    random_returns,
    return_distributions,
    store_returns,
)
from tdmpc2.data.dataset import Dataset, StoreSource, build
from tdmpc2.data.replay import Replay
from tdmpc2.tasks import TASK_SETS, TASKS


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """walker-walk of two seeds, returns 1, 3 and 2; reacher-easy with one episode of full length, return 500."""
    episodes = {("walker-walk", 1): [[1.0], [3.0]], ("reacher-easy", 1): [[1.0] * 500], ("walker-walk", 2): [[1, 1]]}
    sources = []
    for (name, seed), rewards in episodes.items():
        task, folder = TASKS[name], tmp_path / f"{name}-{seed}"
        layout = {"obs_shape": (task.obs_dim,), "obs_dtype": "float32", "action_dim": task.action_dim}
        with Replay.create(folder, task=name, **layout, capacity=1000, slack=501) as store:
            for reward in rewards:
                T = len(reward)
                obs = np.zeros((T + 1, task.obs_dim), np.float32)
                store.add(obs, np.zeros((T, task.action_dim)), np.array(reward), np.zeros(T, bool))
        sources.append(StoreSource(folder, seed, finished=True))
    return build("small", sources, ["reacher-easy", "walker-walk"], tmp_path / "datasets")


def synthetic(tasks: tuple[str, ...], episodes: int = 60, stores: int = 2) -> dict[str, list[np.ndarray]]:
    random = np.random.default_rng(1)
    return {task: [random.uniform(-3, 950, episodes) for _ in range(stores)] for task in tasks}


def row_labels(figure: Figure) -> list[str]:
    return [label.get_text() for axes in figure.axes[::2] for label in axes.get_yticklabels()]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def legend_labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_table_has_a_row_a_task_in_the_order_of_ids(dataset):
    table = dataset_table(dataset).set_index("task")
    assert list(table.index) == ["reacher-easy", "walker-walk"]
    assert table["id"].tolist() == [0, 1]
    assert table["seeds"].tolist() == ["1", "1 2"]
    assert table["transitions"].tolist() == [500, 4]
    assert table["env_steps"].tolist() == [1000, 8]
    assert table.loc["walker-walk", ["return_min", "return_median", "return_max", "return_mean"]].tolist() == [
        1,
        2,
        3,
        2,
    ]


def test_returns_are_told_apart_by_store(dataset):
    stores = {task: [part.tolist() for part in parts] for task, parts in store_returns(dataset).items()}
    assert stores == {"reacher-easy": [[500.0]], "walker-walk": [[1.0, 3.0], [2.0]]}


def test_random_policy_is_marked_only_where_episodes_are_whole(dataset):
    # walker-walk's are cut short, as in the released data of mt80: a random policy's return is not to be compared
    assert random_returns(dataset) == {"reacher-easy": TASKS["reacher-easy"].random_return}


def test_returns_in_order_are_grouped_by_place_in_each_store():
    one = by_place([np.arange(8.0)])
    assert one.to_dict("list") == {
        "place": [25, 75],
        "q25": [0.75, 4.75],
        "median": [1.5, 5.5],
        "q75": [2.25, 6.25],
    }
    # Of each store, the older half is in the first group, however long the store: 0; 10, 20, 30 and 1; 40, 50, 60.
    two = by_place([np.array([0.0, 1.0]), np.arange(10.0, 70.0, 10)])
    assert two["median"].tolist() == [15, 45]
    assert len(by_place([np.arange(10_000.0)])) == datasets.PLACES
    assert by_place([np.array([3.0])]).to_dict("list") == {"place": [50], "q25": [3], "median": [3], "q75": [3]}


def test_density_shows_how_many_episodes_are_where():
    at, height = density(np.concatenate([np.linspace(0, 1, 300), np.linspace(9, 10, 100)]))
    assert (at[0], at[-1]) == (pytest.approx(0, abs=0.05), pytest.approx(10, abs=0.05))
    assert height.max() == 1
    low, middle, high = np.interp([0.1, 5, 9.9], at, height)
    assert low / high == pytest.approx(3, abs=0.1)  # three times as many
    assert middle < 0.01
    for array in density(np.full(5, 7.0)):
        assert array.shape == (0,)  # all alike: there is no density


def test_figure_has_a_row_for_every_task_with_its_numbers(dataset):
    figure = return_distributions(dataset)
    assert len(figure.axes) == 2
    assert row_labels(figure) == ["reacher-easy", "walker-walk"]
    assert figure.axes[0].get_xlabel() == "Episode return"
    assert "oldest to newest" in figure.axes[1].get_xlabel()
    assert "small: 2 tasks, 4 episodes" in texts(figure)
    assert [text.get_text() for text in figure.axes[1].texts] == ["500", "1", "3", "3"]  # largest return, episodes
    assert legend_labels(figure)[-2:] == ["one episode", "random policy"]


def test_suites_have_axes_of_their_own_in_the_order_of_tasks():
    figure = draw_returns("mixed", synthetic(("mw-reach", "walker-walk", "mw-push")), {})
    assert row_labels(figure) == ["mw-reach", "mw-push", "walker-walk"]
    assert len(figure.axes) == 4
    assert [text for text in texts(figure) if text in datasets.SUITE_NAMES.values()] == ["Meta-World", "DMControl"]
    assert "random policy" not in legend_labels(figure)


def test_axis_of_returns_takes_in_all_of_a_suite_and_zero():
    parts = {"walker-walk": [np.array([200.0, 300.0])], "cup-spin": [np.array([40.0, 990.0])]}
    low, high = draw_returns("two", parts, {"walker-walk": 32.0}).axes[0].get_xlim()
    assert low <= 0
    assert 990 < high < 1050
    low, _ = draw_returns("one", {"myo-reach": [np.array([-70.0, 5.0])]}, {}).axes[0].get_xlim()
    assert -75 < low < -70


@pytest.mark.parametrize("tasks", [("walker-walk", "cup-spin"), TASK_SETS["mt80"]], ids=["2", "80"])
def test_everything_written_can_be_read_at_any_number_of_tasks(tasks):
    random = {task: TASKS[task].random_return or 1.0 for task in tasks}
    figure = draw_returns("data", synthetic(tasks, episodes=12), random)
    assert sorted(row_labels(figure)) == sorted(tasks)
    with style.applied():
        figure.draw_without_rendering()
        written = [(text.get_text(), text) for text in figure.texts]
        for i, axes in enumerate(figure.axes):
            low, high = axes.get_xlim()
            ticks = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
            rows = axes.get_yticklabels() if i % 2 == 0 else []
            written += [(text.get_text(), text) for text in (*ticks, *rows, *axes.texts, axes.xaxis.label)]
        boxes = [("legend", figure.legends[0].get_window_extent())]
        boxes += [(name, text.get_window_extent()) for name, text in written]
    assert len(boxes) > 3 * len(tasks)
    # Boxes have room for letters that go up and down: half a point of overlap is none that is seen.
    x0, y0, x1, y1 = np.array([box.padded(-0.5 * figure.dpi / 72).extents for _, box in boxes]).T
    page = figure.bbox
    assert [name for (name, _), end in zip(boxes, x1, strict=True) if end > page.x1] == []
    assert (min(x0), min(y0)) >= (page.x0, page.y0)
    assert max(y1) <= page.y1
    apart = (x1[:, None] <= x0) | (x1 <= x0[:, None]) | (y1[:, None] <= y0) | (y1 <= y0[:, None])
    pairs = np.argwhere(np.triu(~apart, 1))
    assert [(boxes[a][0], boxes[b][0]) for a, b in pairs] == []


def test_data_set_with_returns_all_alike_is_drawn():
    figure = draw_returns("flat", {"walker-walk": [np.zeros(3)], "cup-spin": [np.full(1, 2.0)]}, {})
    figure.draw_without_rendering()
    assert [text.get_text() for text in figure.axes[1].texts] == ["0", "3", "2", "1"]


def test_command_writes_both_files_and_refuses_what_it_cannot_draw(dataset, tmp_path, capsys):
    assert main([str(dataset.folder), "--output", str(tmp_path / "drawn" / "returns.png")]) == 0
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"returns.png", "returns.svg", "returns.pdf"}
    capsys.readouterr()
    for folder, output, message in [
        (dataset.folder, "returns.gif", "returns.gif: figures are written as PNG, SVG and PDF; name FILE.png or FILE"),
        (tmp_path, "returns.png", "holds no data set (dataset.json is missing)"),
        (dataset.folder, f"{dataset.folder}/dataset.json/x.png", "cannot be written (File exists)"),
    ]:
        assert main([str(folder), "--output", output]) == 2
        assert message in capsys.readouterr().err
