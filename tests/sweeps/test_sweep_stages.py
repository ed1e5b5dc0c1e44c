"""Declarations with data sets, multi-task runs and finetuning: what is planned, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_training import write_replay

from tdmpc2.data.dataset import StoreSource, build
from tdmpc2.envs import make
from tdmpc2.errors import UserError
from tdmpc2.sweeps.checks import check_datasets, unavailable_tasks, why_not_runnable
from tdmpc2.sweeps.declaration import load_declaration
from tdmpc2.sweeps.folder import PlanEntry, SweepFolder
from tdmpc2.sweeps.planning import PlannedRun, plan_runs
from tdmpc2.tasks import TASK_SETS

Declare = Callable[..., Path]

STAGES = """
tasks: [cup-catch, reacher-easy]
sizes: [1]
seeds: [1, 2]
overrides: {env_steps: 200, seed_steps: 50, batch_size: 32, eval_freq: 70, iterations: 3, num_samples: 64}
datasets:
  both: {seeds: [1]}
multitask:
  - data: both
    sizes: [1, 5]
    seeds: [1]
    overrides: {steps: 30, eval_freq: 10}
    resources: {cpus: 2}
finetune:
  - from: both
    tasks: [walker-walk]
    overrides: {env_steps: 100, embedding_from: mean}
