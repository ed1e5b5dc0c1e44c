"""Sizes, initialisation and what the tasks of a world model share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.world_model import WorldModel
from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import TASK_SETS

# --- parameters of all sizes, from ALGORITHM sections 1 and 2

# name: enc_dim, mlp_dim, latent_dim, encoder layers, num_q
SIZES = {
    1: (256, 384, 128, 2, 2),
    5: (256, 512, 512, 2, 5),
    19: (1024, 1024, 768, 3, 5),
    48: (1792, 1792, 768, 4, 5),
    317: (4096, 4096, 1376, 5, 8),
}
# obs dim, action dim, tasks. mt30: humanoid and dog are not in it, walker has the most of both (24 and 6).
SHAPES = {"walker-walk": (24, 6, 1), "mt30": (24, 6, 30), "mt80": (39, 6, 80)}


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def normed(inputs: int, outputs: int) -> int:
    return linear(inputs, outputs) + 2 * outputs


def expected_counts(tasks: str, size: int) -> dict[str, int]:
    enc, mlp, L, layers, M = SIZES[size]
    obs, A, N = SHAPES[tasks]
    D = 0 if N == 1 else 96
    if tasks == "mt30" and size in (5, 19, 48):
        D = 64
    if tasks == "mt30" and size == 19:
        L = 512
    hidden_layers = max(layers - 1, 1)
    encoder = normed(obs + D, enc) + (hidden_layers - 1) * normed(enc, enc) + normed(enc, L)
    trunk = {True: normed(L + A + D, mlp) + normed(mlp, mlp), False: normed(L + D, mlp) + normed(mlp, mlp)}
    counts = {
        "encoder": encoder,
        "dynamics": trunk[True] + normed(mlp, L),
        "reward": trunk[True] + linear(mlp, 101),
        "policy": trunk[False] + linear(mlp, 2 * A),
        "q": M * (trunk[True] + linear(mlp, 101)),
        "task_embedding": N * D,
        "termination": 0,
    }
    return counts | {"total": sum(counts.values())}


def counts_of(tasks: str, size: int, **changes: bool) -> dict[str, int]:
    """Counted on the meta device: no memory, no time."""
    names = TASK_SETS.get(tasks, (tasks,))
    with torch.device("meta"):
        model = WorldModel(Config(task=tasks, model_size=size, **changes), AgentSpec.from_tasks(names))
    return model.parameter_counts()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("tasks", SHAPES)
def test_parameter_table_of_every_size(tasks: str, size: int) -> None:
    assert counts_of(tasks, size) == expected_counts(tasks, size)


def test_the_published_80_task_model_of_size_5() -> None:
    assert counts_of("mt80", 5) == {
        "encoder": 167_936,
        "dynamics": 843_264,
        "reward": 631_397,
        "policy": 582_668,
        "q": 3_156_985,
        "task_embedding": 7_680,
        "termination": 0,
        "total": 5_389_930,
    }


def test_an_episodic_model_adds_a_termination_head_and_nothing_else() -> None:
    plain, episodic = counts_of("walker-walk", 1), counts_of("walker-walk", 1, episodic=True)
    head = normed(128, 384) + normed(384, 384) + linear(384, 1)
    assert episodic == plain | {"termination": head, "total": plain["total"] + head}


def test_a_set_of_other_tasks_has_embeddings_of_96() -> None:
    with torch.device("meta"):
        spec = AgentSpec.from_tasks(["walker-walk", "cup-catch"])
        model = WorldModel(Config(task="walker-walk,cup-catch", model_size=48), spec)
    assert model.architecture.task_dim == 96
    assert model.parameter_counts()["task_embedding"] == 2 * 96


# --- weights at the start


def test_initial_weights_follow_the_published_scheme(make_agent: Callable[..., TDMPC2]) -> None:
    model = make_agent("multi", fresh=True, mlp_dim=64, enc_dim=64, episodic=True).model
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name == "_task_emb":
            assert values.abs().max() <= 0.02
            assert values.std().item() == pytest.approx(0.02 / 3**0.5, rel=0.15)  # uniform over 0.04
        elif name.endswith("ln.weight"):
            assert (values == 1).all()
        elif name.endswith("bias") or name in ("_reward.2.weight", "_Qs.layers.2.weight", "_target_Qs.layers.2.weight"):
            assert (values == 0).all(), name
        elif values.numel() > 1000:
            assert values.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(values.mean().item()) < 0.002, name


def test_each_q_function_starts_from_different_weights_and_targets_from_the_same(
    make_agent: Callable[..., TDMPC2],
) -> None:
    model = make_agent(fresh=True).model
    first = model._Qs.layers[0].weight
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    q, targets = model._Qs.state_dict(), model._target_Qs.state_dict()
    assert all(torch.equal(q[name], targets[name]) for name in q)
    assert all(a is not b for a, b in zip(model._Qs.parameters(), model._target_Qs.parameters(), strict=True))


def test_a_fresh_model_predicts_reward_and_value_zero(make_agent: Callable[..., TDMPC2]) -> None:
    model = make_agent(fresh=True).model
    z, action = torch.rand(5, 16), torch.rand(5, 2)
    zeros = torch.zeros(5, 1)
    torch.testing.assert_close(model.two_hot.decode(model.reward(z, action)), zeros, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.two_hot.decode(model.Q(z, action)), zeros.expand(3, 5, 1), rtol=0, atol=1e-5)


# --- the public functions


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_networks_agree_with_plain_loops(kind: str, make_agent: Callable[..., TDMPC2], plain_model: type) -> None:
    agent = make_agent(kind, episodic=True, num_enc_layers=4)
    model, plain = agent.model, plain_model(agent.model)
    draw = torch.Generator().manual_seed(1)
    obs = torch.randn(3, *agent.spec.obs_shape, generator=draw)
    action = torch.rand(3, agent.spec.action_dim, generator=draw) * 2 - 1
    eps = torch.randn(3, agent.spec.action_dim, generator=draw)
    task = torch.tensor([2, 0, 1]) if kind == "multi" else None
    z = model.encode(obs, task)
    (pi_action, info), target = model.pi(z, task, eps), model.Q(z, action, task, target=True)
    for b in range(3):
        k = None if task is None else int(task[b])
        state = plain.encode(obs[b].numpy(), k)
        expected_action, scaled_entropy = plain.pi(state, k, eps[b].numpy())
        a = action[b].numpy()
        pairs = [
            (z[b], state),
            (model.next(z, action, task)[b], plain.next(state, a, k)),
            (model.reward(z, action, task)[b], plain.reward(state, a, k)),
            (model.termination(z, task)[b], [plain.termination(state, k)]),
            (pi_action[b], expected_action),
            (info["scaled_entropy"][b], [scaled_entropy]),
        ]
        for m in range(3):
            pairs.append((model.Q(z, action, task)[m, b], plain.Q(m, state, a, k)))
            pairs.append((target[m, b], plain.Q(m, state, a, k, target=True)))
        for got, expected in pairs:
            torch.testing.assert_close(
                got.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=2e-4, atol=2e-5
            )


def test_task_ids_broadcast_against_leading_axes_from_the_right(make_agent: Callable[..., TDMPC2]) -> None:
    model = make_agent("multi").model
    z, action, task = torch.rand(5, 2, 16), torch.rand(5, 2, 3), torch.tensor([2, 0])
    together = model.next(z, action, task)
    for t in range(5):
        torch.testing.assert_close(together[t], model.next(z[t], action[t], task))
    assert not torch.allclose(together, model.next(z, action, task.flip(0)), atol=1e-3)


def test_a_multi_task_model_refuses_to_run_without_task_ids(make_agent: Callable[..., TDMPC2]) -> None:
    with pytest.raises(ValueError, match="task ids"):
        make_agent("multi").model.encode(torch.zeros(1, 4))


def test_termination_of_a_model_without_that_head_is_an_error(make_agent: Callable[..., TDMPC2]) -> None:
    with pytest.raises(ValueError, match="episodic"):
        make_agent().model.termination(torch.zeros(1, 16))


def test_pixel_observations_keep_their_leading_axes(make_agent: Callable[..., TDMPC2]) -> None:
    model = make_agent("rgb").model
    obs = torch.randint(256, (2, 3, 9, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    shift = torch.randint(7, (2, 3, 2), generator=torch.Generator().manual_seed(1))
    z = model.encode(obs, None, shift)
    assert z.shape == (2, 3, 64)  # 4 channels x 4 x 4
    torch.testing.assert_close(z[1, 2], model.encode(obs[1, 2:], None, shift[1, 2:])[0])


# --- task embeddings


def test_embeddings_have_norm_at_most_one_when_looked_up(make_agent: Callable[..., TDMPC2]) -> None:
    model = make_agent("multi", task_dim=2).model
    with torch.no_grad():
        model._task_emb.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 1.0]]))
    expected = torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 1.0], [0.6, 0.8]])
    torch.testing.assert_close(model.embedding(torch.tensor([0, 1, 2, 0])), expected)


def test_the_shortening_carries_no_gradient(make_agent: Callable[..., TDMPC2]) -> None:
    # As if the row had been shortened in place beforehand: each entry's gradient is its own, times the factor 1/5,
    # and not that of a projection on the unit circle.
    model = make_agent("multi", task_dim=2).model
    with torch.no_grad():
        model._task_emb.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 1.0]]))
    (model.embedding(torch.tensor([0])) * torch.tensor([1.0, 0.0])).sum().backward()
    torch.testing.assert_close(model._task_emb.grad, torch.tensor([[0.2, 0.0], [0.0, 0.0], [0.0, 0.0]]))


def test_only_looked_up_rows_are_rescaled(make_agent: Callable[..., TDMPC2]) -> None:
    model = make_agent("multi", task_dim=2).model
    rows = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.3, 0.4]])
    with torch.no_grad():
        model._task_emb.copy_(rows)
    model.renormalise_embeddings(torch.tensor([2, 0, 0, 2]))
    torch.testing.assert_close(model._task_emb.detach(), torch.tensor([[0.6, 0.8], [6.0, 8.0], [0.3, 0.4]]))
    assert torch.equal(model._task_emb[1:], rows[1:])  # bit for bit


# --- parameters


def test_every_parameter_belongs_to_the_model_the_policy_or_the_targets(make_agent: Callable[..., TDMPC2]) -> None:
    model = make_agent("multi", episodic=True).model
    owners = [model.model_parameters(), model.policy_parameters(), list(model._target_Qs.parameters())]
    ids = [id(parameter) for group in owners for parameter in group]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in model.parameters()}
    encoder = model.encoder_parameters()
    assert all(a is b for a, b in zip(encoder, model.model_parameters(), strict=False))


def test_targets_move_by_tau(make_agent: Callable[..., TDMPC2]) -> None:
    model = make_agent().model
    q = [parameter.detach().clone() for parameter in model._Qs.parameters()]
    before = [parameter.detach().clone() for parameter in model._target_Qs.parameters()]
    model.move_targets(0.01)
    for start, goal, target in zip(before, q, model._target_Qs.parameters(), strict=True):
        torch.testing.assert_close(target, 0.99 * start + 0.01 * goal, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(q, model._Qs.parameters(), strict=True))


def test_a_latent_length_that_simnorm_cannot_split_is_refused() -> None:
    # 128 is no multiple of 7: the settings do not fit one another.
    with pytest.raises(UserError, match="simnorm_dim"):
        WorldModel(Config(task="walker-walk", model_size=1, simnorm_dim=7), AgentSpec.from_tasks(["walker-walk"]))
