"""A benchmark and analysis workbench for TD-MPC2."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tdmpc2.config import Config
from tdmpc2.errors import UserError
from tdmpc2.spec import AgentSpec
from tdmpc2.tasks import TASK_SETS, TASKS

if TYPE_CHECKING:
    from tdmpc2.agent.agent import TDMPC2
    from tdmpc2.envs.make import make_env

__version__ = "0.1.0"
__all__ = ["TASKS", "TASK_SETS", "TDMPC2", "AgentSpec", "Config", "UserError", "make_env"]

# torch and the simulators take seconds to import: each is loaded when it is first asked for.
_LAZY = {"TDMPC2": "tdmpc2.agent.agent", "make_env": "tdmpc2.envs.make"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'tdmpc2' has no attribute {name!r}")
