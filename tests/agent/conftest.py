"""Tiny agents, and a slow second implementation of the networks to hold the fast one against."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tdmpc2.agent.agent import TDMPC2
from tdmpc2.agent.world_model import WorldModel
from tdmpc2.config import Config
from tdmpc2.spec import AgentSpec

TINY = {
    "model_size": 1,
    "enc_dim": 16,
    "mlp_dim": 16,
    "latent_dim": 16,
    "num_q": 3,
    "num_samples": 32,
    "num_elites": 8,
    "num_pi_trajs": 4,
    "batch_size": 4,
    "device": "cpu",
}
SINGLE = AgentSpec(obs_shape=(3,), action_dims=(2,), episode_lengths=(500,), tasks=("walker-walk",))
# Discounts by ALGORITHM section 4: T/5 = 100, 20 and 200, so 0.99, 0.95 and 0.995.
MULTI = AgentSpec(obs_shape=(4,), action_dims=(3, 1, 2), episode_lengths=(500, 100, 1000), tasks=("a", "b", "c"))
PIXELS = AgentSpec(obs_shape=(9, 64, 64), action_dims=(2,), episode_lengths=(500,), tasks=("walker-walk",), obs="rgb")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Products this small are slower on several threads, many times so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def specs() -> dict[str, AgentSpec]:
    return {"single": SINGLE, "multi": MULTI, "rgb": PIXELS}


@pytest.fixture(scope="session")
def make_config() -> Callable[..., Config]:
    """Makes a config of tiny widths; arguments override them."""

    def make(**changes: Any) -> Config:
        return Config(**({"task": "walker-walk"} | TINY | changes))

    return make


@pytest.fixture(scope="session")
def make_agent(make_config: Callable[..., Config], specs: Mapping[str, AgentSpec]) -> Callable[..., TDMPC2]:
    """Makes a tiny agent of a kind: single, multi or rgb. All its weights are drawn anew unless `fresh`."""

    def make(kind: str = "single", fresh: bool = False, **changes: Any) -> TDMPC2:
        if kind == "rgb":
            changes = {"obs": "rgb", "latent_dim": None, "num_channels": 4, "num_samples": 8, "num_elites": 4} | changes
        agent = TDMPC2(make_config(**changes), specs[kind])
        if not fresh:
            scramble(agent.model)
        return agent

    return make


@pytest.fixture(scope="session")
def make_batch(specs: Mapping[str, AgentSpec]) -> Callable[..., dict[str, torch.Tensor]]:
    """Makes a random batch of `size` sequences of 3 steps for a kind of agent."""

    def make(kind: str = "single", size: int = 4, seed: int = 0, terminated: bool = False) -> dict[str, torch.Tensor]:
        spec = specs[kind]
        draw = torch.Generator().manual_seed(seed)
        obs = torch.randn(4, size, *spec.obs_shape, generator=draw)
        if kind == "rgb":
            obs = torch.randint(256, obs.shape, generator=draw, dtype=torch.uint8)
        batch = {
            "obs": obs,
            "action": torch.rand(3, size, spec.action_dim, generator=draw) * 2 - 1,
            "reward": torch.randn(3, size, 1, generator=draw) * 3,
        }
        if spec.multitask:
            batch["task"] = torch.arange(size) * 2 % 3
        if terminated:
            batch["terminated"] = (torch.rand(3, size, 1, generator=draw) < 0.4).float()
        return batch

    return make


def scramble(model: WorldModel, seed: int = 0) -> None:
    """Draw all parameters anew, so that no output is constant, no two Qs agree and no LayerNorm is the identity."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.copy_(1 + 0.2 * noise if name.endswith("ln.weight") else 0.4 * noise)


