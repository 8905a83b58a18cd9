"""The model as exporters want it: batch norms folded, one flat step, and rollouts with the states as they occur.

Calibrating int8 on real stream rollouts matters: on zero states or shuffled frames the ranges are wrong and the
signal-to-noise ratio drops by more than 10 dB.
"""

import copy
from typing import Any

import numpy as np

from toolkit.bundle import Golden
from toolkit.contract import Array, Contract
from toolkit.errors import MissingDependency

__all__ = ["Feeds", "feeds_of", "flat_step", "free_batch", "golden_of", "sample_inputs"]

#: One dict of graph inputs per step of a rollout.
Feeds = list[dict[str, Array]]


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("torch", "export") from error
    return torch


def flat_step(model: Any) -> Any:
    """An ``nn.Module`` in eval mode: ``forward(frame, *states) -> (logits, *next states)``, batch norms folded.

    A clip model becomes ``forward(clip) -> (logits,)``. The model itself is not changed.
    """
    torch = _torch()
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    folded = copy.deepcopy(model).eval()
    for module in folded.modules():
        if isinstance(module, torch.nn.Sequential) and len(module) > 1:
            convolution, norm = module[0], module[1]
            if isinstance(convolution, torch.nn.Conv2d) and isinstance(norm, torch.nn.BatchNorm2d):
                module[0], module[1] = fuse_conv_bn_eval(convolution, norm), torch.nn.Identity()
    contract = model.contract()

    class Flat(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = folded

        def forward(self, first: Any, *states: Any) -> Any:
            if contract.kind == "clip":
                return (self.model(first),)
            logits, following = self.model.step(first, list(states))
            return (logits, *following)

    return Flat().eval().requires_grad_(False)


def sample_inputs(contract: Contract, batch: int = 1) -> tuple[Any, ...]:
    """Zero tensors of the graph's input shapes."""
    torch = _torch()
    zeros = [torch.zeros(batch, *state.shape) for state in contract.states]
    return (torch.zeros(batch, *contract.input_shape), *zeros)


def free_batch(contract: Contract) -> tuple[tuple[Any, ...], Any]:
    """(sample inputs, dynamic shapes) for an export whose batch is the free dimension ``batch``.

    The samples have batch 2: torch would take a 1 for a constant.
    """
    batch = _torch().export.Dim("batch", min=1, max=1024)
    first, others = {0: batch}, tuple({0: batch} for _ in contract.states)
    return sample_inputs(contract, 2), (first, others) if others else (first,)


def feeds_of(step: Any, contract: Contract, rollouts: list[Array]) -> Feeds:
    """Run streams (each (T, 3, H, W)) through the float step and collect every step's inputs."""
    torch = _torch()
    feeds: Feeds = []
    with torch.no_grad():
        for frames in rollouts:
            if contract.kind == "clip":
                feeds.append({"clip": clip_of(frames, contract.frames)})
                continue
            states = [torch.from_numpy(zero) for zero in contract.zeros().values()]
            for frame in frames:
                values = [frame[None], *(state.numpy() for state in states)]
                feeds.append({n: np.array(v) for n, v in zip(contract.input_names, values, strict=True)})
                _, *states = step(torch.from_numpy(frame[None].copy()), *states)
    return feeds


def clip_of(frames: Array, count: int) -> Array:
    """(T, 3, H, W) -> (1, 3, count, H, W): the last ``count`` frames, the first repeated if there are fewer."""
    missing = max(0, count - len(frames))
    window = np.concatenate([np.repeat(frames[:1], missing, axis=0), frames])[-count:]
    return np.ascontiguousarray(window.transpose(1, 0, 2, 3)[None])


def golden_of(model: Any, frames: Array) -> Golden:
    """The float model's own answers along one stream (T, 3, H, W)."""
    torch = _torch()
    step, contract = flat_step(model), model.contract()
    answers = []
    with torch.no_grad():
        if contract.kind == "clip":
            for index in range(len(frames)):
                answers.append(step(torch.from_numpy(clip_of(frames[: index + 1], contract.frames)))[0])
        else:
            states = [torch.from_numpy(zero) for zero in contract.zeros().values()]
            for frame in frames:
                logits, *states = step(torch.from_numpy(frame[None].copy()), *states)
                answers.append(logits)
    return Golden(np.ascontiguousarray(frames, np.float32), torch.cat(answers).numpy())
