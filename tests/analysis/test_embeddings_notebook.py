"""The notebook task_embeddings, from sweeps' folders to tables, with planted answers and in every degenerate case."""

import json
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest

from tdmpc2.tasks import TASK_SETS, TASKS

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "task_embeddings.ipynb"
NAME = "task_embeddings"


def write_embeddings(run: Path, tasks, vectors) -> None:
    lines = ["task,domain,embodiment,objective," + ",".join(f"e{i}" for i in range(vectors.shape[1]))]
    for name, row in zip(tasks, vectors.tolist(), strict=True):
        task = TASKS[name]
        lines.append(",".join([name, task.domain, task.embodiment, task.objective, *map(repr, row)]))
    (run / "embeddings.csv").write_text("\n".join(lines) + "\n")


def by_embodiment(tasks, seed: int) -> np.ndarray:
    """A direction for each embodiment beside noise half as long: their cosine is 0.8."""
    bodies = np.random.default_rng(0)
    noise = np.random.default_rng(seed)
    directions = {body: bodies.standard_normal(96) for body in dict.fromkeys(TASKS[task].embodiment for task in tasks)}
    rows = np.array([directions[TASKS[task].embodiment] + 0.5 * noise.standard_normal(96) for task in tasks])
    return rows / 20


def draw_only(figure: Any, folder: Path, name: str) -> dict[str, Path]:
    """In place of `style.save`, which writes three files: all is laid out, an empty PNG written."""
    figure.draw_without_rendering()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(b"")
    return {"PNG": folder / f"{name}.png"}


def run_cells(tmp_path: Path, monkeypatch, **parameters: Any) -> tuple[dict[str, Any], str]:
    """Run the notebook's cells in this process; the headline and all text that was shown."""
    monkeypatch.chdir(tmp_path)
    shown: list[str] = []
    monkeypatch.setattr("analysis.display._show", shown.append)
    monkeypatch.setattr("analysis.display.style.save", draw_only)
    monkeypatch.setattr("IPython.display.display", lambda *_: None)
    space: dict[str, Any] = {}
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    exec(cells[0].source, space)
    space |= {"output": str(tmp_path / "out"), "permutations": 99, **parameters}
    for cell in cells[1:]:
        exec(cell.source, space)
    return json.loads((tmp_path / "out" / "headlines" / f"{NAME}.json").read_text()), "\n".join(shown)


def test_notebook_is_committed_without_outputs_and_with_a_parameters_cell():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert [cell.metadata.get("tags") for cell in code] == [["parameters"], *[None] * (len(code) - 1)]
    assert [cell.id for cell in notebook.cells] == [f"c{i}" for i in range(len(notebook.cells))]
    assert all(cell.source.startswith("# ") for cell in code)


def test_notebook_runs_by_papermill_and_finds_what_was_planted(writer, tmp_path):
    papermill = pytest.importorskip("papermill")
    tasks = list(TASK_SETS["mt30"])
    for size, seed in ((1, 1), (1, 2), (5, 1)):
        write_embeddings(writer.add_multi(tasks, seed, [], size=size), tasks, by_embodiment(tasks, 10 * size + seed))
    writer.add_multi(tasks, 3, None)
    output, executed = tmp_path / "out", tmp_path / "executed.ipynb"
    parameters = {
        "results": [str(writer.folder)], "output": str(output), "permutations": 499, "tsne_seeds": [0], "neighbours": 2,
    }  # fmt: skip
    papermill.execute_notebook(NOTEBOOK, executed, parameters, kernel_name="python3", progress_bar=False)

    headline = json.loads((output / "headlines" / f"{NAME}.json").read_text())
    assert "Supported, similarity goes with the embodiment" in headline["sentence"]
    assert "TD-MPC2 5M multi-task (mt30), seed 1, 30 tasks" in headline["sentence"]
    assert {path.stem for path in (output / "figures").glob("*.pdf")} == {
        f"embeddings_{name}" for name in ("similarity", "components", "tsne", "claim", "stability")
    }
    assert headline["figure"] == "embeddings_similarity"
    tables = output / "tables"
    means = pd.read_csv(tables / "embeddings_means.csv").set_index("shares")
    assert means.loc["embodiment only", "mean"] == pytest.approx(0.8, abs=0.03)
    assert means.loc["neither", "mean"] == pytest.approx(0.0, abs=0.05)
    tests = pd.read_csv(tables / "embeddings_mantel.csv").set_index("label")
    assert tests.loc["embodiment", "partial_p"] == pytest.approx(1 / 500)
    assert tests.loc["embodiment", "partial_r"] > 0.9
    assert tests.loc["objective", "partial_r"] < 0.15
    near = pd.read_csv(tables / "embeddings_neighbours.csv")
    siblings = near[(near["rank"] == 1) & ~near["task"].isin(["acrobot-swingup", "fish-swim"])]
    assert siblings["same_embodiment"].all()  # the other two have no sibling among the 30
    stability = pd.read_csv(tables / "embeddings_stability.csv")
    assert sorted(stability["relation"]) == ["another seed", "another size", "another size"]
    similarity = pd.read_csv(tables / "embeddings_similarity.csv").set_index("task")
    assert similarity.loc["walker-walk", "walker-run"] == pytest.approx(0.8, abs=0.15)
    text = executed.read_text()
    assert "mt30-1M-seed3" in text or "30tasks-1M-seed3" in text
    assert "(not started): no agent yet" in text