"""
CUP, REACHER = "cup-catch-1M-seed1", "reacher-easy-1M-seed1"
BOTH = "cup-catch+reacher-easy"


def planned(file: Path, results: str = "results") -> dict[str, PlannedRun]:
    return {run.name: run for run in plan_runs(load_declaration(file), results)}


def test_stages_are_planned_one_after_another_and_each_run_knows_what_it_needs(declare: Declare) -> None:
    runs = planned(declare(STAGES))
    singles = [f"{task}-1M-seed{seed}" for seed in (1, 2) for task in ("cup-catch", "reacher-easy")]
    tuned = [f"walker-walk-{size}M-finetuned-seed{seed}" for seed in (1, 2) for size in (5, 1)]
    assert list(runs) == [*singles, f"{BOTH}-5M-seed1", f"{BOTH}-1M-seed1", *tuned]
    assert all(runs[name].needs == () for name in singles)
    assert all(runs[f"{BOTH}-{size}M-seed1"].needs == (CUP, REACHER) for size in (1, 5))  # not those of seed 2
    assert runs[tuned[0]].needs == runs[tuned[2]].needs == (f"{BOTH}-5M-seed1",)  # there is but one seed of it
    assert runs[tuned[1]].config.checkpoint == f"results/pair/runs/{BOTH}-1M-seed1"
    assert runs[tuned[1]].config.embedding_from == "mean"


def test_runs_that_others_wait_for_start_before_larger_ones_that_nobody_needs() -> None:
    runs = plan_runs(load_declaration(Path("scripts/sweeps/quickstart.yaml")))
    order = [(run.config.task, run.config.model_size) for run in runs]
    alone = order.index(("pendulum-spin", 5))
    assert all(order.index((task, 1)) < alone for task in ("walker-stand", "cartpole-swingup", "pendulum-spin"))


def test_multitask_run_takes_its_tasks_from_the_data_set(declare: Declare) -> None:
    runs = planned(declare(STAGES), "out")
    run = runs[f"{BOTH}-5M-seed1"]
    assert (run.config.task, run.config.data, run.config.exp_name) == ("cup-catch,reacher-easy", "both", "pair")
    assert run.config.threads == 2
    assert run.entry == PlanEntry(run.name, "cup-catch,reacher-easy", 5, 1, 0, 0, 30, "offline", 0.0, "both")
    assert run.dataset is not None
    assert run.dataset.folder == Path("out/pair/datasets")
    assert [store.folder for store in run.dataset.stores] == [
        Path("out/pair/runs") / n / "replay" for n in (CUP, REACHER)
    ]


def test_defaults_that_count_online_steps_do_not_reach_multitask_runs(declare: Declare) -> None:
    runs = planned(declare(STAGES.replace("overrides: {steps: 30, eval_freq: 10}", "overrides: {}")))
    config = runs[f"{BOTH}-1M-seed1"].config
    assert (config.iterations, config.num_samples) == (3, 64)
    assert (config.steps, config.batch_size, config.eval_freq, config.seed_steps) == (None, None, 50_000, None)
    assert runs["walker-walk-1M-finetuned-seed1"].config.batch_size == 32


def test_plain_sweep_keeps_its_runs_when_stages_are_added(declare: Declare) -> None:
    with_stages = planned(declare(STAGES))
    alone = planned(declare(STAGES[: STAGES.index("datasets:")]))
    assert [(run.name, run.config) for run in with_stages.values()][: len(alone)] == [
        (run.name, run.config) for run in alone.values()
    ]


def test_data_set_that_is_exactly_a_task_set_is_called_by_its_name(declare: Declare) -> None:
    text = "tasks: [mt30]\nsizes: [5]\nseeds: [1]\ndatasets: {all: {}}\nmultitask: [{data: all}]\n"
    assert planned(declare(text))["mt30-5M-seed1"].config.tasks == TASK_SETS["mt30"]


def test_run_on_some_of_the_tasks_still_needs_the_whole_data_set(declare: Declare) -> None:
    text = STAGES.replace("    sizes: [1, 5]\n", "    tasks: [reacher-easy]\n    sizes: [1]\n").split("finetune:")[0]
    with pytest.raises(UserError, match=r"multitask\[0\]: run reacher-easy-1M-seed1 is declared twice"):
        planned(declare(text))
    labelled = text.replace("{steps: 30,", "{label: alone, steps: 30,")
    assert planned(declare(labelled))["reacher-easy-1M-alone-seed1"].needs == (CUP, REACHER)


def test_data_set_is_chosen_by_size_and_label(declare: Declare) -> None:
    text = (
        "tasks: [cup-catch]\nsizes: [1, 5]\nseeds: [1]\ngroups: [{}, {overrides: {label: fast, lr: 1e-3}}]\n"
        "datasets:\n  small: {sizes: [1], labels: ['']}\n  fast: {labels: fast}\n"
        "multitask:\n  - {data: small, sizes: [1], overrides: {label: a}}\n"
        "  - {data: fast, sizes: [1], overrides: {label: b}}\n"
    )
    runs = planned(declare(text))
    assert runs["cup-catch-1M-a-seed1"].needs == ("cup-catch-1M-seed1",)
    assert runs["cup-catch-1M-b-seed1"].needs == ("cup-catch-1M-fast-seed1", "cup-catch-5M-fast-seed1")


def test_tasks_can_be_left_out_of_a_set(declare: Declare) -> None:
    text = "tasks: [mt30]\nwithout: [dog-run]\nsizes: [1]\nseeds: [1]\n"
    with pytest.raises(UserError, match="without: dog-run is not among the tasks"):
        planned(declare(text))
    assert len(planned(declare(text.replace("dog-run", "cup-spin")))) == 29


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("both: {seeds: [1]}", "both: {seeds: [3]}", ["datasets.both: seeds", "3"]),
        ("both: {seeds: [1]}", "both: {sizes: [5]}", ["datasets.both: sizes", "5"]),
        ("both: {seeds: [1]}", "both: {labels: [fast]}", ["datasets.both: labels", "fast"]),
        ("both: {seeds: [1]}", "both: {tasks: [cup-spin]}", ["datasets.both: tasks", "cup-spin"]),
        ("both: {seeds: [1]}", "both: {tasks: [cup-spni]}", ["datasets.both: tasks", "'cup-spin'"]),
        ("both: {seeds: [1]}", "both: {seed: [1]}", ["datasets.both", "'seed'", "'seeds'"]),
        ("both: {seeds: [1]}", "a/b: {seeds: [1]}", ["datasets: 'a/b' names a folder"]),
        ("data: both", "data: bohth", ["multitask[0]: data", "no data set bohth", "did you mean 'both'"]),
        ("data: both", "tasks: [cup-catch]", ["multitask[0]: data: missing"]),
        ("data: both", "data: both\n    tasks: [cup-spin]", ["multitask[0]: tasks", "data set both", "'cup-spin'"]),
        ("{steps: 30, ", "{env_steps: 30, ", ["multitask[0]: overrides", "env_steps"]),
        ("{steps: 30, ", "{buffer_size: 900, ", ["multitask[0]: overrides", "buffer_size"]),
        ("{steps: 30, ", "{data: other, ", ["multitask[0]: overrides: data is decided by"]),
        ("from: both", "from: bth", ["finetune[0]: from", "'bth'", "'both'"]),
        ("from: both", "data: both", ["finetune[0]: from: missing"]),
        ("    tasks: [walker-walk]\n", "", ["finetune[0]: tasks: missing"]),
        ("    tasks: [walker-walk]\n", "    tasks: [walker-walk]\n    sizes: [19]\n", ["finetune[0]", "size 19"]),
        ("{env_steps: 100, ", "{checkpoint: x, ", ["finetune[0]: overrides: checkpoint is decided by from"]),
    ],
)
def test_fault_in_a_stage_is_told_with_file_and_field(declare: Declare, old: str, new: str, words: list[str]) -> None:
    assert old in STAGES
    file = declare(STAGES.replace(old, new))
    with pytest.raises(UserError) as caught:
        planned(file)
    for word in [str(file), *words]:
        assert word in str(caught.value)


def test_finetuning_without_a_multitask_stage_is_refused(declare: Declare) -> None:
    text = STAGES[: STAGES.index("multitask:")] + STAGES[STAGES.index("finetune:") :]
    with pytest.raises(UserError, match="finetune: needs a multitask block"):
        planned(declare(text))


def test_finetuning_from_one_of_two_runs_alike_is_refused(declare: Declare) -> None:
    second = "  - {data: both, sizes: [1], seeds: [1], overrides: {label: other}}\nfinetune:"
    with pytest.raises(UserError, match=r"finetune\[0\]: from: .*-1M-seed1 and .*-other-seed1 are both on both"):
        planned(declare(STAGES.replace("finetune:", second)))


IMPORTED = "sizes: [1]\nseeds: [1]\nmultitask: [{data: chunks, tasks: [cup-catch]}]\n"


def test_sweep_on_an_imported_data_set_needs_no_other_stage_but_the_data(declare: Declare, tmp_path: Path) -> None:
    named, unnamed = declare(IMPORTED), declare(IMPORTED.replace(", tasks: [cup-catch]", ""), name="unnamed")
    (run,) = planned(named).values()
    assert (run.name, run.needs, run.dataset) == ("cup-catch-1M-seed1", (), None)
    with pytest.raises(UserError, match="cup-catch-1M-seed1: no data set chunks"):
        check_datasets([run])
    with pytest.raises(UserError, match=r"multitask\[0\]: data: no data set chunks"):
        planned(unnamed)

    tasks = ("reacher-easy", "cup-catch")
    for task in tasks:
        write_replay(tmp_path / task, task)
    build("chunks", [StoreSource(tmp_path / task, None, True) for task in tasks], tasks, Path("results/datasets"))
    check_datasets([run])
    assert [each.config.task for each in planned(unnamed).values()] == ["reacher-easy,cup-catch"]
    (other,) = planned(declare(IMPORTED.replace("cup-catch", "cup-spin"))).values()
    with pytest.raises(UserError, match="unknown task of data set chunks 'cup-spin'"):
        check_datasets([other])


def test_what_needs_the_data_of_tasks_that_cannot_be_run_cannot_be_run(
    declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(make.BACKENDS, "maniskill", make.Backend("tdmpc2.envs.maniskill", "no_such_simulator"))
    text = STAGES.replace("cup-catch", "pick-cube").replace(
        "both: {seeds: [1]}", "both: {}\n  rest: {tasks: reacher-easy}"
    )
    rest = "  - {data: rest, sizes: [19], seeds: [1], overrides: {label: rest}}\nfinetune:"
    runs = list(planned(declare(text.replace("finetune:", rest))).values())
    reasons = why_not_runnable(runs, unavailable_tasks(runs))
    runnable = [run.name for run in runs if run.name not in reasons]
    assert runnable == ["reacher-easy-1M-seed1", "reacher-easy-1M-seed2", "reacher-easy-19M-rest-seed1"]
    assert (
        reasons["pick-cube-1M-seed1"]
        == "the Python package no_such_simulator is not installed; `make setup` installs it"
    )
    several = "pick-cube+reacher-easy-1M-seed1"
    assert reasons[several] == "needs pick-cube-1M-seed1 and 1 more, which cannot be run"
    assert reasons["walker-walk-1M-finetuned-seed1"] == f"needs {several}, which cannot be run"


def test_plan_of_an_earlier_version_is_read(declare: Declare) -> None:
    declare()
    folder = SweepFolder("results", "pair")
    folder.path.mkdir(parents=True)
    old = {"name": CUP, "task": "cup-catch", "model_size": 1, "seed": 1, "agent_steps": 100, "env_steps": 200}
    folder.plan_file.write_text(json.dumps({"runs": [old]}))
    (entry,) = folder.read_plan()
    assert (entry.kind, entry.total_updates, entry.gpus) == ("online", 100, 0)
