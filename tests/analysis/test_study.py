"""What a report is made from: sweeps and published curves together, restricted to tasks and seeds."""

import numpy as np
import pandas as pd
import pytest
from conftest import SweepWriter

from analysis.results import RUN_COLUMNS, TABLE_COLUMNS, load_sweep
from analysis.study import load_study
from tdmpc2.errors import UserError
from tdmpc2.tasks import TASKS

PUBLISHED = {
    "tdmpc2/walker-walk.csv": "step,reward,seed\n0,20,1\n100000,900,1\n0,10,2\n100000,800,2\n",
    "sac/dog-run.csv": "step,reward,seed\n0,5,1\n100000,50,1\n",
}


def other(writer, name, parent="results"):
    folder = writer.folder.parent.parent / parent / name
    folder.mkdir(parents=True)
    return SweepWriter(folder)


def test_sweeps_and_published_curves_become_one_table_that_tells_them_apart(writer, published):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 300.0)])
    second = other(writer, "more")
    second.add("walker-walk", 2, [(0, 40.0)])
    study = load_study([writer.folder, second.folder], published(PUBLISHED))
    assert study.name == "small + more"
    assert list(study.table.columns) == [*TABLE_COLUMNS, "sweep"]
    assert study.ours[["run", "sweep", "seed", "value"]].to_numpy().tolist() == [
        ["small/walker-walk-1M-seed1", "small", 1, 30.0],
        ["small/walker-walk-1M-seed1", "small", 1, 300.0],
        ["more/walker-walk-1M-seed2", "more", 2, 40.0],
    ]
    assert sorted(study.published["value"]) == [5.0, 10.0, 20.0, 50.0, 800.0, 900.0]
    assert set(study.published["sweep"]) == {""}
    assert study.runs[["run", "folder"]].to_numpy().tolist() == [
        ["small/walker-walk-1M-seed1", str(writer.folder / "runs" / "walker-walk-1M-seed1")],
        ["more/walker-walk-1M-seed2", str(second.folder / "runs" / "walker-walk-1M-seed2")],
    ]
    assert study.tasks == tuple(TASKS)


def test_runs_of_a_single_sweep_keep_their_names(writer):
    writer.add("walker-walk", 1, [(0, 30.0)])
    assert load_study([writer.folder]).table["run"].tolist() == ["walker-walk-1M-seed1"]


def test_sweeps_whose_folders_have_the_same_name_are_told_apart(writer):
    writer.add("walker-walk", 1, [(0, 30.0)])
    second = other(writer, "small", parent="elsewhere")
    second.add("walker-walk", 2, [(0, 40.0)])
    study = load_study([writer.folder, second.folder])
    assert [sweep.name for sweep in study.sweeps] == ["results/small", "elsewhere/small"]
    assert study.table["run"].tolist() == [
        "results/small/walker-walk-1M-seed1",
        "elsewhere/small/walker-walk-1M-seed2",
    ]


def test_of_runs_with_the_same_seed_the_one_that_got_furthest_counts_and_the_other_is_named(writer):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 300.0)])
    writer.add("walker-walk", 2, [(0, 31.0), (3000, 310.0)])
    second = other(writer, "again")
    second.add("walker-walk", 1, [(0, 40.0), (1000, 100.0)])
    second.add("dog-run", 1, [(0, 4.0)])  # another task: not the same run
    second.add("walker-walk", 1, [(0, 50.0)], size=5)  # another size: not the same run
    study = load_study([writer.folder, second.folder])
    assert sorted(study.table["value"]) == [4.0, 30.0, 31.0, 50.0, 300.0, 310.0]
    assert study.problems == (
        "1 run not counted, same task, model and seed as another run, which got as far or further: "
        "again/walker-walk-1M-seed1",
    )
    assert len(study.runs) == 5  # it stays in the table of runs


def test_offline_runs_with_the_same_seed_are_compared_by_updates(writer):
    tasks = ["walker-walk", "dog-run"]
    writer.add_multi(tasks, 1, [(500, {"walker-walk": 1.0, "dog-run": 2.0})])
    second = other(writer, "again")
    second.add_multi(tasks, 1, [(900, {"walker-walk": 3.0, "dog-run": 4.0})])
    study = load_study([writer.folder, second.folder])
    assert study.table[["task", "value"]].to_numpy().tolist() == [["dog-run", 4.0], ["walker-walk", 3.0]]


