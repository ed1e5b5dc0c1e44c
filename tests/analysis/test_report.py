import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

from analysis import execution, report
from analysis.report import ONE_RUN, Inputs, default_jobs, main, make_report
from analysis.report_folder import Part, Record, publish, read_record, staging_folder
from tdmpc2.errors import UserError

PARAMETERS = """# Parameters
results = ["results/quickstart"]
reference = None
tasks = "all"
seeds = None
output = "results/quickstart/reports"
"""
RUN_PARAMETER = "run = None\n"
# Writes what `display` writes, without the seconds that importing the analysis takes.
DRAW = """# Draw
import base64, json, sys
from html.parser import HTMLParser
from pathlib import Path
from IPython.display import HTML, Image, display
folder = Path(output)
for name in ("figures", "tables", "headlines"):
    (folder / name).mkdir(exist_ok=True)
picture = base64.b64decode({png!r})
(folder / "figures" / "{name}_curve.png").write_bytes(picture)
(folder / "figures" / "{name}_curve.svg").write_text("<svg/>")
(folder / "tables" / "{name}_scores.csv").write_text("score\\n97.6\\n")
told = dict(title="About {name}", sentence="The answer is < 98.", figure="{name}_curve")
(folder / "headlines" / "{name}.json").write_text(json.dumps(told))
display(Image(picture, width=700, alt='A "rising" line'))
display(HTML(f"<p>seen: {{sys.executable}} {{results}} {{reference}} {{tasks}} {{seeds}} {{output}}</p>"))
"""
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="  # one pixel
FAIL = "# Compare\n\nraise ValueError('too few seeds\\nand more')"
DIE = "# Fit\nprint('still here', flush=True)\nimport os, time\ntime.sleep(0.5)\nos._exit(9)"


@pytest.fixture
def template(tmp_path, monkeypatch):
    """Writes a notebook of these code cells, behind a title and the parameters; the report then has those written."""
    written = {}
    monkeypatch.setattr(report, "NOTEBOOKS", ())

    def write(name, *cells):
        notebook = nbformat.v4.new_notebook()
        parameters = nbformat.v4.new_code_cell(
            PARAMETERS + (RUN_PARAMETER if name == ONE_RUN else ""), metadata={"tags": ["parameters"]}
        )
        sources = cells or (DRAW.format(name=name, png=PNG),)
        code = [nbformat.v4.new_code_cell(source) for source in sources]
        notebook.cells = [nbformat.v4.new_markdown_cell(f"# {name}"), parameters, *code]
        path = tmp_path / "templates" / f"{name}.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        written[name] = path
        monkeypatch.setattr(report, "NOTEBOOKS", tuple(written.values()))
        return path

    return write


@pytest.fixture
def sweep(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 400.0)])
    return writer.folder


@pytest.fixture
def curves(published):
    return published({"tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n100000,920,1\n"})


@pytest.fixture
def no_kernel(monkeypatch):
    """Fails the test where a kernel would be started."""

    def start(*_args: object) -> None:
        raise AssertionError("a kernel was started")

    monkeypatch.setattr("analysis.execution.Kernels.execute", start)


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def files_of(name):
    endings = (f"{name}.html", f"{name}.ipynb", f"headlines/{name}.json", f"tables/{name}_scores.csv")
    return {*endings, f"figures/{name}_curve.png", f"figures/{name}_curve.svg"}


def test_report_has_every_notebooks_page_and_an_index_that_links_them(sweep, curves, template, capsys, monkeypatch):
    def no_spec(_self: object, name: str) -> None:
        raise NoSuchKernel(name)

    monkeypatch.setattr(KernelSpecManager, "get_kernel_spec", no_spec)  # whatever kernels are registered, or none
    monkeypatch.chdir(sweep.parent)
    template("aggregate_scores")
    template("scaling")
    assert main(["small", "--reference", "../published", "--tasks", "walker-walk", "cup-catch", "--seeds", "1"]) == 0

    reports = sweep / "reports"
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "small/reports/index.html"
    assert "scaling: ok in" in captured.err
    assert "report made in" in captured.err
    own = {"index.html", "report.json", "tables/runs.csv"}
    assert names(reports) == files_of("aggregate_scores") | files_of("scaling") | own
    page = (reports / "scaling.html").read_text()
    # The kernel is this interpreter's, its parameters are absolute, and nothing tells of the folder beside.
    given = f"{sys.executable} ['{sweep}'] {curves} walker-walk,cup-catch [1] {reports}"
    assert f"seen: {given}<" in page
    assert re.search(r"""<img alt='A "rising" line' src="figures/scaling_curve.png" width="700"/?>""", page)
    assert PNG not in page  # linked, not embedded
    assert "sentence=" not in page  # no code
    assert '<a href="index.html">Report: small</a>' in page
    assert '<a href="aggregate_scores.html">Aggregate scores</a>' in page
    assert '<a href="scaling.html" aria-current="page">Scaling</a>' in page
    index = (reports / "index.html").read_text()
    assert index.index("About aggregate_scores") < index.index("About scaling")
    assert '<img src="figures/scaling_curve.png" alt="A &quot;rising&quot; line" width="700">' in index
    assert ".making" not in "".join(path.read_text() for path in reports.glob("*.ipynb"))