def test_without_a_multi_task_run_the_page_says_so(writer, tmp_path, monkeypatch):
    writer.add("walker-walk", 1, [(0, 1.0)])
    headline, _ = run_cells(tmp_path, monkeypatch, results=[str(writer.folder)])
    assert "there is no multi-task run" in headline["sentence"]
    assert headline["figure"] is None


def test_from_published_curves_alone_the_page_says_so(published, tmp_path, monkeypatch):
    reference = published({"tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n100000,920,1\n"})
    headline, _ = run_cells(tmp_path, monkeypatch, results=[], reference=str(reference))
    assert "there is no multi-task run" in headline["sentence"]


def test_agents_that_are_not_there_yet_and_files_that_cannot_be_read_are_listed(writer, tmp_path, monkeypatch):
    writer.add_multi(["walker-walk", "cup-spin"], 1, None)
    results, checkpoints = [str(writer.folder)], [str(tmp_path / "none.pt")]
    headline, shown = run_cells(tmp_path, monkeypatch, results=results, checkpoints=checkpoints)
    assert headline["sentence"] == "No task embeddings yet: of 1 multi-task run, none has an agent that can be read."
    assert "Agents whose embeddings are not here (2)" in shown


@pytest.mark.parametrize("count", [2, 3, 6])
def test_few_tasks_give_the_pictures_and_an_undecided_answer(writer, tmp_path, monkeypatch, count):
    tasks = ["walker-walk", "cup-spin", "mw-door-open", "mw-door-close", "dog-run", "walker-run"][:count]
    write_embeddings(writer.add_multi(tasks, 1, []), tasks, np.random.default_rng(0).standard_normal((count, 96)) / 20)
    headline, shown = run_cells(tmp_path, monkeypatch, results=[str(writer.folder)], tsne_seeds=[0])
    assert "Undecided, too few pairs of tasks" in headline["sentence"]
    figures = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert {"embeddings_similarity", "embeddings_components", "embeddings_claim"} <= figures
    assert ("embeddings_tsne" in figures) == (count == 6)
    assert ("No t-SNE map" in shown) == (count < 6)
    assert "There is one agent only." in shown


def test_without_learned_structure_the_page_says_that_it_is_noise(writer, tmp_path, monkeypatch):
    tasks = list(TASK_SETS["mt30"])
    for seed in (1, 2):
        rows = np.random.default_rng(seed).uniform(-0.02, 0.02, (30, 96))
        write_embeddings(writer.add_multi(tasks, seed, []), tasks, rows)
    headline, shown = run_cells(tmp_path, monkeypatch, results=[str(writer.folder)], tsne_seeds=[])
    assert "Undecided, the embeddings cannot be told from random directions" in headline["sentence"]
    assert "Agents that differ by another seed (1 pair of agents)" in shown
