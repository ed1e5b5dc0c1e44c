from analysis import sweep_text
from analysis.aggregate import text as presentation
from analysis.reference import load_reference
from analysis.results import load_sweep
from analysis.scores import final_scores, primary
from analysis.words import html_table

NOW = 1_700_000_000.0


def loaded(writer):
    sweep = load_sweep(writer.folder, now=NOW)
    return sweep, final_scores(sweep.runs, sweep.table)


def summary(writer):
    sweep, final = loaded(writer)
    return presentation.summary(sweep.runs, final)


def test_summary_tells_what_was_run_and_how_it_stands_against_a_random_policy(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 200.0)])
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 400.0)], size=5)
    writer.add("dog-run", 1, [(0, 4.0), (3000, 900.0)])
    writer.add("dog-run", 1, [(0, 4.0), (1000, 10.0)], size=5, state="failed", message="NaN")
    assert summary(writer) == (
        "4 runs: 3 done, 1 failed. They cover 2 tasks, model size 1M, 5M and 1 seed for each. Evaluations reach up to "
        "3k environment steps. 4 of 4 mean returns are above the random policy's. The largest gain is on dog-run with "
        "TD-MPC2 1M: 900 against 4 at random, after 3k steps."
    )


def test_summary_of_a_sweep_without_evaluations_says_so(writer):
    writer.add("walker-walk", 1, None)
    assert summary(writer).endswith("No evaluation has been recorded yet.")


def test_summary_counts_agents_that_learned_offline(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 200.0)])
    writer.add_multi(("walker-walk", "dog-run"), 1, [(2000, {"walker-walk": 300.0, "dog-run": 100.0})])
    assert summary(writer).startswith(
        "2 runs: 2 done. 1 of them learns from a data set alone. The runs that act cover 1 task, model size 1M"
    )


def test_caption_names_what_the_shading_is(writer):
    def caption():
        sweep, final = loaded(writer)
        return presentation.curve_caption(primary(sweep.table), sweep.table.iloc[:0], final)

    writer.add("walker-walk", 1, [(0, 30.0)])
    assert "One seed a curve" in caption()
    writer.add("walker-walk", 2, [(0, 30.0)])
    assert "range of the two seeds" in caption()
    assert "95%" not in caption()
    writer.add("walker-walk", 3, [(0, 30.0)])
    assert "95% interval of the mean over seeds (Student's t)" in caption()


def test_caption_warns_where_published_values_are_mere_interpolation(writer, published):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 200.0)])
    reference = load_reference(published({"tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n100000,900,1\n"}))
    _, final = loaded(writer)
    assert "end before the second published point (100k steps)" in presentation.score_caption(final, reference.table)


def test_runs_with_something_to_tell_come_first(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 200.0)])
    writer.add("walker-walk", 2, [(0, 30.0)], state="failed", message="disk full")
    writer.add("walker-walk", 3, None)
    sweep, _ = loaded(writer)
    shown = sweep_text.runs_table(sweep.runs)
    assert shown[["state", "environment steps", "remarks"]].to_numpy().tolist() == [
        ["failed", "0 of 3,000", "disk full"],
        ["not started", "0 of 3,000", ""],
        ["done", "3,000 of 3,000", ""],
    ]
    assert sweep_text.runs_caption(sweep) == "2 runs of 3 not done: 1 failed, 1 not started."


def test_score_table_is_for_people(writer):
    writer.add("mw-reach", 1, [(0, 5.0, 0.0), (3000, 50.0, 0.45)], size=5)
    _, final = loaded(writer)
    assert presentation.score_table(final).to_dict("records") == [
        {
            "task": "mw-reach",
            "model": "TD-MPC2 5M",
            "metric": "success rate",
            "seeds": "1 of 1",
            "environment steps": "3,000",
            "mean": "0.45",
            "normalised score": "45.0",
        }
    ]


def test_html_tables_escape_what_runs_say(writer):
    writer.add("walker-walk", 1, [(0, 30.0)], state="failed", message="<script>alert(1)</script>")
    sweep, _ = loaded(writer)
    table = html_table(sweep_text.runs_table(sweep.runs))
    assert "<script>" not in table
    assert 'class="text state-failed"' in table


def test_summary_of_a_single_run(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 200.0)])
    assert summary(writer) == (
        "1 run: 1 done. It covers 1 task, model size 1M and 1 seed for each. Evaluations reach up to 3k environment "
        "steps. The return on walker-walk is 200 against 32 at random, after 3k steps."
    )