def test_failing_notebooks_name_their_cells_and_the_others_go_on(sweep, template, capsys):
    template("aggregate_scores", FAIL)
    template("scaling")
    template("task_embeddings", "first = 1", DIE)
    assert main([str(sweep)]) == 1
    captured = capsys.readouterr()
    failure = "aggregate_scores.ipynb failed in cell 3 ('# Compare'): ValueError: too few seeds"
    death = "task_embeddings.ipynb: the kernel died in cell 4 ('# Fit'); perhaps it ran out of memory"
    assert failure in captured.err
    assert death in captured.err
    assert captured.out == f"{sweep / 'reports' / 'index.html'}\n"
    reports = sweep / "reports"
    copies = {"aggregate_scores.failed.ipynb", "task_embeddings.failed.ipynb"}
    assert names(reports) == files_of("scaling") | copies | {"index.html", "report.json", "tables/runs.csv"}
    assert "too few seeds" in (reports / "aggregate_scores.failed.ipynb").read_text()
    dead = nbformat.read(reports / "task_embeddings.failed.ipynb", as_version=4)
    assert death in dead.cells[0].source
    assert dead.cells[-1].outputs[0].text == "still here\n"
    index = (reports / "index.html").read_text()
    assert "failed in cell 3 (&#x27;# Compare&#x27;): ValueError: too few seeds" in index
    assert 'href="task_embeddings.failed.ipynb"' in index
    assert index.index("is missing") < index.index("The sweep has")  # at the top
    assert "task_embeddings.html" not in index


def test_older_report_stays_where_no_notebook_gets_to_its_end(sweep, template, capsys):
    reports = sweep / "reports"
    template("scaling")
    assert main([str(sweep)]) == 0
    before = {name: (reports / name).read_bytes() for name in names(reports) - {"report.json"}}
    template("scaling", FAIL)
    assert main([str(sweep)]) == 1
    assert "the older report stays" in capsys.readouterr().err
    after = {name: (reports / name).read_bytes() for name in names(reports) - {"report.json"}}
    assert after.pop("scaling.failed.ipynb")
    assert after == before
    template("scaling")
    assert main([str(sweep)]) == 0
    assert names(reports) - {"report.json"} == before.keys()  # the failed copy went


def test_only_some_notebooks_leave_the_pages_of_the_others(sweep, curves, template, capsys):
    reports = sweep / "reports"
    template("aggregate_scores")
    template("scaling")
    assert main([str(sweep), "--only", "aggregate_scores"]) == 0
    assert files_of("aggregate_scores") < names(reports)
    assert "scaling" not in (reports / "aggregate_scores.html").read_text()
    assert main([str(sweep), "--only", "scaling"]) == 0
    assert files_of("aggregate_scores") | files_of("scaling") < names(reports)
    assert 'href="scaling.html"' in (reports / "aggregate_scores.html").read_text()
    index = (reports / "index.html").read_text()
    assert "About aggregate_scores" in index
    assert index.count("of an earlier report") == 1
    assert main([str(sweep), "--reference", str(curves), "--only", "scaling"]) == 0
    assert "made from other inputs and go: aggregate_scores" in capsys.readouterr().err
    assert not files_of("aggregate_scores") & names(reports)


def test_report_on_published_curves_alone_leaves_the_single_run_out(curves, template, tmp_path, monkeypatch):
    template("scaling")
    template(ONE_RUN)
    monkeypatch.chdir(tmp_path)
    assert main(["--reference", "published"]) == 0
    reports = tmp_path / "results" / "published" / "reports"
    assert names(reports) == files_of("scaling") | {"index.html", "report.json"}
    index = (reports / "index.html").read_text()
    assert "Left out: no runs of ours." in index
    assert "Published curves of TD-MPC2 on 1 task." in index
    assert "run_report.html" not in index


def test_the_run_asked_for_reaches_its_notebook_alone(sweep, template):
    template("scaling")
    template(ONE_RUN, "from IPython.display import HTML, display\ndisplay(HTML(f'<p>run: {run}</p>'))")
    assert main([str(sweep), "--run", "walker-walk-1M-seed1"]) == 0
    assert "run: walker-walk-1M-seed1" in (sweep / "reports" / "run_report.html").read_text()
    assert "run = " not in (sweep / "reports" / "scaling.ipynb").read_text()