class PlainModel:
    """A world model by ALGORITHM sections 2 to 4, one vector at a time in float64, from the weights alone."""

    def __init__(self, model: WorldModel) -> None:
        self.weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
        self.dims = model.spec.action_dims if model.spec.multitask else None
        self.A = model.spec.action_dim
        self.gammas = [min(max((T / 5 - 1) / (T / 5), 0.95), 0.995) for T in model.spec.episode_lengths]
        self.bins = np.array([-10 + 0.2 * i for i in range(101)])

    def _layer(self, x: np.ndarray, name: str, member: int | None, activation: str | None, keep: Any = 1.0) -> Any:
        def weight(suffix: str) -> np.ndarray:
            array = self.weights[f"{name}.{suffix}"]
            return array if member is None else array[member]

        y = (weight("weight") @ x + weight("bias")) * keep
        if activation is None:
            return y
        y = (y - y.mean()) / np.sqrt(((y - y.mean()) ** 2).mean() + 1e-5) * weight("ln.weight") + weight("ln.bias")
        if activation == "mish":
            return y * np.tanh(np.log1p(np.exp(y)))
        return np.concatenate([np.exp(group) / np.exp(group).sum() for group in np.split(y, len(y) // 8)])

    def _mlp(
        self, x: np.ndarray, name: str, last: str | None = None, member: int | None = None, keep: Any = 1.0
    ) -> Any:
        depth = len({key.removeprefix(f"{name}.").split(".")[0] for key in self.weights if key.startswith(f"{name}.")})
        for i in range(depth - 1):
            x = self._layer(x, f"{name}.{i}", member, "mish", keep if i == 0 else 1.0)
        return self._layer(x, f"{name}.{depth - 1}", member, last)

    def _join(self, x: np.ndarray, task: int | None, *action: np.ndarray) -> np.ndarray:
        parts = [x]
        if self.dims is not None:
            row = self.weights["_task_emb"][task]
            parts.append(row / max(1.0, np.sqrt((row**2).sum())))
        return np.concatenate([*parts, *action])

    def mask(self, task: int | None) -> np.ndarray:
        return np.array([1.0 if self.dims is None or i < self.dims[task] else 0.0 for i in range(self.A)])

    def gamma(self, task: int | None) -> float:
        return self.gammas[0 if task is None else task]

    def encode(self, obs: np.ndarray, task: int | None) -> np.ndarray:
        return self._mlp(self._join(obs, task), "_encoder", "simnorm")

    def next(self, z: np.ndarray, action: np.ndarray, task: int | None) -> np.ndarray:
        return self._mlp(self._join(z, task, action), "_dynamics", "simnorm")

    def reward(self, z: np.ndarray, action: np.ndarray, task: int | None) -> np.ndarray:
        return self._mlp(self._join(z, task, action), "_reward")

    def termination(self, z: np.ndarray, task: int | None) -> float:
        return float(self._mlp(self._join(z, task), "_termination")[0])

    def Q(  # noqa: N802  # the field's name
        self, member: int, z: np.ndarray, action: np.ndarray, task: int | None, target: bool = False, keep: Any = 1.0
    ) -> np.ndarray:
        name = "_target_Qs.layers" if target else "_Qs.layers"
        return self._mlp(self._join(z, task, action), name, None, int(member), keep)

    def pi(self, z: np.ndarray, task: int | None, eps: np.ndarray) -> tuple[np.ndarray, float]:
        """The sampled action and the scaled entropy."""
        out, mask = self._mlp(self._join(z, task), "_pi"), self.mask(task)
        mean, raw = out[: self.A] * mask, out[self.A :]
        log_std = (-10 + 6 * (np.tanh(raw) + 1)) * mask
        eps = eps * mask
        action = np.tanh(mean + eps * np.exp(log_std))
        gaussian = (-(eps**2) / 2 - log_std - np.log(2 * np.pi) / 2).sum()
        log_prob = gaussian - np.log(np.maximum(1 - action**2, 0) + 1e-6).sum()
        own_dims = self.A if self.dims is None else self.dims[task]
        return action, float(-log_prob * (gaussian * own_dims) / (log_prob + 1e-8))

    def decode(self, logits: np.ndarray) -> float:
        weights = np.exp(logits - logits.max())
        x = (weights / weights.sum() * self.bins).sum()
        return float(np.sign(x) * (np.exp(abs(x)) - 1))

    def cross_entropy(self, logits: np.ndarray, value: float) -> float:
        """-log-probability of a scalar: its two neighbouring bins', by its distance from each."""
        log_prob = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        position = (min(max(np.sign(value) * np.log(1 + abs(value)), -10), 10) + 10) / 0.2
        below = min(int(np.floor(position)), 99)
        return float(-(log_prob[below] * (below + 1 - position) + log_prob[below + 1] * (position - below)))


@pytest.fixture(scope="session")
def plain_model() -> type[PlainModel]:
    return PlainModel
