"""Synthetic sweeps with known numbers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tdmpc2.tasks import TASKS

NOW = 1_700_000_000.0
EVAL_HEADER = "env_steps,agent_steps,updates,seconds,task,episodes,return,return_std,success,episode_length"
TRAIN_HEADER = "env_steps,agent_steps,updates,seconds,task,episode,episode_length,return,success,terminated"


@dataclass
class SweepWriter:
    """Writes a sweep's folder, run by run."""

    folder: Path
    plan: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        task: str,
        seed: int,
        points: Sequence[tuple[float, ...]] | None,
        *,
        size: int = 1,
        state: str = "done",
        message: str = "",
        total: int = 3000,
        planned: bool = True,
        config: dict[str, Any] | None = None,
        variant: str = "",
    ) -> Path:
        """One run; `points` are (env_steps, return[, success]); None plans it and writes nothing."""
        name = f"{task}-{size}M{variant}-seed{seed}"
        if planned:
            entry = {"task": task, "model_size": size, "seed": seed, "agent_steps": total // 2, "env_steps": total}
            self._plan({"name": name, **entry})
        run = self.folder / "runs" / name
        if points is None:
            return run
        run.mkdir(parents=True)
        settings = {"task": task, "obs": "state", "model_size": size, "seed": seed, "label": "", **(config or {})}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        last = int(points[-1][0]) if points else 0
        status = {
            "state": state,
            "agent_steps": last // 2,
            "total_agent_steps": total // 2,
            "env_steps": last,
            "total_env_steps": total,
            "seconds": 60.0,
            "message": message,
            "digest": "abc",
            "version": "0.1.0",
            "device": "cpu",
            "hardware": "test machine",
            "updated": NOW,
        }
        (run / "status.json").write_text(json.dumps(status))
        lines = [EVAL_HEADER]
        for steps, value, *success in points:
            lines.append(f"{steps},{steps // 2},0,1.0,{task},10,{value},0.0,{success[0] if success else ''},500")
        (run / "eval.csv").write_text("\r\n".join(lines) + "\r\n")
        train = [TRAIN_HEADER + ",consistency_loss,value_loss"]
        train += [f"1000,500,0,1.0,{task},1,500,10,,False,,", f"2000,1000,500,2.0,{task},2,500,20,,False,0.5,2.5"]
        (run / "train.csv").write_text("\n".join(train) + "\n")
        return run

    def add_multi(
        self,
        tasks: Sequence[str],
        seed: int,
        points: Sequence[tuple[int, Mapping[str, float]]] | None,
        *,
        size: int = 1,
        state: str = "done",
        message: str = "",
        total: int = 2000,
        planned: bool = True,
        data: str = "buffers",
        config: dict[str, Any] | None = None,
    ) -> Path:
        """One offline run; `points` are (updates, value of its own metric by task); None plans it, writes nothing."""
        name = f"{'+'.join(tasks) if len(tasks) <= 3 else f'{len(tasks)}tasks'}-{size}M-seed{seed}"
        if planned:
            entry = {"task": ",".join(tasks), "model_size": size, "seed": seed, "agent_steps": 0, "env_steps": 0}
            self._plan({"name": name, **entry, "updates": total, "kind": "offline"})
        run = self.folder / "runs" / name
        if points is None:
            return run
        run.mkdir(parents=True)
        settings = {
            "task": ",".join(tasks),
            "obs": "state",
            "data": data,
            "model_size": size,
            "seed": seed,
            "label": "",
        }
        (run / "config.yaml").write_text(yaml.safe_dump({**settings, **(config or {})}))
        status = {
            "state": state,
            **dict.fromkeys(("agent_steps", "total_agent_steps", "env_steps", "total_env_steps"), 0),
            "updates": points[-1][0] if points else 0,
            "total_updates": total,
            "seconds": 30.0,
            "message": message,
            "digest": "def",
            "version": "0.1.0",
            "device": "cpu",
            "hardware": "test machine",
            "updated": NOW,
        }
        (run / "status.json").write_text(json.dumps(status))
        lines = [EVAL_HEADER]
        for updates, values in points:
            for task, value in values.items():
                both = f"{value},0.0," if TASKS[task].metric == "return" else f"7.0,0.0,{value}"
                lines.append(f",,{updates},1.0,{task},5,{both},500")
        (run / "eval.csv").write_text("\n".join(lines) + "\n")
        train = ["updates,seconds,consistency_loss,value_loss", "1000,2.0,0.25,1.5", "2000,3.0,0.125,1.25"]
        (run / "train.csv").write_text("\n".join(train) + "\n")
        return run

    def _plan(self, entry: dict[str, Any]) -> None:
        self.plan.append(entry)
        (self.folder / "plan.json").write_text(json.dumps({"name": self.folder.name, "runs": self.plan}))


@pytest.fixture
def writer(tmp_path: Path) -> SweepWriter:
    folder = tmp_path / "results" / "small"
    folder.mkdir(parents=True)
    return SweepWriter(folder)


@pytest.fixture
def published(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    def write(files: dict[str, str]) -> Path:
        folder = tmp_path / "published"
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return folder

    return write
