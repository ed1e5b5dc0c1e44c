from html.parser import HTMLParser

import pandas as pd
import pytest

from analysis.index import RUNS_LISTED, RUNS_SHOWN, Chapter, index_body, read_headline, summary
from analysis.page import files_list, image, images, page, with_navigation
from analysis.progress import Progress
from analysis.report_folder import Part
from analysis.study import load_study


class Balanced(HTMLParser):
    """Fails on a tag that is closed without having been opened, or left open."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_static(content):
    parser = Balanced()
    parser.feed(content)
    assert parser.open == []
    assert "<script" not in content
    assert "http" not in content


def chapter(name="scaling", state="done", figure=None, headline=None, message="", files=(), kept=False):
    part = Part(state, 3.0, "2026-01-02 03:04", message, tuple(files))
    return Chapter(name, name.capitalize(), part, headline, figure, "A rising line", 700, kept)


@pytest.fixture
def study(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 400.0)])
    writer.add("cup-catch", 1, [(0, 3.0)], state="failed", message="loss became <NaN> & stopped")
    writer.add("dog-run", 1, None)
    return load_study([writer.folder])


def test_index_shows_each_answer_with_its_figure_and_files_escaped(study, tmp_path):
    told = {"title": "Scores & bounds", "sentence": "IQM < 98.", "figure": "scaling_curve"}
    files = [
        "figures/scaling_curve.svg",
        "figures/scaling_curve.png",
        "tables/fit.tex",
        "tables/fit.csv",
    ]
    body, written = index_body(
        study, [chapter(figure="figures/scaling_curve.png", headline=told, files=files)], tmp_path
    )
    check_static(page("Report", body))
    assert '<h2><a href="scaling.html">Scores &amp; bounds</a></h2>' in body
    assert "<p>IQM &lt; 98.</p>" in body
    assert '<a href="scaling.html"><img src="figures/scaling_curve.png" alt="A rising line" width="700"></a>' in body
    assert 'scaling_curve: <a href="figures/scaling_curve.png">PNG</a> · <a href="figures/scaling_curve.svg">' in body
    assert 'fit: <a href="tables/fit.csv">CSV</a> · <a href="tables/fit.tex">LaTeX</a>' in body
    assert "loss became &lt;NaN&gt; &amp; stopped" in body
    assert "2 runs of 3 not done: 1 failed, 1 not started." in body
    assert written == ["tables/runs.csv"]
    assert pd.read_csv(tmp_path / "tables" / "runs.csv")["run"].tolist() == study.runs["run"].tolist()


def test_index_says_at_the_top_what_failed_and_why(study, tmp_path):
    failed = chapter("fit", "failed", message="fit.ipynb failed: 1 < 2", files=["fit.failed.ipynb"])
    body, _ = index_body(study, [chapter(), failed], tmp_path)
    check_static(page("Report", body))
    assert "<b>Fit is missing.</b> fit.ipynb failed: 1 &lt; 2." in body
    assert '<a href="fit.failed.ipynb">' in body
    assert body.index("Fit is missing") < body.index("The sweep has") < body.index("Scaling")
    assert "fit.html" not in body


def test_page_of_an_earlier_report_says_when_it_was_made(study, tmp_path):
    body, _ = index_body(study, [chapter(kept=True)], tmp_path)
    assert "of an earlier report, 2026-01-02 03:04" in body


def test_summary_counts_runs_and_published_curves(study, writer, published):
    assert summary(study) == ["The sweep has 3 runs (1 done, 1 failed, 1 not started) and evaluations of 2 tasks."]
    header = "step,reward,seed\n0,1,1\n"
    curves = published({"sac/dog-run.csv": header, "tdmpc2/dog-run.csv": header, "tdmpc2/cup-catch.csv": header})
    assert summary(load_study((), curves)) == ["Published curves of SAC and TD-MPC2 on 2 tasks."]
    both = summary(load_study([writer.folder], curves, "dog-run"))
    assert both == [
        "The sweep has 1 run (1 not started) and no evaluation yet. Beside them stand published curves of SAC and "
        "TD-MPC2 on 1 task. The report is restricted to 1 task of 104."
    ]


def test_long_tables_of_runs_fold_and_longer_ones_are_cut_with_a_word(writer, tmp_path):
    for seed in range(RUNS_SHOWN + 1):
        writer.add("walker-walk", seed, None)
    study = load_study([writer.folder])
    body, _ = index_body(study, [], tmp_path)
    assert f"<details><summary>All {RUNS_SHOWN + 1} runs</summary>" in body
    many = pd.concat([study.runs] * (RUNS_LISTED // len(study.runs) + 1), ignore_index=True)
    body, _ = index_body(type(study)(**{**vars(study), "runs": many}), [], tmp_path)
    check_static(page("Report", body))
    assert f"The first {RUNS_LISTED:,}, those with something to tell" in body
    assert body.count("<tr>") == RUNS_LISTED + 1
    assert len(pd.read_csv(tmp_path / "tables" / "runs.csv")) == len(many)


def test_headline_is_read_where_a_notebook_left_one(tmp_path):
    assert read_headline(tmp_path, "scaling") is None
    (tmp_path / "headlines").mkdir()
    (tmp_path / "headlines" / "scaling.json").write_text('{"title": "A", "sentence": "B", "figure": null}')
    assert read_headline(tmp_path, "scaling") == {"title": "A", "sentence": "B", "figure": None}


def test_navigation_is_filled_and_filled_anew():
    empty = page("A & B", "<p>body</p>")
    check_static(empty)
    assert "<title>A &amp; B</title>" in empty
    first = with_navigation(empty, {"index.html": "All", "a.html": r"A \1 & B"}, "a.html")
    assert r'<a href="a.html" aria-current="page">A \1 &amp; B</a>' in first
    second = with_navigation(first, {"b.html": "C"}, "a.html")
    assert second == with_navigation(empty, {"b.html": "C"}, "a.html")


def test_images_are_found_however_they_are_written():
    content = image("a.png", 'a "quoted" <line>') + "<img alt='other' width=\"3\" src='b.png'/><img src='c.png'>"
    assert images(content) == {"a.png": ('a "quoted" <line>', None), "b.png": ("other", 3), "c.png": ("", None)}


def test_files_that_differ_in_their_ending_share_a_line():
    assert files_list(["figures/b.pdf", "figures/b.png", "figures/a.xyz"]) == (
        '<ul class="files"><li>b: <a href="figures/b.png">PNG</a> · <a href="figures/b.pdf">PDF</a></li>'
        '<li>a: <a href="figures/a.xyz">xyz</a></li></ul>'
    )


def test_time_left_is_told_only_where_last_times_say_it(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("analysis.progress.time.monotonic", lambda: now[0])
    progress = Progress(["a", "b", "c"], {"a": 30.0, "b": 20.0, "c": 5.0}, jobs=2)
    progress.begin("a")
    now[0] = 110.0
    # a has 20 s to go in one lane, b and c take 25 s in the other.
    assert progress.remaining() == 25.0
    progress.end("b", Part("done", 20.0))
    # Without b: 20 s of a, 5 s of c beside it.
    assert progress.remaining() == 20.0
    now[0] = 150.0
    assert progress.remaining() is None  # a has taken longer than last time
    assert Progress(["a", "new"], {"a": 30.0}, jobs=2).remaining() is None
