"""Recorded functions, with a recorder that needs no GPU: it runs the function again, into the same outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tdmpc2.agent import agent as agent_module
from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.learning import Batch, UpdateNoise
from tdmpc2.agent.programs import WARM_UP, Recorded


class StandIn:
    """Like `record_cuda_graph`: warms up, records; replays read the inputs' places and write to the outputs'."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recordings += 1
        for _ in range(WARM_UP):
            run()
        outputs = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, run())

        def replay() -> None:
            self.replays += 1
            for place, value in zip(pytree.tree_leaves(outputs), pytree.tree_leaves(run()), strict=True):
                if isinstance(place, Tensor):
                    place.copy_(value)

        return replay, outputs


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


def test_a_recorded_function_gives_what_the_function_gives_for_every_input() -> None:
    stand_in = StandIn()
    recorded = Recorded(lambda a, b: (a + b, a * b), lambda: [], stand_in)
    for seed in range(3):
        a, b = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(seed))
        total, product = recorded(a, b)
        assert torch.equal(total, a + b)
        assert torch.equal(product, a * b)
    assert (stand_in.recordings, stand_in.replays) == (1, 3)


def test_inputs_are_read_and_never_written() -> None:
    def doubles(x: Tensor) -> Tensor:
        return x.mul_(2).clone()  # in place: of the recording's own copy

    x = torch.ones(3)
    recorded = Recorded(doubles, lambda: [], StandIn())
    assert recorded(x).tolist() == [2.0] * 3
    assert recorded(x).tolist() == [2.0] * 3
    assert x.tolist() == [1.0] * 3


def test_what_the_function_changes_is_set_back_after_recording_and_changed_once_a_call() -> None:
    counter, weight = torch.zeros(()), torch.full((2,), 3.0, requires_grad=True)

    def step(x: Tensor) -> Tensor:
        with torch.no_grad():
            counter.add_(1)
            weight.add_(x)
        return counter.clone()

    recorded = Recorded(step, lambda: [counter, weight], StandIn())
    places = counter.data_ptr(), weight.data_ptr()
    for call in (1, 2, 3):
        assert recorded(torch.tensor([1.0, 10.0])).item() == call
        assert weight.tolist() == [3.0 + call, 3.0 + 10 * call]
    assert (counter.data_ptr(), weight.data_ptr()) == places
    assert weight.requires_grad


def test_outputs_are_overwritten_by_the_next_call() -> None:
    # As a CUDA graph's are: callers copy what must last. If this changed, those copies could go.
    recorded = Recorded(lambda x: x + 1, lambda: [], StandIn())
    first = recorded(torch.zeros(2))
    second = recorded(torch.ones(2))
    assert first is second
    assert first.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("other", [torch.zeros(3), torch.zeros(1, 2), torch.zeros(2, dtype=torch.float64)])
def test_inputs_of_another_shape_or_type_get_a_recording_of_their_own(other: Tensor) -> None:
    stand_in = StandIn()
    recorded = Recorded(lambda x: x + 1, lambda: [], stand_in)
    usual = torch.zeros(2)
    assert torch.equal(recorded(usual), usual + 1)
    assert torch.equal(recorded(other), other + 1)
    assert recorded(other).dtype == other.dtype
    assert stand_in.recordings == 2
    assert torch.equal(recorded(usual + 5), usual + 6)  # and the first one still serves
    assert stand_in.recordings == 2


def test_named_tuples_none_and_plain_values_pass_and_tell_recordings_apart() -> None:
    stand_in = StandIn()

    def join(pair: Pair, sign: int = 1) -> Pair:
        assert isinstance(pair, Pair)
        return Pair(sign * (pair.first if pair.second is None else pair.first + pair.second), None)

    recorded = Recorded(join, lambda: [], stand_in)
    one, two = torch.ones(2), torch.full((2,), 2.0)
    for _ in range(2):
        assert recorded(Pair(one, two)).first.tolist() == [3.0, 3.0]
        assert recorded(Pair(two, None)).first.tolist() == [2.0, 2.0]
        assert recorded(Pair(two, None), sign=-1).first.tolist() == [-2.0, -2.0]
    assert recorded(Pair(one, two)).second is None
    assert stand_in.recordings == 3


def test_inputs_may_lie_in_any_way() -> None:
    recorded = Recorded(lambda x: x * 2, lambda: [], StandIn())
    x = torch.arange(6.0).view(2, 3)
    for given in (x[:1].expand(2, 3), x, x.T.contiguous().T, torch.arange(12.0).view(2, 6)[:, ::2]):
        assert torch.equal(recorded(given), given * 2)


# --- a whole agent, recorded as on a GPU


def record(agent: TDMPC2) -> tuple[StandIn, StandIn]:
    plans, steps = StandIn(), StandIn()
    agent.plan = Recorded(agent._run_plan, lambda: [], plans)
    agent._step = Recorded(agent._run_step, agent._changed_by_step, steps)
    return plans, steps