def test_interrupt_stops_the_kernels_and_leaves_the_older_report(sweep, template, tmp_path):
    slow = template("scaling", f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))", "\n")
    notebook = nbformat.read(slow, as_version=4)
    notebook.cells[-1].source = "time.sleep(600)"
    nbformat.write(notebook, slow)
    reports = sweep / "reports"
    reports.mkdir()
    (reports / "index.html").write_text("older")
    code = (
        "import signal, sys; from pathlib import Path; from analysis import report\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # where tests run in the background it is ignored
        f"report.NOTEBOOKS = (Path({str(slow)!r}),)\nsys.exit(report.main([{str(sweep)!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    kernel = _wait_for(tmp_path / "pid")
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in messages
    assert "Traceback" not in messages
    assert names(reports) == {"index.html"}
    assert (reports / "index.html").read_text() == "older"
    assert not Path(f"/proc/{kernel}").exists() or "Z" in Path(f"/proc/{kernel}/stat").read_text()


def _wait_for(path: Path) -> int:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.1)
    raise AssertionError("the kernel never began")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "neither a sweep nor published curves"),
        (["smal"], "did you mean"),
        (["empty"], "no runs in it"),
        (["small", "--reference", "nowhere"], "no reference folder nowhere"),
        (["small", "--output", "small/plan.json"], "cannot be written"),
        (["small", "--only", "scalling"], "only: unknown notebook 'scalling'; did you mean 'scaling'"),
        (["small", "--run", "walker-walk-1M-seed2"], "did you mean 'walker-walk-1M-seed1'"),
        (["small", "--run", "walker-walk-1M-seed1", "--only", "scaling"], "run_report is not among the notebooks"),
        (["--reference", "../published", "--only", "run_report"], "no runs of ours"),
        (["small", "--tasks", "walker-wlk"], "walker-walk"),
        (["small", "--seeds", "7"], "nothing that was run"),
        (["small", "--jobs", "0"], "jobs: 0"),
    ],
)
@pytest.mark.usefixtures("no_kernel", "curves")
def test_bad_input_is_exit_code_2_with_one_message_before_any_kernel_starts(
    sweep, template, monkeypatch, capsys, arguments, message
):
    template("scaling")
    template(ONE_RUN)
    monkeypatch.chdir(sweep.parent)
    (sweep.parent / "empty").mkdir()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_missing_template_is_bad_input(sweep, tmp_path):
    with pytest.raises(UserError, match="from a checkout of the project"):
        make_report(Inputs((sweep,)), notebooks=[tmp_path / "scaling.ipynb"])


def test_default_output_is_named_after_the_sweeps():
    assert Inputs((Path("results/a"),)).default_output() == Path("results/a/reports")
    assert Inputs((Path("results/a"), Path("elsewhere/b"))).default_output() == Path("results/a+b/reports")
    assert Inputs((), Path("curves")).default_output() == Path("results/published/reports")


def test_notebooks_at_once_are_bounded_by_cores_and_memory(monkeypatch):
    monkeypatch.setattr(report, "available_cores", lambda: 16)
    assert default_jobs(5) == 5
    assert default_jobs(2) == 2
    monkeypatch.setattr(report.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 3 * 2**30}))
    assert default_jobs(5) == 3
    monkeypatch.setattr(report, "available_cores", lambda: 2)
    assert default_jobs(5) == 2


def test_new_report_removes_the_older_ones_files_and_no_others(tmp_path):
    folder, outside = tmp_path / "reports", tmp_path / "outside.txt"
    outside.write_text("mine")
    (folder / "figures").mkdir(parents=True)
    (folder / "figures" / "mine.png").write_text("mine")
    first = Record({"tasks": "all"}, {"scaling": Part("done", 3.0, "now", "", ("old/stale.png", "scaling.html"))})
    with staging_folder(folder) as staging:
        for name in ("old/stale.png", "scaling.html", "index.html"):
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text("first")
        publish(staging, folder, Record(first.inputs, first.parts, ("index.html", "../outside.txt")), Record())
    older = read_record(folder)
    assert older.parts["scaling"].seconds == 3.0
    second = Record({"tasks": "all"}, {"scaling": Part("done", 2.0, "now", "", ("scaling.html",))}, ("index.html",))
    with staging_folder(folder) as staging:
        (staging / "scaling.html").write_text("second")
        publish(staging, folder, second, older)
    assert names(folder) == {"figures/mine.png", "scaling.html", "index.html", "report.json"}
    assert not (folder / "old").exists()
    assert (folder / "scaling.html").read_text() == "second"
    assert outside.read_text() == "mine"  # a record cannot lead out of the folder


