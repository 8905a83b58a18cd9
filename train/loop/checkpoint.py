"""One safetensors file per checkpoint, replaced atomically: tensors by name, the history as JSON in its header.

Names are ``model.*``, ``average.*``, ``best.*`` and ``optim.<parameter>.<key>``, whole tensors whatever the number
of processes that wrote them: a run on many GPUs can be continued, or its model loaded, by one process.
"""

import json
import re
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.files import replacing

__all__ = [
    "Checkpoint",
    "foreign",
    "load_optimizer",
    "optimizer_tensors",
    "placed",
    "read",
    "sharded",
    "whole",
    "write",
]


class Checkpoint:
    """What was read: ``history`` and the tensors of each part (model, average, best, optim)."""

    def __init__(self, history: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.history, self._tensors = history, tensors

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part by their own names."""
        start = f"{name}."
        return {key.removeprefix(start): tensor for key, tensor in self._tensors.items() if key.startswith(start)}


def sharded(tensor: Tensor) -> bool:
    """Whether each process holds only a part of the tensor."""
    module = sys.modules.get("torch.distributed.tensor")  # two seconds to import, and only sharded runs need it
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """The full tensor on the CPU; every process must call it for a sharded one."""
    full = tensor.detach()
    full = full.full_tensor() if sharded(full) else full  # type: ignore[attr-defined]
    return full.cpu().contiguous()


def placed(value: Tensor, like: Tensor) -> Tensor:
    """``value`` (whole) on the device and in the shards of ``like``."""
    if not sharded(like):
        return value.to(like.device)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    mesh = like.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, like.placements, src_data_rank=None)


def write(file: Path, parts: Mapping[str, Mapping[str, Tensor]], history: dict[str, Any], main: bool) -> None:
    """Gather the parts from all processes; the main one writes."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for part, named in parts.items():
        for name, tensor in named.items():
            full = whole(tensor)
            if not main:
                continue
            if full.numel() and full.data_ptr() in seen:  # safetensors refuses tied weights
                full = full.clone()
            seen.add(full.data_ptr())
            tensors[f"{part}.{name}"] = full
    if main:
        history = {**history, "crc": _crc(tensors)}
        with replacing(file) as fresh:
            try:
                save_file(tensors, fresh, metadata={"history": json.dumps(history)})
            except SafetensorError as error:  # safetensors 0.8 turns the disk's error into a text
                code = re.search(r"os error (\d+)", str(error))
                if code is None:
                    raise
                raise OSError(int(code[1]), str(error)) from error


def read(file: Path, total: int) -> Checkpoint:
    """Read a checkpoint of a run of ``total`` steps.

    Raises:
        UserError: damaged, or of another run.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            history = json.loads(opened.metadata()["history"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        steps = int(history["total"])
        if history["crc"] != _crc(tensors):
            raise ValueError("its bits have changed on the disk")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise foreign(file, error) from error
    if steps != total:
        raise UserError(
            f"checkpoint {file} is of a run of {steps} steps, this one has {total}: remove it or change --out"
        )
    return Checkpoint(history, tensors)


def _crc(tensors: Mapping[str, Tensor]) -> int:
    """Over all bytes: a single flipped bit would go on training unseen."""
    total = 0
    for name in sorted(tensors):
        values: Any = tensors[name].reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(values, zlib.crc32(name.encode(), total))
    return total


def foreign(file: Path, error: Exception) -> UserError:
    """The error for a checkpoint that does not fit."""
    reason = str(error).splitlines()[0]
    return UserError(f"checkpoint {file} does not belong to this run ({reason}): remove it or change --out")


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimiser's state as ``<parameter>.<key>``."""
    found = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"{name}.{key}"] = value
    return found


def load_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what ``optimizer_tensors`` gave, sharded as the parameters are now."""
    index = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    parameters = dict(model.named_parameters())
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parameter, _, key = name.rpartition(".")
        like = parameters[parameter]
        fits = value.shape == like.shape
        state.setdefault(index[id(like)], {})[key] = placed(value, like) if fits and value.ndim else value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