def live(agent: TDMPC2, make_batch: Callable[..., dict[str, Tensor]], kind: str, steps: int = 4) -> list[Tensor]:
    """Everything to be seen of a short life: actions of the agent and of an evaluation beside it, losses, weights."""
    draw = torch.Generator().manual_seed(5)
    task = torch.tensor([2, 0]) if kind == "multi" else None
    evaluation, seen = agent.actor(9), []
    for step in range(steps):
        obs = torch.randn(2, *agent.spec.obs_shape, generator=draw)
        if kind == "rgb":
            obs = (obs * 50 + 128).clamp(0, 255).to(torch.uint8)
        seen.append(agent.act(obs, [step == 0, step in (0, 2)], task))
        seen.append(evaluation(obs[:1], step == 0, None if task is None else task[:1], eval_mode=True))
        metrics = agent.update(make_batch(kind, seed=step, terminated=True))
        assert list(metrics)[:2] == ["consistency_loss", "reward_loss"]
        seen += [metrics[name] for name in sorted(metrics)]
    state = agent.state_dict()
    assert state["updates"] == steps
    return [*seen, state["scale"], *state["model"].values(), *pytree.tree_leaves(state["model_optimizer"]["state"])]


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("single", {}), ("multi", {"episodic": True}), ("rgb", {}), ("single", {"precision": "bfloat16", "dropout": 0})],
)
def test_a_recorded_agent_lives_bit_for_bit_as_one_that_is_not(
    kind: str,
    changes: dict[str, Any],
    make_agent: Callable[..., TDMPC2],
    make_batch: Callable[..., dict[str, Tensor]],
) -> None:
    plain, recorded = make_agent(kind, **changes), make_agent(kind, **changes)
    plans, steps = record(recorded)
    for a, b in zip(live(plain, make_batch, kind), live(recorded, make_batch, kind), strict=True):
        assert torch.equal(a, b)
    assert (plans.recordings, plans.replays) == (2, 8)  # two observations, and one: neither first steps nor
    assert (steps.recordings, steps.replays) == (1, 4)  # evaluation make another


def test_observations_planned_for_in_parts_keep_their_own_actions_and_plans(
    make_agent: Callable[..., TDMPC2], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(agent_module.MAX_PLAN_ROWS, "cpu", 32)  # one observation: each part overwrites the last one's
    plain, recorded = make_agent(), make_agent()
    plans, _ = record(recorded)
    obs = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    for first in (True, False):
        action = recorded.act(obs, first)
        assert torch.equal(action, plain.act(obs, first))
        assert len(action.unique(dim=0)) == 3
    assert torch.equal(recorded.state_dict()["actor"]["mean"], plain.state_dict()["actor"]["mean"])
    assert (plans.recordings, plans.replays) == (1, 6)


def test_a_recorded_agent_learns_and_loads_in_the_places_that_were_recorded(
    make_agent: Callable[..., TDMPC2], make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    # A CUDA graph goes on changing the memory it was recorded with: whatever replaces a tensor instead of writing to
    # it would leave agent and graph with two different ones.
    agent, other = make_agent(seed=1), make_agent(seed=2)
    other.update(make_batch(seed=8))
    before = [tensor.data_ptr() for tensor in agent._changed_by_step()]
    agent.update(make_batch())
    assert [tensor.data_ptr() for tensor in agent._changed_by_step()] == before
    agent.load_state_dict(other.state_dict())
    assert [tensor.data_ptr() for tensor in agent._changed_by_step()] == before
    for mine, its in zip(agent._changed_by_step(), other._changed_by_step(), strict=True):
        assert torch.equal(mine, its)
        assert mine.data_ptr() != its.data_ptr()
    unmoved = make_agent(seed=3).state_dict()
    unmoved["model_optimizer"]["state"] = {}  # as torch's optimizers are before their first step
    agent.load_state_dict(unmoved)
    for moments in agent._model_optimizer.state.values():
        assert all((moments[name] == 0).all() for name in ("step", "exp_avg", "exp_avg_sq"))
    assert [tensor.data_ptr() for tensor in agent._changed_by_step()] == before


def test_a_step_changes_nothing_but_what_it_says_it_changes(
    make_agent: Callable[..., TDMPC2], make_batch: Callable[..., dict[str, Tensor]]
) -> None:
    agent = make_agent("multi", episodic=True, task_dim=2)
    step = agent._run_step
    listed: list[bool] = []

    def checked(data: Batch, noise: UpdateNoise) -> Tensor:
        before = [tensor.detach().clone() for tensor in agent._changed_by_step()]
        others = {name: tensor.clone() for name, tensor in agent.model.named_buffers()}
        generator, mean = agent._generator.get_state(), agent._actor._mean.clone()
        values = step(data, noise)
        listed.extend(not torch.equal(a, b) for a, b in zip(before, agent._changed_by_step(), strict=True))
        assert all(torch.equal(others[name], tensor) for name, tensor in agent.model.named_buffers())
        assert torch.equal(agent._generator.get_state(), generator)
        assert torch.equal(agent._actor._mean, mean)
        return values

    agent._step = checked
    agent.update(make_batch("multi", terminated=True))
    assert all(listed)
    assert len(listed) > 100