def test_record_that_cannot_be_read_counts_as_none(tmp_path):
    for content in ("", "[]", '{"parts": {"a": 1}}', json.dumps({"parts": {}, "inputs": {}})):
        (tmp_path / "report.json").write_text(content)
        assert read_record(tmp_path) == Record()


def test_two_reports_cannot_be_made_in_one_folder_at_once_and_leftovers_go(tmp_path):
    (tmp_path / ".making-killed").mkdir()
    with staging_folder(tmp_path) as staging:
        assert os.listdir(tmp_path) == [staging.name]
        with pytest.raises(UserError, match="another report is being made"), staging_folder(tmp_path):
            pass
    assert os.listdir(tmp_path) == []


class Links(HTMLParser):
    """Everything a page refers to."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for key, value in attrs if key in ("href", "src") and value]


def test_the_projects_notebooks_make_a_whole_report_of_a_small_sweep(writer, published, capsys):
    for seed, value in ((1, 400.0), (2, 500.0), (3, 600.0)):
        writer.add("walker-walk", seed, [(0, 30.0), (1500, 200.0), (3000, value)])
        writer.add("cup-catch", seed, [(0, 0.0), (3000, 900.0)])
    writer.add("cheetah-run", 1, [(0, 3.0), (1500, 100.0)], state="failed", message="loss became <NaN> at step 1500")
    writer.add("dog-run", 1, None)
    both = ["walker-walk", "cup-catch"]
    for seed in (1, 2):
        points = [(0, dict.fromkeys(both, 0.0)), (2000, {"walker-walk": 300.0, "cup-catch": 950.0})]
        writer.add_multi(both, seed, points, data="sweep-buffers")
    header = "step,reward,seed\n"
    curves = {
        f"{algorithm}/{task}.csv": header + "".join(f"0,20,{seed}\n100000,{800 + seed},{seed}\n" for seed in (1, 2, 3))
        for algorithm in ("sac", "tdmpc2")
        for task in ("walker-walk", "cup-catch", "cheetah-run")
    }
    made = main([str(writer.folder), "--reference", str(published(curves))])
    reports = writer.folder / "reports"
    assert made == 0, capsys.readouterr().err
    record = read_record(reports)
    assert list(record.parts) == list(report.TITLES)
    for name in record.parts:
        told = json.loads((reports / "headlines" / f"{name}.json").read_text())
        assert told["title"]
        assert told["sentence"]
        assert "nan" not in told["sentence"].lower().split()
    index = (reports / "index.html").read_text()
    assert index.count('<section class="card">') == 5
    assert "loss became &lt;NaN&gt; at step 1500" in index
    files = names(reports)
    for folder, endings in (("figures", {".png", ".svg", ".pdf"}), ("tables", {".tex"})):
        for stem in {Path(file).stem for file in files if file.startswith(f"{folder}/")}:
            saved = {Path(file).suffix for file in files if file.startswith(f"{folder}/") and Path(file).stem == stem}
            assert endings <= saved or saved == {".csv"}, stem
    for page in reports.glob("*.html"):
        content = page.read_text()
        parser = Links()
        parser.feed(content)
        assert [link for link in parser.found if not (reports / link.partition("#")[0]).is_file()] == [], page
        assert "load_study(" not in content
        assert "Warning" not in content


@pytest.mark.parametrize("path", report.NOTEBOOKS, ids=lambda path: path.stem)
def test_templates_have_the_common_parameters_and_no_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert [cell.metadata.get("tags") for cell in code].count(["parameters"]) == 1
    given: dict[str, object] = {}
    exec(code[0].source, given)
    common = {"tasks": "all", "seeds": None, "reference": None, "results": ["results/quickstart"]}
    assert given | common | {"output": "results/quickstart/reports"} == given
    assert ("run" in given) == (path.stem == ONE_RUN)


def test_a_kernel_that_does_not_start_is_tried_again(sweep, template, monkeypatch):
    template("scaling")
    starts = []

    def first_ones_end(kernels, *arguments):
        starts.append(arguments)
        if len(starts) < 3:
            raise execution.KernelNotStartedError("Address already in use")
        return once(kernels, *arguments)

    once = execution.Kernels._execute
    monkeypatch.setattr(execution.Kernels, "_execute", first_ones_end)
    assert main([str(sweep)]) == 0
    assert len(starts) == 3
    monkeypatch.setattr(execution, "START_ATTEMPTS", 2)
    starts.clear()
    assert main([str(sweep)]) == 1
