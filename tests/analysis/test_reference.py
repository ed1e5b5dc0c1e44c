import pytest

from analysis.reference import coverage, load_reference
from tdmpc2.errors import UserError


def test_published_files_become_a_tidy_table(published):
    folder = published(
        {
            "tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n100000,900,1\n",
            "sac/myo-hand-pose.csv": "step,success,seed\n0,0.0,2\n100000,0.4,2",  # no newline at the end
        }
    )
    reference = load_reference(folder)
    columns = ["task", "algorithm", "kind", "seed", "env_steps", "metric", "value", "score"]
    assert reference.table[columns].to_numpy().tolist() == [
        ["myo-pose", "sac", "published", 2, 0, "success", 0.0, 0.0],
        ["myo-pose", "sac", "published", 2, 100000, "success", 0.4, 40.0],
        ["walker-walk", "tdmpc2", "published", 1, 0, "return", 20.0, 2.0],
        ["walker-walk", "tdmpc2", "published", 1, 100000, "return", 900.0, 90.0],
    ]
    assert reference.table["size"].isna().all()
    assert reference.problems == ("sac: 1 of 2 tasks", "tdmpc2: 1 of 2 tasks")


def test_repeated_seeds_and_unknown_files_are_reported(published):
    folder = published(
        {
            "tdmpc/dog-run.csv": "step,reward,seed\n0,10,1\n0,30,1\n100000,50,1\n",
            "tdmpc/dog-fly.csv": "step,reward,seed\n0,10,1\n",
            "tdmpc/dog-walk.csv": "step,seed\n0,1\n",
            "tdmpc/dog-trot.csv": "step,reward\n0,1\n",
        }
    )
    reference = load_reference(folder)
    assert reference.table["value"].tolist() == [20.0, 50.0]
    assert reference.problems == (
        "tdmpc/dog-fly: unknown task, left out",
        "tdmpc/dog-run: seed 1 recorded more than once at step 0, averaged",
        "tdmpc/dog-trot: no column seed",
        "tdmpc/dog-walk: no reward or success in it",
    )


def curve(steps, seeds=(1, 2, 3), column="success"):
    """A published file; `steps` for all seeds, or by seed."""
    lines = [f"step,{column},seed"]
    for seed in seeds:
        lines += [f"{step},0.5,{seed}" for step in (steps[seed] if isinstance(steps, dict) else steps)]
    return "\n".join(lines) + "\n"


WHOLE = range(0, 1_000_001, 100_000)


def test_seeds_recorded_twice_are_told_in_one_line_a_file(published):
    rows = [(0, 10, 1), (0, 30, 1), (100000, 50, 1), (100000, 70, 1), (0, 6, 2), (100000, 8, 2), (100000, 8, 2)]
    both = "step,reward,seed\n" + "".join(f"{step},{value},{seed}\n" for step, value, seed in rows)
    equal = "step,reward,seed\n0,6,2\n100000,8,2\n100000,8,2\n0,7,3\n100000,9,3\n100000,9,3\n"
    reference = load_reference(published({"tdmpc/dog-run.csv": both, "tdmpc/dog-walk.csv": equal}))
    assert reference.table.loc[reference.table["task"] == "dog-run", "value"].tolist() == [20.0, 60.0, 6.0, 8.0]
    assert reference.problems == (
        "tdmpc/dog-run: seeds 1 and 2 recorded more than once at 2 steps, 0 to 100,000, averaged",
        "tdmpc/dog-walk: seeds 2 and 3 recorded more than once at step 100,000, with equal values",
    )


def test_seeds_that_end_much_earlier_than_the_tasks_others_are_named(published):
    ends = {1: WHOLE, 2: WHOLE[:5], 3: WHOLE[:2]}
    begins = {1: WHOLE, 2: WHOLE, 3: WHOLE[2:]}
    reference = load_reference(published({"sac/mw-reach.csv": curve(ends), "sac/mw-push.csv": curve(begins)}))
    assert reference.problems == (
        "sac/mw-push: begins late: seed 3 at 200,000 of 1,000,000 steps",
        "sac/mw-reach: ends early: seed 2 at 400,000, seed 3 at 100,000 of 1,000,000 steps",
    )


def test_small_gaps_are_told_in_one_line_an_algorithm_with_the_tasks(published):
    steps = range(0, 2_000_001, 100_000)
    short = curve({1: steps, 2: steps[:-1], 3: steps})
    late = curve({1: steps, 2: steps, 3: steps[1:]})
    files = {
        "sac/mw-reach.csv": short,
        "sac/mw-push.csv": short,
        "sac/mw-hammer.csv": late,
        "tdmpc/mw-hammer.csv": late,
    }
    problems = load_reference(published(files)).problems
    assert problems == (
        "sac: in 2 tasks a seed ends before the task's others, by up to 5.0% of its steps: mw-push, mw-reach",
        "sac: in 1 task a seed begins after the task's others, by up to 5.0% of its steps: mw-hammer",
        "tdmpc: 1 of 3 tasks",
        "tdmpc: in 1 task a seed begins after the task's others, by up to 5.0% of its steps: mw-hammer",
    )


