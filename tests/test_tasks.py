"""The registry: which tasks there are, in which order, and how names are expanded."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest

from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import TASK_SETS, TASKS, expand_tasks, get_task, nearest_task

MT30 = """walker-stand walker-walk walker-run cheetah-run reacher-easy reacher-hard acrobot-swingup pendulum-swingup
cartpole-balance cartpole-balance-sparse cartpole-swingup cartpole-swingup-sparse cup-catch finger-spin
finger-turn-easy finger-turn-hard fish-swim hopper-stand hopper-hop walker-walk-backwards walker-run-backwards
cheetah-run-backwards cheetah-run-front cheetah-run-back cheetah-jump hopper-hop-backwards reacher-three-easy
reacher-three-hard cup-spin pendulum-spin""".split()
CUSTOM = """walker-walk-backwards walker-run-backwards cheetah-run-backwards cheetah-run-front cheetah-run-back
cheetah-jump hopper-hop-backwards reacher-three-easy reacher-three-hard cup-spin pendulum-spin""".split()


def test_there_are_104_tasks_in_four_domains() -> None:
    assert len(TASKS) == 104
    counts = Counter(task.domain for task in TASKS.values())
    assert counts == {"dmcontrol": 39, "metaworld": 50, "maniskill": 5, "myosuite": 10}
    assert all(name == task.name for name, task in TASKS.items())


def test_mt30_has_the_released_order() -> None:
    assert list(TASK_SETS["mt30"]) == MT30
    assert [TASKS[name].mt30_id for name in MT30] == list(range(30))


def test_mt80_is_mt30_and_then_the_fifty_metaworld_tasks() -> None:
    mt80 = TASK_SETS["mt80"]
    assert len(mt80) == 80
    assert list(mt80[:30]) == MT30
    assert set(mt80[30:]) == {name for name, task in TASKS.items() if task.domain == "metaworld"}
    assert [TASKS[name].mt80_id for name in mt80] == list(range(80))
    # Spot checks of the released order: the first, the last of ML45's training tasks, the five of its test.
    assert mt80[30:33] == ("mw-assembly", "mw-basketball", "mw-button-press-topdown")
    assert mt80[74:] == (
        "mw-window-close", "mw-bin-picking", "mw-box-close", "mw-door-lock", "mw-door-unlock", "mw-hand-insert",
    )  # fmt: skip


def test_a_task_outside_a_set_has_no_id_in_it() -> None:
    assert TASKS["dog-run"].mt30_id is None
    assert TASKS["dog-run"].mt80_id is None
    assert TASKS["mw-reach"].mt30_id is None


def test_sets_by_domain_and_all() -> None:
    assert {name: len(tasks) for name, tasks in TASK_SETS.items()} == {
        "dmcontrol": 39, "metaworld": 50, "maniskill": 5, "myosuite": 10, "mt30": 30, "mt80": 80, "all": 104,
    }  # fmt: skip
    assert set(CUSTOM) <= set(TASK_SETS["dmcontrol"])


def test_known_dims_of_well_known_tasks() -> None:
    dims = {name: (TASKS[name].obs_dim, TASKS[name].action_dim) for name in ("walker-walk", "dog-run", "mw-reach")}
    assert dims == {"walker-walk": (24, 6), "dog-run": (223, 38), "mw-reach": (39, 4)}


def test_timing_and_metric_of_each_domain() -> None:
    for task in TASKS.values():
        assert task.action_repeat == (1 if task.domain == "myosuite" else 2), task.name
        assert task.episode_length == (500 if task.domain == "dmcontrol" else 100), task.name
        assert task.metric == ("return" if task.domain == "dmcontrol" else "success"), task.name
        assert task.score_scale * (1000 if task.metric == "return" else 1) == pytest.approx(100), task.name


def test_the_multi_task_sets_have_the_dims_of_the_released_data() -> None:
    mt30, mt80 = (AgentSpec.from_tasks(TASK_SETS[name]) for name in ("mt30", "mt80"))
    assert (mt30.obs_shape, mt30.action_dim, set(mt30.episode_lengths)) == ((24,), 6, {500})
    assert (mt80.obs_shape, mt80.action_dim, set(mt80.episode_lengths)) == ((39,), 6, {500, 100})


def test_the_registry_cannot_be_written_to() -> None:
    with pytest.raises(TypeError):
        TASKS["mine"] = TASKS["dog-run"]  # type: ignore[index]
    with pytest.raises(TypeError):
        TASK_SETS["mt30"] = ()  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        TASKS["dog-run"].action_dim = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("dog-run", ("dog-run",)),
        ("dog-run,cup-spin", ("dog-run", "cup-spin")),
        (" dog-run , cup-spin ", ("dog-run", "cup-spin")),
        (("cup-spin", "dog-run", "cup-spin"), ("cup-spin", "dog-run")),
        ("mt30", tuple(MT30)),
        ("pendulum-spin,mt30", ("pendulum-spin", *MT30[:-1])),  # once, where it came first
        ("mt30,dog-run", (*MT30, "dog-run")),
    ],
)
def test_names_expand_in_order_each_once(names: str | tuple[str, ...], expected: tuple[str, ...]) -> None:
    assert expand_tasks(names) == expected


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("walker-wlak", "walker-walk"), ("Dog-Run", "dog-run"), ("mt8", "mt80"), ("dmcontroll", "dmcontrol")],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UserError, match=f"sweep.yaml: unknown task '{name}'; did you mean '{nearest}'"):
        expand_tasks(f"cup-spin,{name}", where="sweep.yaml")


@pytest.mark.parametrize("names", ["", "dog-run,", ",", "qqqqqq"])
def test_a_name_like_no_other_is_refused_with_examples(names: str) -> None:
    with pytest.raises(UserError, match=r"unknown task .*; valid: acrobot-swingup, "):
        expand_tasks(names)


def test_a_single_task_is_found_by_its_exact_name() -> None:
    assert get_task("dog-run") is TASKS["dog-run"]
    with pytest.raises(UserError, match="unknown task 'dog-runn'; did you mean 'dog-run'"):
        get_task("dog-runn")
    with pytest.raises(UserError, match="unknown task 'mt30'"):
        get_task("mt30")


# --- labels, and the task most like another


def test_every_task_has_both_labels_in_lower_case_words() -> None:
    for task in TASKS.values():
        for label in (task.embodiment, task.objective):
            assert re.fullmatch(r"[a-z]+(-[a-z]+)*", label), (task.name, label)


@pytest.mark.parametrize(
    ("name", "embodiment", "objective"),
    [
        ("walker-walk", "walker", "walk"),
        ("walker-walk-backwards", "walker", "walk-backwards"),
        ("cheetah-run-backwards", "cheetah", "run-backwards"),
        ("cup-catch", "cup", "catch"),
        ("cartpole-swingup-sparse", "cartpole", "swingup"),  # a sparse reward asks for the same
        ("reacher-hard", "reacher", "reach"),
        ("reacher-three-hard", "reacher-three", "reach"),  # a third link changes the dynamics
        ("fish-swim", "fish", "reach"),  # its reward is the distance to a target
        ("mw-door-open", "sawyer-door", "open"),
        ("mw-drawer-close", "sawyer-drawer", "close"),
        ("mw-button-press-topdown-wall", "sawyer-button", "press"),  # a wall is an obstacle
        ("mw-reach", "sawyer", "reach"),  # the puck need not be moved
        ("pick-cube", "panda-cube", "pick-place"),
        ("myo-key-turn-hard", "myo-hand-key", "turn"),
    ],
)
def test_labels_of_well_known_tasks(name: str, embodiment: str, objective: str) -> None:
    assert (TASKS[name].embodiment, TASKS[name].objective) == (embodiment, objective)


def test_bodies_of_a_kind_belong_to_one_domain() -> None:
    prefixes = {"metaworld": "sawyer", "maniskill": "panda-", "myosuite": "myo-hand"}
    for task in TASKS.values():
        kind = [domain for domain, prefix in prefixes.items() if task.embodiment.startswith(prefix)]
        assert kind == [task.domain] * (task.domain != "dmcontrol"), task.name


def test_objectives_of_a_single_task_are_the_few_that_nothing_shares() -> None:
    counts = Counter(task.objective for task in TASKS.values())
    alone = {objective for objective, count in counts.items() if count == 1}
    assert alone == {"catch", "hop", "hop-backwards", "jump", "lift", "trot", "walk-backwards"}


def test_a_task_and_its_harder_version_share_both_labels() -> None:
    for name, task in TASKS.items():
        easier = name.removesuffix("-hard")
        twin = TASKS.get(easier if easier in TASKS else f"{easier}-easy", task)
        assert (twin.embodiment, twin.objective) == (task.embodiment, task.objective)


def test_tasks_of_one_embodiment_in_dmcontrol_have_equal_dims() -> None:
    finger = {"finger"}  # its turn tasks observe a target besides
    for task in TASKS.values():
        twins = [t for t in TASKS.values() if t.embodiment == task.embodiment]
        assert {t.action_dim for t in twins} == {task.action_dim}
        if task.domain == "dmcontrol" and task.embodiment not in finger:
            assert {t.obs_dim for t in twins} == {task.obs_dim}


@pytest.mark.parametrize(
    ("name", "candidates", "expected"),
    [
        ("walker-run", "walker-walk walker-run cheetah-run", "walker-run"),  # itself
        ("walker-run", "cheetah-run walker-stand", "walker-stand"),  # the body before the objective
        ("walker-run-backwards", "walker-stand walker-run walker-walk", "walker-run"),  # the most similar name
        ("mw-door-close", "mw-drawer-close mw-door-open", "mw-door-open"),
        ("dog-run", "walker-walk cheetah-run", "cheetah-run"),  # the objective, where no body is shared
        ("turn-faucet", "mw-door-open pick-ycb", "mw-door-open"),
        ("mw-reach", "reacher-easy mw-door-open", "reacher-easy"),
        ("pick-ycb", "mw-pick-place stack-cube", "stack-cube"),  # the domain before the name
    ],
)
def test_the_nearest_task_is_found_by_labels(name: str, candidates: str, expected: str) -> None:
    assert nearest_task(name, candidates.split()) == expected


def test_between_equally_similar_names_the_objective_decides_and_then_the_order() -> None:
    for candidates in (["mw-push-back", "mw-push-wall"], ["mw-push-wall", "mw-push-back"]):
        assert nearest_task("mw-push", candidates) == "mw-push-wall"  # the other is a pull
    assert nearest_task("finger-spin", ["finger-turn-hard", "finger-turn-easy"]) == "finger-turn-hard"
    assert nearest_task("finger-spin", ["finger-turn-easy", "finger-turn-hard"]) == "finger-turn-easy"


def test_a_task_unlike_all_others_needs_a_choice() -> None:
    with pytest.raises(UserError, match=r"no task like cup-catch .*among walker-walk, dog-run; .*embedding_from=mean"):
        nearest_task("cup-catch", ["walker-walk", "dog-run"])
    with pytest.raises(UserError, match="unknown task 'walker-wlak'"):
        nearest_task("walker-wlak", ["walker-walk"])


# --- the agent's view of its tasks


def test_a_spec_pads_to_the_largest_observation_and_action() -> None:
    spec = AgentSpec.from_tasks(["cup-catch", "mw-reach", "walker-walk"])
    assert spec.obs_shape == (39,)
    assert spec.action_dims == (2, 4, 6)
    assert spec.action_dim == 6
    assert spec.episode_lengths == (500, 100, 500)
    assert spec.multitask
    assert not AgentSpec.from_tasks(["cup-catch"]).multitask


def test_pixel_observations_are_three_stacked_rgb_frames() -> None:
    assert AgentSpec.from_tasks(["cup-catch"], obs="rgb").obs_shape == (9, 64, 64)


def test_tasks_whose_observation_length_is_unknown_are_named() -> None:
    unknown = [name for name, task in TASKS.items() if task.obs_dim is None]
    assert set(unknown) == {"pick-ycb", "turn-faucet"}
    with pytest.raises(UserError, match=r"pick-ycb"):
        AgentSpec.from_tasks(["pick-cube", "pick-ycb"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action_dims": (1, 2)}, "differ in length"),
        ({"tasks": (), "action_dims": (), "episode_lengths": ()}, "at least one task"),
        ({"tasks": ("a", "a"), "action_dims": (1, 1), "episode_lengths": (5, 5)}, "named twice"),
        ({"action_dims": (0,)}, "dims must be positive"),
        ({"obs_shape": (0,)}, "dims must be positive"),
        ({"episode_lengths": (0,)}, "lengths must be positive"),
        ({"obs_shape": (3, 64, 64)}, "obs_shape of 1 dims"),
        ({"obs": "rgb"}, "obs_shape of 3 dims"),
        ({"obs": "rgb", "obs_shape": (9, 84, 84)}, "64"),  # the encoder's latent length holds for 64 x 64 only
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    sound = {"obs_shape": (3,), "action_dims": (1,), "episode_lengths": (5,), "tasks": ("a",)}
    with pytest.raises(UserError, match=message):
        AgentSpec(**(sound | changes))
