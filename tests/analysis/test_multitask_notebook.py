import json
from pathlib import Path

import pandas as pd
import papermill
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "multitask_vs_single.ipynb"
MULTI = ["walker-walk", "mw-reach", "dog-run"]


def test_the_notebook_runs_and_leaves_the_numbers_and_the_answer(writer, tmp_path):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 500.0)])
    writer.add("mw-reach", 1, [(0, 5.0, 0.0), (3000, 50.0, 0.8)])
    writer.add("dog-run", 1, [(0, 1.0), (1000, 90.0)], state="failed", message="NaN")
    run = writer.add_multi(MULTI, 1, [(2000, {"walker-walk": 300.0, "mw-reach": 0.9, "dog-run": 10.0})])
    rows = ["task,domain,embodiment,objective,e0,e1"]
    rows += [f"{task},x,y,z,{x},{y}" for task, x, y in zip(MULTI, (1, 0, 1), (0, 1, 1), strict=True)]
    (run / "embeddings.csv").write_text("\n".join(rows) + "\n")
    output = tmp_path / "report"
    papermill.execute_notebook(
        NOTEBOOK,
        tmp_path / "executed.ipynb",
        parameters={"results": [str(writer.folder)], "output": str(output), "resamples": 50},
        kernel_name="python3",
        cwd=NOTEBOOK.parents[1],
        progress_bar=False,
    )
    table = pd.read_csv(output / "tables" / "multitask_comparison.csv").set_index("task")
    assert table["difference"].to_dict() == pytest.approx({"walker-walk": -20.0, "mw-reach": 10.0, "dog-run": -8.0})
    # cosines of (1, 0), (0, 1) and (1, 1): 0, 0.7071, 0.7071; the mean over the two others
    assert table.loc["walker-walk", "nearness"] == pytest.approx(0.5**0.5 / 2)
    assert table.loc["dog-run", "nearness"] == pytest.approx(0.5**0.5)
    means = pd.read_csv(output / "tables" / "multitask_means.csv")
    assert means["difference"].tolist() == pytest.approx([-6.0])
    assert means["verdict"].tolist() == ["undecided"]
    headline = json.loads((output / "headlines" / "multitask_vs_single.json").read_text())
    assert "is undecided: mean difference -6.0" in headline["sentence"]
    assert (output / "figures" / f"{headline['figure']}.svg").is_file()
