from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tdmpc2.errors import UserError
from tdmpc2.sweeps.checks import unavailable_tasks, why_not_runnable
from tdmpc2.sweeps.declaration import find_declaration, list_declarations, load_declaration
from tdmpc2.sweeps.planning import plan_runs
from tdmpc2.tasks import TASK_SETS

Declare = Callable[..., Path]
COMPLETE = "tasks: [walker-walk]\nsizes: [1]\nseeds: [1]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: [walker-walk]\nsizes: [1]\nseeds: [1]\n", ["task", "did you mean 'tasks'"]),
        ("tasks: [walker-wlak]\nsizes: [1]\nseeds: [1]\n", ["tasks", "'walker-wlak'", "'walker-walk'"]),
        ("tasks: [walker-walk]\nsizes: [6]\nseeds: [1]\n", ["sizes", "no size 6", "nearest is 5"]),
        ("tasks: [walker-walk]\nsizes: ['1']\nseeds: [1]\n", ["sizes", "integer"]),
        ("tasks: [walker-walk]\nsizes: [true]\nseeds: [1]\n", ["sizes", "integer"]),
        ("tasks: [walker-walk]\nsizes: [1]\nseeds: 3\n", ["seeds", "should be a list"]),
        ("tasks: [walker-walk]\nsizes: [1]\nseeds: [-1]\n", ["seeds"]),
        ("tasks: []\nsizes: [1]\nseeds: [1]\n", ["tasks"]),
        ("tasks: [walker-walk]\nseeds: [1]\n", ["sizes", "missing"]),
        (COMPLETE + "overrides: {step: 5}\n", ["overrides", "'step'", "'steps'"]),
        (COMPLETE + "overrides: {steps: many}\n", ["overrides", "steps", "'many'"]),
        (COMPLETE + "overrides: {steps: 5, env_steps: 10}\n", ["steps and env_steps"]),
        (COMPLETE + "overrides: {seed: 5}\n", ["overrides", "seed", "decided by seeds"]),
        (COMPLETE + "resources: {cpu: 2}\n", ["resources", "'cpu'", "'cpus'"]),
        (COMPLETE + "resources: {cpus: 0}\n", ["resources", "cpus"]),
        (COMPLETE + "resources: {cpus: 1.5}\n", ["resources", "cpus"]),
        (COMPLETE + "resources: {gpus: 1.5}\n", ["resources", "gpus", "1.5"]),
        (COMPLETE + "resources: {gpus: 1}\noverrides: {device: cpu}\n", ["resources.gpus", "device is cpu"]),
        (COMPLETE + "overrides: {device: cuda}\n", ["device is cuda", "resources.gpus is 0"]),
        (COMPLETE + "groups: []\n", ["groups"]),
        (COMPLETE + "groups: [{}, {size: [5]}]\n", ["groups[1]", "'size'", "'sizes'"]),
        (COMPLETE + "groups: [{groups: []}]\n", ["groups[0]", "'groups'"]),
        (COMPLETE + "tasks: [reacher-easy]\n", ["tasks", "twice"]),
        ("- walker-walk\n", ["not a mapping"]),
        ("tasks: [walker-walk\n", ["not valid YAML"]),
    ],
)
def test_fault_in_a_declaration_is_told_with_file_and_field(declare: Declare, text: str, words: list[str]) -> None:
    file = declare(text)
    with pytest.raises(UserError) as caught:
        load_declaration(file)
    for word in [str(file), *words]:
        assert word in str(caught.value)


def test_group_replaces_lists_and_adds_to_overrides_and_resources(declare: Declare) -> None:
    file = declare(
        "tasks: [reacher-easy]\nsizes: [1]\nseeds: [1, 2]\n"
        "overrides: {env_steps: 1_000, batch_size: 32}\nresources: {cpus: 2, memory_gb: 3}\n"
        "groups:\n"
        "  - {tasks: cartpole-balance, sizes: [1, 5], overrides: {steps: 300}, resources: {memory_gb: 4}}\n"
        "  - {}\n"
    )
    first, second = load_declaration(file).groups
    assert (first.tasks, first.sizes, first.seeds) == (("cartpole-balance",), (1, 5), (1, 2))
    assert first.overrides == {"batch_size": 32, "steps": 300}  # the budget in its own unit replaces the default one
    assert (first.resources.cpus, first.resources.memory_gb) == (2, 4)
    assert (second.tasks, second.sizes) == (("reacher-easy",), (1,))
    assert second.overrides == {"env_steps": 1000, "batch_size": 32}
    assert second.resources.memory_gb == 3


def test_overrides_that_only_fit_together_are_accepted(declare: Declare) -> None:
    file = declare(COMPLETE + "overrides: {num_samples: 1024}\ngroups: [{overrides: {num_elites: 600}}]\n")
    assert load_declaration(file).groups[0].overrides == {"num_samples": 1024, "num_elites": 600}


def test_unknown_sweep_names_the_nearest(declare: Declare) -> None:
    declare(name="quickstart")
    with pytest.raises(UserError, match="'quickstrat'; did you mean 'quickstart'"):
        find_declaration("quickstrat")


def test_declaration_is_found_here_before_the_projects_own(declare: Declare) -> None:
    here = declare(name="dmcontrol")
    assert find_declaration("dmcontrol") == here
    assert find_declaration("paper-single-task").is_absolute()


