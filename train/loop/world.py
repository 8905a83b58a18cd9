"""The processes and the device of a run, and the model wrapped for them: Accelerate's DDP, FSDP2 and bf16.

A loss is free to call any method of the model. So not the model itself is wrapped but ``Within``, a module whose
forward calls the function that it is given: gradients are reduced and shards gathered all the same.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    InitProcessGroupKwargs,
)
from torch import Tensor, nn

from toolkit.errors import UnavailableDevice, UserError
from toolkit.recipe import RunConfig
from train.loop.blocks import blocks_of, compile_in_place, need_compiler, recompute
from train.loop.checkpoint import sharded, whole

__all__ = ["World", "is_main", "launched", "main_first", "wait_for_all"]

T = TypeVar("T")


def launched() -> bool:
    """Whether this process is one of several (``--processes``, torchrun, accelerate launch)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Whether this process writes the results."""
    return int(os.environ.get("RANK", "0")) == 0 or not launched()


def wait_for_all() -> None:
    """Let every process come here before any goes on."""
    if launched() and torch.distributed.is_initialized():
        torch.distributed.barrier()


@contextlib.contextmanager
def main_first(run: RunConfig) -> Iterator[None]:
    """Run the block in the main process before the others: what it caches they find."""
    if launched():
        _accelerator(run, None)
        if not is_main():
            wait_for_all()
    yield
    if launched() and is_main():
        wait_for_all()


class Within(nn.Module):
    """Holds ``model`` and calls any function inside its own forward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return ``function(*arguments)``."""
        return function(*arguments)


class World:
    """One model on this run's device and processes; ``close`` gives it back whole, on the CPU, as it was."""

    def __init__(self, run: RunConfig, model: nn.Module, beside: tuple[nn.Module, ...] = ()) -> None:
        self._model, self._beside = model, beside
        self._undo: list[Callable[[], None]] = []
        self.accelerator = _accelerator(run, model)
        self.device: torch.device = self.accelerator.device
        self.processes: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index
        self.main: bool = self.accelerator.is_main_process
        self._shards: bool = self.accelerator.is_fsdp2
        for module in (model, *beside):
            module.to(self.device)
        if self._shards:  # torch 2.13 cuts contiguous weights only
            model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for module in beside:
            module.eval().requires_grad_(False)
        if run.compile:
            need_compiler(self.device)
            self._undo.append(compile_in_place(blocks_of(model) or [model]))
        if run.checkpointing:
            self._undo += [recompute(block) for block in blocks_of(model)]
        self._within: nn.Module = Within(model)

    def wrap(self, optimizer: torch.optim.Optimizer) -> None:
        """Wrap the model; the optimiser's parameters become the shards."""
        self._within, _ = self.accelerator.prepare(self._within, optimizer)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call ``function`` with the model's weights gathered and the run's precision."""
        with self.accelerator.autocast():
            answer: T = self._within(function, *arguments)
        return answer

    def part(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around forward and backward of one part of a batch: only the last exchanges gradients."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self._within)

    def clip(self, bound: float) -> Tensor:
        """Clip the gradients' norm to ``bound`` (0: only measure it) and return what it was."""
        parameters = [p for p in self._model.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, bound if bound > 0 else float("inf"))
        return norm.full_tensor() if sharded(norm) else norm  # type: ignore[attr-defined]

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes."""
        if self.processes == 1:
            return values
        reduced: Tensor = self.accelerator.reduce(values, "mean")
        return reduced

    def reshard(self) -> None:
        """Forget gathered weights, after the shards were changed by hand."""
        if not self._shards:
            return
        from torch.distributed.fsdp import FSDPModule

        for module in self._within.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def close(self) -> None:
        """Give the model back: whole, plain, on the CPU."""
        self.reshard()
        for undo in reversed(self._undo):
            undo()
        if self._shards:
            _unshard(self._within)
        for module in (self._model, *self._beside):
            module.to("cpu")
        self.accelerator.free_memory()


def _accelerator(run: RunConfig, model: nn.Module | None) -> Accelerator:
    """An Accelerator for this run; an earlier one of this process is forgotten, its process group is kept."""
    if run.device == "cuda" and not torch.cuda.is_available():
        raise UnavailableDevice('run.device is cuda, but torch sees no GPU here: use run.device = "cpu" or "auto"')
    cards, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if run.device != "cpu" and torch.cuda.is_available() and local >= cards:
        raise UnavailableDevice(
            f"process {local + 1} finds no GPU of its own, there are {cards}: use --processes {cards}"
        )
    _forget()
    cpu = run.device == "cpu" or not torch.cuda.is_available()
    plugin = _sharding(run, model) if run.strategy == "fsdp2" and launched() and model is not None else None
    handlers = [
        DistributedDataParallelKwargs(find_unused_parameters=True),  # a pretraining loss leaves the head out
        InitProcessGroupKwargs(timeout=datetime.timedelta(hours=2)),  # the main process may decode for long
    ]
    before = os.environ.get("ACCELERATE_USE_FSDP")
    accelerator = Accelerator(
        cpu=cpu, mixed_precision="bf16" if run.precision == "bf16" else "no", fsdp_plugin=plugin,
        kwargs_handlers=handlers, step_scheduler_with_optimizer=False,
    )  # fmt: skip
    if before is None:
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # it would make every later run one of FSDP
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate 1.15 has FSDP2 on gloo, but drops the plugin when there is no accelerator device.
        for state in (AcceleratorState._shared_state, PartialState._shared_state):
            state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = plugin
    return accelerator


def _forget() -> None:
    AcceleratorState._reset_state()
    shared = PartialState._shared_state
    if shared.get("distributed_type") == DistributedType.FSDP:  # set by an earlier run: Accelerate would keep it
        gpu = shared["device"].type == "cuda"
        shared["distributed_type"] = DistributedType.MULTI_GPU if gpu else DistributedType.MULTI_CPU


def _sharding(run: RunConfig, model: nn.Module) -> FullyShardedDataParallelPlugin:
    """Shard by repeated block. Weights are gathered in bf16 unless batch norms need float weights."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    if any(getattr(getattr(module, "config", None), "merge", 0) for module in model.modules()):
        raise UserError(
            'teacher.merge works inside the blocks, which run.strategy = "fsdp2" holds in shards: train with merge = 0 '
            '(it can be set afterwards) or with strategy = "ddp"'
        )
    kinds = sorted({type(block).__name__ for block in blocks_of(model)})
    normed = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    narrow = torch.bfloat16 if run.precision == "bf16" and not normed else None
    return FullyShardedDataParallelPlugin(
        fsdp_version=2, reshard_after_forward=True, state_dict_type="FULL_STATE_DICT",
        auto_wrap_policy="transformer_based_wrap" if kinds else "no_wrap", transformer_cls_names_to_wrap=kinds or None,
        mixed_precision_policy=MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32),
    )  # fmt: skip


def _unshard(within: nn.Module) -> None:
    """Turn FSDP2's modules back into plain ones in place (torch 2.13 has no public way back)."""
    from torch.distributed.fsdp import FSDPModule

    for module in within.modules():
        if isinstance(module, FSDPModule):
            state: Any = module._get_fsdp_state()
            state._pre_forward_hook_handle.remove()
            state._post_forward_hook_handle.remove()
            module.__class__ = type(module).__mro__[module._orig_cls_mro_index]
    for module in within.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and sharded(parameter):
                module._parameters[name] = nn.Parameter(whole(parameter), requires_grad=parameter.requires_grad)