def test_task_with_fewer_seeds_than_the_algorithms_others_is_told(published):
    files = {f"sac/mw-{name}.csv": curve(WHOLE) for name in ("reach", "push")}
    reference = load_reference(published({**files, "sac/mw-hammer.csv": curve(WHOLE, seeds=(1, 3))}))
    assert reference.problems == ("sac/mw-hammer: only seeds 1 and 3, where most tasks of sac have 3 seeds",)


def test_tasks_that_an_algorithm_lacks_are_counted_and_named_where_they_are_few(published):
    names = ["reach", "push", "hammer", "soccer"]
    files = {f"sac/mw-{name}.csv": curve(WHOLE) for name in names}
    files |= {f"tdmpc/mw-{name}.csv": curve(WHOLE) for name in names[1:]}
    files |= {"tdmpc2-pixels/mw-reach.csv": curve(WHOLE)}
    assert load_reference(published(files)).problems == (
        "tdmpc: 3 of 4 tasks: lacks mw-reach",
        "tdmpc2-pixels: 1 of 4 tasks",
    )


def test_rows_in_any_order_and_seeds_written_as_decimals_are_read(published):
    text = "\ufeffseed, step, reward\r\n2.0,1e5,50\r\n1.0,0,10\r\n2.0,0.0,20\r\n1.0,100000,40\r\n"
    reference = load_reference(published({"sac/dog-run.csv": text}))
    assert reference.table[["seed", "env_steps", "value"]].to_numpy().tolist() == [
        [1, 0, 10.0],
        [1, 100000, 40.0],
        [2, 0, 20.0],
        [2, 100000, 50.0],
    ]
    assert reference.problems == ()


def test_rows_that_cannot_be_taken_are_counted_by_reason(published):
    broken = "step,reward,seed\n0,10,1\n5000,nan,1\n6000,,1\n7000.5,30,1\n8000,40,1.5\n-1,2,1\nx,1,1\n9000,2000,1\n"
    percent = "step,success,seed\n0,0.1,1\n100000,80,1\n"
    reference = load_reference(published({"sac/dog-run.csv": broken, "tdmpc/mw-reach.csv": percent}))
    assert reference.table["value"].tolist() == [10.0, 0.1]
    assert reference.problems[:2] == (
        "sac/dog-run: 1 unreadable row left out; "
        "3 rows whose step or seed is not a whole number, left out; 2 rows without a value, left out; "
        "1 row with a return outside of 0 to 1,000, left out",
        "tdmpc/mw-reach: 1 row with a success outside of 0 to 1, left out",
    )


def test_file_without_the_metric_its_task_is_scored_by_is_told(published):
    reference = load_reference(published({"sac/mw-reach.csv": "step,reward,seed\n0,500,1\n"}))
    assert reference.table["score"].isna().all()
    assert reference.problems == ("sac/mw-reach: no success in it, by which the task is scored",)


def test_further_columns_do_no_harm_but_two_of_a_name_do(published):
    files = {
        "sac/dog-run.csv": ",step,reward,seed,note\n0,0,10,1,a\n",
        "sac/dog-walk.csv": "step,reward,reward,seed\n0,10,20,1\n",
    }
    reference = load_reference(published(files))
    assert reference.table["value"].tolist() == [10.0]
    assert "sac/dog-walk: two columns have the same name" in reference.problems


def test_two_files_of_one_task_are_not_mixed(published):
    files = {"sac/myo-hand-pose.csv": curve(WHOLE), "sac/myo-pose.csv": curve(WHOLE)}
    reference = load_reference(published(files))
    assert len(reference.table) == 33
    assert reference.problems == ("sac/myo-pose: the same task as myo-hand-pose.csv, left out",)


def test_files_without_any_usable_row_give_an_empty_table(published):
    reference = load_reference(published({"sac/dog-run.csv": "step,reward,seed\n", "sac/dog-walk.csv": ""}))
    assert reference.table.empty
    assert reference.problems == ("sac/dog-run: no rows in it", "sac/dog-walk: empty")


def test_coverage_counts_tasks_and_seeds_of_each_algorithm(published):
    files = {
        "sac/dog-run.csv": "step,reward,seed\n0,1,1\n",
        "sac/dog-walk.csv": "step,reward,seed\n0,1,1\n9000,1,2\n",
        "tdmpc/dog-run.csv": "step,reward,seed\n400,1,7\n",
    }
    assert coverage(load_reference(published(files)).table).to_numpy().tolist() == [
        ["sac", 2, 2, 9000],
        ["tdmpc", 1, 1, 400],
    ]


def test_folder_above_the_curves_names_the_one_that_holds_them(published):
    folder = published({"results/tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n"})
    with pytest.raises(UserError, match=r"did you mean .*published/results\?"):
        load_reference(folder)


def test_wrong_reference_folder_says_what_to_give(published):
    folder = published({"tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n"})
    with pytest.raises(UserError, match=r"did you mean .*published\?"):
        load_reference(folder / "tdmpc2")
    with pytest.raises(UserError, match=r"no reference folder .*; did you mean .*published\?"):
        load_reference(folder.parent / "publish")
