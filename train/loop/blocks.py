"""The repeated layers of a model, and what is done to each in place: recomputing, compiling.

Both return the way back, so that the trained model is the plain one that was given.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["blocks_of", "compile_in_place", "recompute"]


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

    block.forward = lean
    return lambda: delattr(block, "forward")


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


def compile_in_place(block: nn.Module) -> Callable[[], None]:
    """Compile the block's forward; its name and its state stay as they are."""
    block.compile()

    def undo() -> None:
        block._compiled_call_impl = None

    return undo
