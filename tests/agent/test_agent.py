"""Acting and learning through the agent's public face."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from same_life import assert_same_life, perturb

from tdmpc2.agent import agent as agent_module
from tdmpc2.agent import kernels
from tdmpc2.agent.agent import TDMPC2, choose_device
from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec

Agents = Callable[..., TDMPC2]
Batches = Callable[..., dict[str, torch.Tensor]]


def observations(agent: TDMPC2, batch: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    if agent.spec.obs == "rgb":
        return torch.randint(256, (batch, *agent.spec.obs_shape), generator=draw, dtype=torch.uint8)
    return torch.randn(batch, *agent.spec.obs_shape, generator=draw)


def task_ids(agent: TDMPC2, batch: int) -> torch.Tensor | None:
    return torch.arange(batch) % 3 if agent.spec.multitask else None


# --- every kind of agent acts and learns


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("single", {}),
        ("multi", {}),
        ("single", {"mpc": False}),
        ("multi", {"mpc": False}),
        ("single", {"episodic": True}),
        ("multi", {"episodic": True}),
        ("rgb", {}),
        ("rgb", {"mpc": False}),
        ("single", {"model_size": 1, "num_q": 2}),
        ("single", {"horizon": 1}),
    ],
)
def test_every_kind_of_agent_acts_and_learns(
    kind: str, changes: dict[str, object], make_agent: Agents, make_batch: Batches
) -> None:
    agent = make_agent(kind, fresh=True, **changes)
    before = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    for first in (True, False):
        action = agent.act(observations(agent, 3), first, task_ids(agent, 3))
        assert action.shape == (3, agent.spec.action_dim)
        assert action.dtype == torch.float32
        assert action.device.type == "cpu"
        assert action.abs().max() <= 1
    H = agent.config.horizon
    batch = make_batch(kind, terminated=agent.config.episodic)
    metrics = agent.update({name: x if name == "task" else x[: H + (name == "obs")] for name, x in batch.items()})
    assert all(torch.isfinite(value) for value in metrics.values())
    after = agent.model.state_dict()
    for part in ("_encoder", "_dynamics", "_reward", "_pi", "_Qs"):
        moved = [not torch.equal(before[name], after[name]) for name in before if name.startswith(part)]
        assert any(moved), part


def test_two_agents_of_one_seed_are_alike_and_of_another_seed_are_not(make_agent: Agents, make_batch: Batches) -> None:
    def life(seed: int) -> list[torch.Tensor]:
        agent = make_agent(fresh=True, seed=seed)
        actions = [agent.act(observations(agent, 2), True)]
        agent.update(make_batch())
        return [*actions, agent.act(observations(agent, 2), False), *agent.model.state_dict().values()]

    first, again, other = life(1), life(1), life(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[2], other[2])


def test_weights_do_not_depend_on_and_do_not_disturb_torchs_global_generator(make_agent: Agents) -> None:
    torch.manual_seed(0)
    first = make_agent(fresh=True)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    second = make_agent(fresh=True)
    assert torch.equal(torch.get_rng_state(), state)
    tensors = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in tensors)


def test_making_an_agent_leaves_its_config_as_it_was(make_config: Callable[..., Config]) -> None:
    spec = AgentSpec(obs_shape=(3,), action_dims=(21,), episode_lengths=(500,), tasks=("dog-run",))
    config = make_config(iterations=2)
    before = dataclasses.asdict(config)
    for _ in range(3):
        agent = TDMPC2(config, spec)
        agent.act(np.zeros((1, 3), np.float32), True)
    assert dataclasses.asdict(config) == before


def test_two_agents_share_nothing(make_agent: Agents, make_batch: Batches) -> None:
    config_twins = make_agent(), make_agent()
    still, moving = config_twins
    before = {name: tensor.clone() for name, tensor in still.model.state_dict().items()}
    for _ in range(3):
        moving.update(make_batch())
        moving.act(observations(moving, 2), True)
    assert all(torch.equal(before[name], tensor) for name, tensor in still.model.state_dict().items())
    assert still.updates == 0
    assert torch.equal(still.act(observations(still, 2), True), make_agent().act(observations(still, 2), True))


# --- acting


def test_evaluation_through_an_actor_of_its_own_leaves_the_agents_stream_alone(make_agent: Agents) -> None:
    disturbed, alone = make_agent(), make_agent()
    for step in range(3):
        actor = disturbed.actor(seed=step)
        for t in range(2):
            actor(observations(disturbed, 5, seed=t), t == 0, eval_mode=True)
        obs = observations(alone, 2, seed=step)
        assert torch.equal(disturbed.act(obs, step == 0), alone.act(obs, step == 0))


def test_actors_of_one_seed_act_alike(make_agent: Agents) -> None:
    agent = make_agent()
    obs = observations(agent, 2)
    assert torch.equal(agent.actor(3)(obs, True), agent.actor(3)(obs, True))
    assert not torch.equal(agent.actor(3)(obs, True), agent.actor(4)(obs, True))


def test_evaluation_adds_no_exploration_noise(make_agent: Agents) -> None:
    # With wide plans exploration moves actions far; without it the same stream gives one of the sampled sequences.
    agent = make_agent(mpc=False)
    obs = observations(agent, 4)
    first, second = (agent.act(obs, True, eval_mode=True) for _ in range(2))
    assert torch.equal(first, second)
    z = agent.model.encode(obs)
    torch.testing.assert_close(first, agent.model.pi(z, eps=torch.zeros(4, 2))[1]["mean"].detach())
    assert not torch.equal(agent.act(obs, True), agent.act(obs, True))


def test_the_previous_plan_is_remembered_until_a_first_step(make_agent: Agents) -> None:
    warm, cold = make_agent(), make_agent()
    obs = observations(warm, 2)
    for agent in (warm, cold):
        agent.act(obs, True)
    a, b = warm.act(obs, [False, False]), cold.act(obs, [False, True])
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[1], b[1])


def test_a_changed_number_of_observations_needs_first_steps(make_agent: Agents) -> None:
    agent = make_agent()
    agent.act(observations(agent, 3), True)
    with pytest.raises(ValueError, match="2 observations after 3"):
        agent.act(observations(agent, 2), [True, False])
    assert agent.act(observations(agent, 2), [True, True]).shape == (2, 2)
    with pytest.raises(ValueError, match="2 observations after 0"):
        agent.actor(1)(observations(agent, 2), False)


def test_a_multi_task_agent_needs_task_ids(make_agent: Agents) -> None:
    agent = make_agent("multi")
    with pytest.raises(ValueError, match="task"):
        agent.act(observations(agent, 2), True)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 1, 3)])
def test_observations_of_another_shape_are_refused(shape: tuple[int, ...], make_agent: Agents) -> None:
    with pytest.raises(ValueError, match=r"obs: expected \(B, 3\)"):
        make_agent().act(np.zeros(shape, np.float32), True)


@pytest.mark.parametrize("given", ["list", "float64", "float32", "tensor"])
def test_observations_may_be_anything_array_like(given: str, make_agent: Agents) -> None:
    values = [[0.5, -1.0, 2.0], [0.0, 0.25, -0.5]]
    forms = {
        "list": values,
        "float64": np.array(values),
        "float32": np.array(values, np.float32),
        "tensor": torch.tensor(values),
    }
    action = make_agent().act(forms[given], np.array([True, True]))
    assert torch.equal(action, make_agent().act(torch.tensor(values), True))


def test_observations_given_to_act_are_not_written_to(make_agent: Agents) -> None:
    agent = make_agent("rgb")
    obs = observations(agent, 2).numpy()
    before = obs.copy()
    agent.act(obs, True)
    assert (obs == before).all()


def test_a_batch_too_large_for_memory_is_planned_in_parts(make_agent: Agents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(agent_module.MAX_PLAN_ROWS, "cpu", 64)  # two observations of 32 samples
    agent, sizes = make_agent("multi"), []
    plan = agent_module.plan
    monkeypatch.setattr(
        agent_module, "plan", lambda model, obs, *rest: sizes.append(len(obs)) or plan(model, obs, *rest)
    )
    tasks = torch.tensor([0, 1, 2, 1, 1])
    for first in (True, False):
        action = agent.act(observations(agent, 5), first, tasks)
    assert sizes == [2, 2, 1, 2, 2, 1]
    assert action.shape == (5, 3)
    assert (action[tasks == 1][:, 1:] == 0).all()
    assert (action[tasks == 1][:, 0] != 0).all()


def test_acting_tracks_no_gradients_and_changes_no_weight(make_agent: Agents) -> None:
    agent = make_agent("multi", task_dim=2)
    before = {name: tensor.clone() for name, tensor in agent.model.state_dict().items()}
    assert not agent.act(observations(agent, 3), True, torch.arange(3)).requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in agent.model.state_dict().items())


# --- with and without the CPU kernels


BOTH = [
    ("single", {}),
    ("single", {"enc_dim": 11, "mlp_dim": 13, "simnorm_dim": 4, "num_bins": 33}),  # no multiples of the vectors' length
    ("multi", {"mlp_dim": 20}),
    ("multi", {"episodic": True, "num_pi_trajs": 0}),
    ("rgb", {}),
    ("single", {"episodic": True, "dropout": 0.3}),
]


@pytest.mark.skipif(not kernels.available(), reason=kernels.load().reason)
@pytest.mark.parametrize(("kind", "changes"), BOTH)
def test_kernels_change_no_action_and_no_update_beyond_rounding(
    kind: str, changes: dict[str, object], make_agent: Agents, make_batch: Batches
) -> None:
    plain, fused = (perturb(make_agent(kind, fresh=True, compile=mode, **changes)) for mode in ("none", "kernels"))
    assert all(module.fused for module in fused.model.modules() if hasattr(module, "fused"))
    assert not any(module.fused for module in plain.model.modules() if hasattr(module, "fused"))
    for first in (True, False):  # the same noise, as both draw it from the same seed
        obs = observations(plain, 3, seed=int(first))
        a, b = (agent.act(obs, first, task_ids(agent, 3)) for agent in (plain, fused))
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)
        torch.testing.assert_close(plain._actor._mean, fused._actor._mean, rtol=0, atol=2e-4)
    assert_same_life(plain, fused, make_batch, kind)


# --- a model that has diverged


PARTS = ["_encoder", "_dynamics", "_reward", "_pi", "_Qs", "_termination", "_task_emb"]


@pytest.mark.parametrize("part", PARTS)
def test_weights_that_are_no_numbers_never_give_a_finite_action(part: str, make_agent: Agents) -> None:
    agent = make_agent("multi", episodic=True)
    with torch.no_grad():
        for name, parameter in agent.model.named_parameters():
            if name.startswith(part):
                parameter.fill_(float("nan"))
    with pytest.raises(FloatingPointError):
        agent.act(observations(agent, 3), True, torch.arange(3))


@pytest.mark.parametrize("part", ["_encoder", "_pi"])
def test_without_planning_weights_that_are_no_numbers_never_give_a_finite_action(part: str, make_agent: Agents) -> None:
    agent = make_agent(mpc=False)
    with torch.no_grad():
        for name, parameter in agent.model.named_parameters():
            if name.startswith(part):
                parameter.view(-1)[0] = float("nan")
    with pytest.raises(FloatingPointError):
        agent.act(observations(agent, 3), True)


def test_one_observation_that_is_no_number_in_a_batch_is_noticed(make_agent: Agents) -> None:
    agent = make_agent()
    obs = observations(agent, 3)
    obs[1, 0] = float("nan")
    with pytest.raises(FloatingPointError):
        agent.act(obs, True)


# --- devices


def test_a_gpu_that_is_not_there_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, specs: Mapping[str, AgentSpec]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"cuda:1 is not there \(1 GPUs visible\)"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(UserError, match="cuda is not there"):
        TDMPC2(Config(task="walker-walk", model_size=1), specs["single"], device="cuda")