def test_tasks_and_seeds_restrict_table_and_runs(writer, published):
    for seed in (1, 2):
        writer.add("walker-walk", seed, [(0, 30.0 + seed)])
        writer.add("dog-run", seed, [(0, 3.0 + seed)])
    writer.add_multi(["walker-walk", "dog-run"], 2, [(0, {"walker-walk": 7.0, "dog-run": 8.0})])
    study = load_study([writer.folder], published(PUBLISHED), tasks="walker-walk", seeds=[2])
    assert study.tasks == ("walker-walk",)
    assert sorted(study.table["value"]) == [7.0, 10.0, 32.0, 800.0]
    # a multi-task run is there for the one task that was asked for
    assert study.runs["run"].tolist() == ["walker-walk-1M-seed2", "walker-walk+dog-run-1M-seed2"]
    assert len(study.sweeps[0].runs) == 5


def test_run_whose_settings_cannot_be_read_is_never_restricted_away(writer):
    writer.add("walker-walk", 1, [(0, 30.0)])
    broken = writer.add("dog-run", 9, [(0, 3.0)], planned=False)
    (broken / "config.yaml").write_text("task: [dog")
    study = load_study([writer.folder], tasks=["walker-walk"], seeds=[1])
    assert study.runs["run"].tolist() == ["walker-walk-1M-seed1", "dog-run-1M-seed9"]


def test_published_curves_alone_give_an_empty_table_of_runs_with_all_columns(published):
    study = load_study(reference=published(PUBLISHED), tasks="dog-run")
    assert study.name == "published curves"
    assert study.table["value"].tolist() == [5.0, 50.0]
    assert study.ours.empty
    assert study.runs.empty
    assert list(study.runs.columns) == [*RUN_COLUMNS, "folder", "sweep"]


def test_sweep_without_any_evaluation_is_a_study_of_its_runs(writer, published):
    writer.add("walker-walk", 1, None)
    study = load_study([writer.folder])
    assert study.table.empty
    assert list(study.table.columns) == [*TABLE_COLUMNS, "sweep"]
    assert study.runs["state"].tolist() == ["not started"]
    beside = load_study([writer.folder], published(PUBLISHED))
    assert len(beside.table) == len(beside.published) == 6


def test_nothing_to_read_or_nothing_left_is_refused(writer, published):
    writer.add("walker-walk", 1, [(0, 30.0)])
    with pytest.raises(UserError, match="neither a sweep nor published curves"):
        load_study()
    with pytest.raises(UserError, match="nothing that was run or published is among them"):
        load_study([writer.folder], tasks="dog-run")
    with pytest.raises(UserError, match="nothing that was run or published is among them"):
        load_study(reference=published(PUBLISHED), seeds=[7])
    with pytest.raises(UserError, match="did you mean 'walker-walk'"):
        load_study([writer.folder], tasks="walker-wal")
    with pytest.raises(UserError, match="results: named twice"):
        load_study([writer.folder, writer.folder / "runs" / ".."])


def test_faults_of_plans_and_published_files_are_told(writer, published):
    writer.add("walker-walk", 1, [(0, 30.0)], planned=False)
    files = {**PUBLISHED, "sac/dog-fly.csv": "step,reward,seed\n0,1,1\n"}
    problems = load_study([writer.folder], published(files)).problems
    assert problems[0].startswith("small: no plan.json")
    assert "sac/dog-fly: unknown task, left out" in problems


@pytest.fixture
def mixed(writer, published):
    writer.add("walker-walk", 1, [(0, 30.0), (3000, 300.5)])
    writer.add("mw-reach", 1, [(0, 12.0, 0.0)], size=5)
    writer.add_multi(["walker-walk", "dog-run"], 1, [(0, {"walker-walk": 1.0, "dog-run": 2.0})])
    return load_study([writer.folder], published(PUBLISHED)).table


def test_tidy_table_survives_parquet(mixed, tmp_path):
    mixed.to_parquet(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), mixed)


def test_tidy_table_survives_csv(mixed, tmp_path):
    mixed.to_csv(tmp_path / "table.csv", index=False)
    numeric = [column for column in mixed if mixed[column].dtype != "str"]
    read = pd.read_csv(
        tmp_path / "table.csv",
        dtype=mixed.dtypes.to_dict(),
        keep_default_na=False,
        na_values={column: [""] for column in numeric},
    )
    pd.testing.assert_frame_equal(read, mixed)


def test_columns_of_a_table_have_the_same_types_wherever_its_rows_come_from(mixed, writer, published):
    for table in (load_sweep(writer.folder).table, load_study(reference=published(PUBLISHED)).table):
        shared = [column for column in table if column in mixed]
        assert table[shared].dtypes.to_dict() == mixed[shared].dtypes.to_dict()
    assert mixed["size"].isna().sum() == 6  # the published rows
    assert np.isnan(mixed.loc[(mixed["task"] == "mw-reach") & (mixed["metric"] == "return"), "score"]).all()
