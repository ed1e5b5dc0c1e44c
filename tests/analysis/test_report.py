import json
import sys

import nbformat
import pandas as pd
import pytest
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from analysis.report import NOTEBOOK, NotebookError, main, make_report

FIGURES = (
    "learning_curves", "final_scores", "training_losses", "multitask_curves", "multitask_comparison",
    "offline_training_losses",
)  # fmt: skip


def test_notebook_is_committed_without_outputs_and_with_a_parameters_cell():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1


def test_report_renders_from_end_to_end_with_the_right_numbers(writer, published, capsys):
    for seed, value in ((1, 400.0), (2, 500.0), (3, 600.0)):
        writer.add("walker-walk", seed, [(0, 30.0), (3000, value)])
    writer.add("cheetah-run", 1, [(0, 3.0), (1500, 100.0)], state="failed", message="loss became <NaN> at step 1500")
    writer.add("mw-reach", 1, [(0, 5.0, 0.0), (3000, 50.0, 0.4)], size=5)
    writer.add("dog-run", 1, None)
    reference = published({"tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n100000,920,1\n"})
    both = ["walker-walk", "mw-reach"]
    points = [(0, dict.fromkeys(both, 0.0)), (2000, {"walker-walk": 300.0, "mw-reach": 0.6})]
    writer.add_multi(both, 1, points, data="sweep-buffers")
    writer.add_multi(both, 1, None, size=5)
    assert main([str(writer.folder), "--reference", str(reference)]) == 0

    reports = writer.folder / "reports"
    page = reports / "learning_curves.html"
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    final = pd.read_csv(reports / "tables" / "final_scores.csv").set_index("task")
    final = final[final["kind"] == "single"]
    assert final.loc["walker-walk", ["seeds", "env_steps", "mean", "std", "score"]].tolist() == [3, 3000, 500, 100, 50]
    assert final.loc["walker-walk", "published_tdmpc2"] == pytest.approx(47.0)  # 20 + 900 x 3,000 / 100,000
    assert final.loc["mw-reach", ["mean", "score"]].tolist() == [0.4, 40.0]
    assert final.loc["dog-run", "seeds"] == 0
    runs = pd.read_csv(reports / "tables" / "runs.csv").set_index("run")
    assert runs.loc["dog-run-1M-seed1", "state"] == "not started"
    assert {path.name for path in (reports / "figures").iterdir()} == {
        f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")
    }
    comparison = pd.read_csv(reports / "tables" / "comparison.csv").set_index(["task", "size"])
    assert comparison.loc[("walker-walk", 1), ["score", "single_score", "difference"]].tolist() == [30.0, 50.0, -20.0]
    assert comparison.loc[("mw-reach", 1), ["score", "single_score", "difference"]].tolist() == [60.0, 40.0, 20.0]
    html = page.read_text()
    assert "8 runs: 5 done, 1 failed, 2 not started. 2 of them learn from a data set alone" in html
    assert "Multi-task agents" in html
    assert "learned offline from the data set" in html
    assert "sweep-buffers" in html
    assert "1 of 2 multi-task runs not done: 1 not started." in html
    assert "loss became &lt;NaN&gt; at step 1500" in html  # the reason is shown, and escaped
    assert "import" not in html  # no code
    assert 'href="tables/final_scores.csv"' in html
    assert not [path for path in reports.iterdir() if path.name.startswith(".making")]


def test_failing_notebook_names_the_cell_keeps_its_copy_and_the_older_report(writer, tmp_path):
    writer.add("walker-walk", 1, [(0, 30.0)])
    notebook = nbformat.v4.new_notebook()
    parameters = "sweep_folder = reference_folder = output_folder = None"
    notebook.cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("# Draw\nraise ValueError('too few seeds')"),
    ]
    path = tmp_path / "broken.ipynb"
    nbformat.write(notebook, path)
    output = tmp_path / "out"
    output.mkdir()
    (output / "broken.html").write_text("older report")

    with pytest.raises(NotebookError, match=r"broken\.ipynb failed in cell 3 \('# Draw'\): ValueError: too few seeds"):
        make_report(writer.folder, output=output, notebook=path)
    assert (output / "broken.html").read_text() == "older report"
    assert "too few seeds" in (output / "broken.failed.ipynb").read_text()
    assert {item.name for item in output.iterdir()} == {"broken.html", "broken.failed.ipynb"}


def test_notebook_runs_without_any_registered_kernel(writer, tmp_path, monkeypatch):
    def no_kernel(_self: object, name: str) -> None:
        raise NoSuchKernel(name)

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", no_kernel)
    writer.add("walker-walk", 1, [(0, 30.0)])
    notebook = nbformat.v4.new_notebook()
    parameters = "sweep_folder = reference_folder = output_folder = None"
    notebook.cells = [
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("import sys, analysis\nprint(sys.executable)"),
    ]
    path = tmp_path / "tiny.ipynb"
    nbformat.write(notebook, path)
    assert sys.executable in make_report(writer.folder, notebook=path).read_text()


def test_failing_notebook_is_exit_code_1(writer, monkeypatch, capsys):
    def fail(*_args: object) -> None:
        raise NotebookError("learning_curves.ipynb failed in cell 4")

    writer.add("walker-walk", 1, [(0, 30.0)])
    monkeypatch.setattr("analysis.report._execute", fail)
    assert main([str(writer.folder)]) == 1
    assert "failed in cell 4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["smal"], "did you mean"),
        (["empty"], "no runs in it"),
        (["small", "--reference", "nowhere"], "no reference folder nowhere"),
        (["small", "--output", "small/plan.json"], "cannot be written"),
    ],
)
def test_bad_input_is_exit_code_2_with_one_message(writer, monkeypatch, capsys, arguments, message):
    writer.add("walker-walk", 1, [(0, 30.0)])
    assert json.loads((writer.folder / "plan.json").read_text())["runs"]
    monkeypatch.chdir(writer.folder.parent)
    (writer.folder.parent / "empty").mkdir()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_sweep_of_which_nothing_can_be_read_still_gets_a_report(writer):
    (writer.folder / "runs" / "walker-walk-1M-seed1").mkdir(parents=True)
    html = make_report(writer.folder).read_text()
    assert "No evaluation has been recorded yet" in html
    assert "Multi-task" not in html  # there is none
    assert "status.json: missing; config.yaml: missing; eval.csv: missing" in html
    assert "Warning" not in html