def test_path_of_a_declaration_that_is_not_there_is_refused(declare: Declare) -> None:
    with pytest.raises(UserError, match=r"elsewhere/pair\.yaml: no such"):
        find_declaration("elsewhere/pair.yaml")


def test_file_name_that_cannot_name_a_folder_is_refused(declare: Declare) -> None:
    with pytest.raises(UserError, match="names a folder"):
        load_declaration(declare(name="my sweep"))


def shipped(name: str) -> Path:
    return Path(__file__).parents[2] / "scripts" / "sweeps" / f"{name}.yaml"


def test_dmcontrol_is_39_tasks_by_3_seeds_with_the_papers_budgets() -> None:
    runs = plan_runs(load_declaration(shipped("dmcontrol")))
    assert len(runs) == 39 * 3
    assert {run.config.model_size for run in runs} == {5}
    assert sum(run.entry.env_steps for run in runs) == 3 * (32 * 4_000_000 + 7 * 14_000_000)
    assert not unavailable_tasks(runs)


def test_paper_single_task_is_104_tasks_by_3_seeds_with_each_domains_budget() -> None:
    runs = plan_runs(load_declaration(shipped("paper-single-task")))
    assert len(runs) == 312
    budgets = {run.config.task: run.entry.env_steps for run in runs}
    assert (budgets["dog-run"], budgets["walker-walk"]) == (14_000_000, 4_000_000)
    assert (budgets["mw-reach"], budgets["myo-reach"]) == (2_000_000, 2_000_000)


def kinds(name: str) -> Counter[tuple[str, int]]:
    """How many runs of each kind and size a shipped declaration has."""
    runs = plan_runs(load_declaration(shipped(name)))
    return Counter((run.entry.kind, run.config.model_size) for run in runs)


def test_quickstart_runs_everywhere_with_three_tasks_alone_and_together_at_sizes_1_and_5() -> None:
    runs = plan_runs(load_declaration(shipped("quickstart")))
    assert not why_not_runnable(runs, unavailable_tasks(runs))
    assert kinds("quickstart") == {("online", 1): 3, ("online", 5): 1, ("offline", 1): 1, ("offline", 5): 1}
    multitask = [run for run in runs if run.config.offline]
    singles = {f"{task}-1M-seed1" for task in ("walker-stand", "cartpole-swingup", "pendulum-spin")}
    assert all(set(run.needs) == singles for run in multitask)
    assert all(run.config.num_samples == 64 and run.config.batch_size == 128 for run in multitask)


def test_four_tasks_are_learned_together_from_the_data_of_each() -> None:
    runs = plan_runs(load_declaration(shipped("four-tasks")))
    *singles, together = runs
    assert len(singles) == 4
    assert set(together.needs) == {run.name for run in singles}
    assert (together.config.total_updates, together.config.batch_size, together.config.threads) == (8_000, 256, 2)
    assert {run.entry.env_steps for run in singles} == {16_000}


PAPER_SIZES = (1, 5, 19, 48, 317)


def test_paper_multitask_is_mt30_and_mt80_at_five_sizes_on_240_single_task_runs() -> None:
    runs = plan_runs(load_declaration(shipped("paper-multitask")))
    assert kinds("paper-multitask") == {("online", 5): 240} | {("offline", size): 2 for size in PAPER_SIZES}
    needs = {run.config.task: len(run.needs) for run in runs if run.config.offline}
    assert needs == {"mt30": 90, "mt80": 240}
    assert {run.config.total_updates for run in runs if run.config.offline} == {10_000_000}
    assert kinds("paper-multitask-released") == {("offline", size): 2 for size in PAPER_SIZES}


def test_few_shot_holds_its_10_tasks_out_of_the_data_and_learns_them_both_ways() -> None:
    runs = plan_runs(load_declaration(shipped("few-shot")))
    assert kinds("few-shot") == {("online", 5): 210, ("online", 19): 30, ("offline", 19): 1, ("finetune", 19): 30}
    (multitask,) = [run for run in runs if run.config.offline]
    tuned = [run for run in runs if run.entry.kind == "finetune"]
    held_out = {run.config.task for run in tuned}
    assert held_out == {run.config.task for run in runs if run.entry.kind == "online" and run.config.model_size == 19}
    assert set(multitask.config.tasks) == set(TASK_SETS["mt80"]) - held_out
    assert {run.needs for run in tuned} == {(multitask.name,)}
    assert {run.entry.env_steps for run in tuned} == {20_000}


def test_paper_is_everything() -> None:
    expected = Counter({("online", 5): 312, ("online", 19): 30, ("offline", 19): 1, ("finetune", 19): 30})
    assert kinds("paper") == expected + Counter({("offline", size): 2 for size in PAPER_SIZES})
    runs = plan_runs(load_declaration(shipped("paper")))
    few_shot = plan_runs(load_declaration(shipped("few-shot")))
    assert {r.config.task for r in runs if r.needs} == {r.config.task for r in few_shot if r.needs} | {"mt30", "mt80"}


def test_every_shipped_declaration_is_valid() -> None:
    for file in list_declarations().values():
        assert plan_runs(load_declaration(file))
