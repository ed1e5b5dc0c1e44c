"""The notebook of aggregate scores runs to its end, whatever there is to report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from analysis import display

PROJECT = Path(__file__).resolve().parents[2]
NOTEBOOK = PROJECT / "notebooks" / "aggregate_scores.ipynb"
CURVE = "step,reward,seed\n0,20,1\n0,20,2\n100000,{0},1\n100000,{1},2\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the notebook's cells here, without a kernel; returns what it shows, as text, figures by name in brackets."""

    def execute(**parameters):
        shown = []
        monkeypatch.setattr(display, "_show", shown.append)
        monkeypatch.setattr(display, "figure", lambda _, __, name, caption, ___: shown.append(f"[{name}] {caption}"))
        space = {}
        for cell in nbformat.read(NOTEBOOK, 4).cells:
            if cell.cell_type != "code":
                continue
            exec(compile(cell.source, cell.source.splitlines()[0], "exec"), space)
            if "parameters" in cell.metadata.get("tags", []):
                space |= {"output": str(tmp_path / "reports"), "resamples": 30, **parameters}
        return "\n".join(shown)

    return execute


def tables(tmp_path):
    return tmp_path / "reports" / "tables"


def test_papermill_run_leaves_the_numbers(tmp_path, writer, published):
    for seed, value in ((1, 300.0), (2, 500.0)):
        writer.add("walker-walk", seed, [(0, 30.0), (100_000, value)], total=100_000)
        writer.add("mw-reach", seed, [(0, 5.0, 0.0), (100_000, 50.0, 0.1 * seed)], total=100_000)
    writer.add("walker-walk", 3, [(0, 30.0)], state="failed", message="NaN", total=100_000)
    folder = published({"tdmpc2/walker-walk.csv": CURVE.format(700, 900)})
    output = tmp_path / "reports"
    parameters = {"results": [str(writer.folder)], "reference": str(folder), "output": str(output), "resamples": 50}
    command = [sys.executable, "-m", "papermill", str(NOTEBOOK), str(tmp_path / "executed.ipynb")]
    subprocess.run(
        [*command, "-k", "python3", "--cwd", str(PROJECT), "-y", json.dumps(parameters)],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )

    rows = pd.read_csv(output / "tables" / "aggregate_scores.csv")
    assert rows["budget"].unique().tolist() == [100_000]
    overall = rows[(rows["scope"] == "overall") & (rows["kind"] == "single")].iloc[0]
    assert (overall["tasks"], overall["runs"], overall["runs_short"]) == (2, 4, 1)
    assert overall["mean"] == pytest.approx((40 + 15) / 2)
    assert overall["iqm"] == pytest.approx((20 + 30) / 2)
    theirs = rows[(rows["scope"] == "dmcontrol") & (rows["kind"] == "published")].iloc[0]
    assert theirs["mean"] == pytest.approx(80.0)
    last = pd.read_csv(output / "tables" / "aggregate_scores_last.csv")
    walker = last[(last["scope"] == "dmcontrol") & (last["kind"] == "single")].iloc[0]
    assert walker["mean"] == pytest.approx((30 + 50 + 3) / 3)  # the failed run's only evaluation counts there
    pairs = pd.read_csv(output / "tables" / "aggregate_improvement.csv")
    assert pairs.loc[pairs["budget"] == 100_000, "probability"].unique().tolist() == [0.0]
    for name in ("intervals", "profiles", "improvement", "suite_curves", "learning_curves", "final_scores"):
        for ending in ("png", "svg", "pdf"):
            assert (output / "figures" / f"aggregate_{name}.{ending}").stat().st_size > 1000
    for name in ("run_scores", "curves", "evaluations", "efficiency", "task_scores", "against_published"):
        assert len(pd.read_csv(output / "tables" / f"aggregate_{name}.csv"))
    headline = json.loads((output / "headlines" / "aggregate_scores.json").read_text())
    assert headline["figure"] == "aggregate_intervals"
    assert headline["sentence"].startswith("After 100k environment steps, TD-MPC2 1M reaches IQM 25.0 [")
    assert "Not ranked, with too few of these tasks: TD-MPC2 (published) (1)." in headline["sentence"]


def test_a_sweep_without_evaluations_says_so(run, writer, tmp_path):
    writer.add("walker-walk", 1, None)
    page = run(results=[str(writer.folder)])
    assert "No evaluation has been recorded yet" in page
    assert "[aggregate_intervals" not in page
    headline = json.loads((tmp_path / "reports" / "headlines" / "aggregate_scores.json").read_text())
    assert headline["figure"] is None


def test_one_run_alone_has_no_comparison_and_no_interval(run, writer, tmp_path):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 200.0)])
    page = run(results=[str(writer.folder)])
    assert "There is no other series to compare it with." in page
    assert "One seed gives no interval." in page
    assert "there are no two yet" in page
    assert pd.read_csv(tables(tmp_path) / "aggregate_scores.csv")["mean"].tolist() == [20.0]


def test_published_curves_alone(run, published, tmp_path):
    files = {
        "tdmpc2/walker-walk.csv": CURVE.format(900, 920),
        "sac/walker-walk.csv": CURVE.format(100, 120),
        "tdmpc2/dog-run.csv": CURVE.format(500, 500),
        "sac/dog-run.csv": CURVE.format(20, 40),
    }
    page = run(results=[], reference=str(published(files)))
    assert "so the two are told apart" in page
    rows = pd.read_csv(tables(tmp_path) / "aggregate_scores.csv").set_index("algorithm")
    assert rows["mean"].to_dict() == pytest.approx({"tdmpc2": (91 + 50) / 2, "sac": (11 + 3) / 2})
    assert "[aggregate_task_scores]" in page


def test_only_agents_that_learned_offline(run, writer, tmp_path):
    writer.add_multi(("walker-walk", "dog-run"), 1, [(2000, {"walker-walk": 300.0, "dog-run": 100.0})])
    page = run(results=[str(writer.folder)])
    assert "Curves over environment steps need an evaluation of an agent that acts" in page
    assert pd.read_csv(tables(tmp_path) / "aggregate_scores.csv")["mean"].tolist() == [20.0]


def test_a_budget_that_no_run_reaches_is_told(run, writer):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 200.0)])
    page = run(results=[str(writer.folder)], budgets=[50_000])
    assert "No run has a score at 50k environment steps." in page


def test_sweep_without_evaluations_beside_published_curves(run, writer, published):
    writer.add("walker-walk", 1, None)
    page = run(results=[str(writer.folder)], reference=str(published({"sac/walker-walk.csv": CURVE.format(100, 120)})))
    assert "1 run: 1 not started." in page
    assert "SAC (published) reaches IQM 11.0" in page
