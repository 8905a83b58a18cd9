"""The repeated layers of a model, and what is done to each in place: recomputing, compiling.

Both return the way back, so that the trained model is the plain one that was given.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from toolkit.errors import UserError

__all__ = ["blocks_of", "compile_in_place", "need_compiler", "recompute"]

_VERSIONS = 8  # of each block's code: sizes of parts, precisions


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated layers: neighbours of one composite class in a list or sequence."""
    found: list[nn.Module] = []
    for parent in model.modules():
        children = list(parent.children())
        if isinstance(parent, nn.ModuleList | nn.Sequential) and len(children) > 1:
            kind = type(children[0])
            if all(type(child) is kind and any(child.children()) for child in children):
                found += [child for child in children if child not in found]
    inner = {id(part) for block in found for part in block.modules() if part is not block}
    return [block for block in found if id(block) not in inner]


def recompute(block: nn.Module) -> Callable[[], None]:
    """Recompute the block's activations in the backward pass (Chen et al. 2016, arXiv:1604.06174)."""
    forward = block.forward
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    def contexts() -> tuple[contextlib.AbstractContextManager[Any], contextlib.AbstractContextManager[Any]]:
        return contextlib.nullcontext(), _still(norms)

    def lean(*arguments: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments, **options)
        return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **options)

    before = vars(block).get("forward")
    block.forward = lean

    def undo() -> None:
        if before is None:
            del block.forward
        else:
            block.forward = before

    return undo


@contextlib.contextmanager
def _still(norms: list[Any]) -> Iterator[None]:
    """Keep batch norms from counting a recomputed batch twice."""
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def compile_in_place(blocks: Sequence[nn.Module]) -> Callable[[], None]:
    """Compile the blocks' training pass; their names and their state stay as they are.

    Evaluation goes uncompiled: for batches of other sizes, without gradients, all would be compiled once more.
    """
    from torch._dynamo import config

    limits = config.recompile_limit, config.accumulated_recompile_limit
    # Blocks of one class share a limit of 8 versions, beyond which torch stops compiling without an error.
    config.recompile_limit = max(limits[0], _VERSIONS * len(blocks))
    config.accumulated_recompile_limit = max(limits[1], _VERSIONS * len(blocks))
    undos = [_compile(block) for block in blocks]

    def undo() -> None:
        config.recompile_limit, config.accumulated_recompile_limit = limits
        for each in undos:
            each()

    return undo


def _compile(block: nn.Module) -> Callable[[], None]:
    plain = block.forward
    fast = torch.compile(plain, dynamic=False)  # blocks of other shapes, not other shapes of a block

    def forward(*arguments: Any, **options: Any) -> Any:
        return (fast if block.training else plain)(*arguments, **options)

    block.forward = forward
    return lambda: delattr(block, "forward")


def need_compiler(device: torch.device) -> None:
    """Refuse early, and in one line, what torch would refuse late and in a hundred.

    Raises:
        UserError: there is no compiler for this device's code.
    """
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, RuntimeError) as error:
            raise UserError(
                "run.compile = true needs a C++ compiler and finds none: install g++ (or name one in CXX), or set "
                "run.compile = false"
            ) from error
