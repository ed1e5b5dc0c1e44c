"""Functions of tensors, recorded once as a CUDA graph and replayed: one launch instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

WARM_UP = 3
"""Runs before a recording: compilers compile and libraries choose their algorithms in them."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Recorder = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]
"""Takes a function; returns how to replay it, and its outputs, which each replay overwrites."""


def record_cuda_graph(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record a function whose inputs and outputs stay where they are; nothing in it may wait for the device."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph.replay, outputs


class _Recording(NamedTuple):
    inputs: list[Any]
    replay: Callable[[], None]
    outputs: Any


class Recorded(Generic[Arguments, Result]):
    """A function of (named tuples of) tensors, recorded for every set of input shapes it is called with.

    The outputs of a call are overwritten by the next one: copy what must last.

    Args:
        function: what to record. It may change tensors in place, but always the same ones, at the same places.
        changed: those tensors. Warming up and recording run the function; they are set back afterwards.
        recorder: `record_cuda_graph`, or a stand-in for tests without a GPU.
    """

    def __init__(
        self,
        function: Callable[Arguments, Result],
        changed: Callable[[], Sequence[Tensor]],
        recorder: Recorder = record_cuda_graph,
    ) -> None:
        self._function, self._changed, self._recorder = function, changed, recorder
        self._recordings: dict[Any, _Recording] = {}

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """Run the function on these inputs."""
        leaves, structure = pytree.tree_flatten((args, kwargs))
        key = tuple((x.shape, x.dtype) if isinstance(x, Tensor) else x for x in leaves)
        recording = self._recordings.get((structure, key))
        if recording is None:
            recording = self._recordings[structure, key] = self._record(leaves, structure)
        for place, value in zip(recording.inputs, leaves, strict=True):
            if isinstance(value, Tensor):
                place.copy_(value, non_blocking=True)
        recording.replay()
        return recording.outputs

    def _record(self, leaves: list[Any], structure: pytree.TreeSpec) -> _Recording:
        inputs = [x.clone() if isinstance(x, Tensor) else x for x in leaves]
        args, kwargs = pytree.tree_unflatten(inputs, structure)
        changed = self._changed()
        before = [tensor.detach().clone() for tensor in changed]
        replay, outputs = self._recorder(lambda: self._function(*args, **kwargs))
        with torch.no_grad():
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
        return _Recording(inputs, replay, outputs)
