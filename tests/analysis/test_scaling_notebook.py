import json
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "scaling.ipynb"


def run_cells(**parameters) -> None:
    """Run the notebook's code cells in this process: far quicker than in a kernel of their own."""
    namespace: dict[str, object] = {}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, NOTEBOOK.name, "exec"), namespace)  # our own notebook
            if "parameters" in cell.metadata.get("tags", []):
                namespace.update(parameters)


def headline(output: Path) -> dict[str, str]:
    return json.loads((output / "headlines" / "scaling.json").read_text())


def figures(output: Path) -> set[str]:
    folder = output / "figures"
    return {path.stem for path in folder.iterdir()} if folder.is_dir() else set()


def test_notebook_is_committed_without_outputs_and_with_a_parameters_cell():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1
    assert notebook.metadata.kernelspec.name == "python3"


def test_notebook_gives_the_numbers_of_a_sweep_over_sizes(writer, tmp_path):
    tasks = ["walker-walk", "cheetah-run", "mw-reach"]
    for place, size in enumerate((1, 5, 19, 48)):
        share = 0.2 * (place + 1)
        writer.add_multi(
            tasks, 1, [(2000, {"walker-walk": 1000 * share, "cheetah-run": 1000 * share, "mw-reach": share})], size=size
        )
    writer.add("walker-walk", 1, [(3000, 400.0)])
    writer.add("walker-walk", 1, [(3000, 700.0)], size=5)
    writer.add("cheetah-run", 1, [(3000, 100.0)])
    output = tmp_path / "out"
    papermill.execute_notebook(
        NOTEBOOK,
        tmp_path / "scaling.ipynb",
        {"results": [str(writer.folder)], "output": str(output), "resamples": 50},
        cwd=NOTEBOOK.parents[1],
        kernel_name="python3",
        progress_bar=False,
    )
    points = pd.read_csv(output / "tables" / "scaling_points.csv")
    multi, single = points[points["kind"] == "multi"], points[points["kind"] == "single"]
    assert multi["score"].to_list() == pytest.approx([20, 40, 60, 80])
    assert multi["low"].to_list() == pytest.approx([20, 40, 60, 80])  # all tasks alike
    assert multi["hours"].to_list() == pytest.approx([30 / 3600] * 4)
    assert single[["size", "score", "tasks"]].to_numpy().tolist() == [[1, 40, 1], [5, 70, 1]]
    fits = pd.read_csv(output / "tables" / "scaling_fits.csv")
    line = fits[(fits["law"] == "log-linear") & (fits["constant"] == "b")].iloc[0]
    x = np.log10(multi["parameters_millions"])
    assert line["value"] == pytest.approx(np.polyfit(x, [20, 40, 60, 80], 1)[0])
    slopes = pd.read_csv(output / "tables" / "scaling_tasks_tdmpc2-single-1-task.csv")
    decades = np.log10(single["parameters_millions"].iloc[1] / single["parameters_millions"].iloc[0])
    assert slopes["slope"].to_list() == pytest.approx([30 / decades])
    assert len(pd.read_csv(output / "tables" / "scaling_published.csv")) == 5
    assert {"scaling_curves", "scaling_cost", "scaling_tasks_tdmpc2-multi-3-tasks"} <= figures(output)
    assert headline(output)["figure"] == "scaling_curves"
    assert (
        f"a tenfold larger model changes the mean normalised score (0 to 100) by {line['value']:+.1f} points"
        in (headline(output)["sentence"])
    )


def test_notebook_of_one_size_says_that_a_second_is_needed(writer, tmp_path):
    for task in ("walker-walk", "cheetah-run"):
        writer.add(task, 1, [(3000, 400.0)])
    writer.add("dog-run", 1, None, size=5)
    run_cells(results=[str(writer.folder)], output=str(tmp_path))
    assert "a second size on the same tasks is needed" in headline(tmp_path)["sentence"]
    assert figures(tmp_path) == {"scaling_curves", "scaling_cost"}


def test_notebook_without_an_evaluation_says_so(writer, tmp_path):
    writer.add("walker-walk", 1, None)
    writer.add("cheetah-run", 1, [], state="failed", message="no simulator")
    run_cells(results=[str(writer.folder)], output=str(tmp_path), published=False)
    assert headline(tmp_path) == {
        "title": "Scaling",
        "sentence": "What a larger model brings cannot be said. None of the runs looked at has an evaluation yet.",
        "figure": None,
    }
    assert figures(tmp_path) == set()


def test_notebook_of_published_curves_alone_shows_the_papers_scores(published, tmp_path):
    reference = published({"tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n100000,920,1\n"})
    run_cells(results=[], reference=str(reference), output=str(tmp_path))
    assert "published learning curves alone are of one size each" in headline(tmp_path)["sentence"]
    assert figures(tmp_path) == {"scaling_curves"}


def test_notebook_of_sizes_without_a_common_task_says_so(writer, tmp_path):
    writer.add("walker-walk", 1, [(3000, 400.0)])
    writer.add("cheetah-run", 1, [(3000, 400.0)], size=5)
    run_cells(results=[str(writer.folder)], output=str(tmp_path), published=False)
    assert "no task has a score at every size (1M and 5M)" in headline(tmp_path)["sentence"]
