"""PyTorch's own exported program (``.pt2``): graph as JSON, weights as raw bytes; no sample inputs."""

from pathlib import Path
from typing import Any

from deploy.export.step import free_batch
from toolkit.contract import Contract
from toolkit.errors import MissingDependency

__all__ = ["float_torch"]


def float_torch(step: Any, contract: Contract, path: Path) -> None:
    """Export and save the step; its batch is free."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("torch", "export") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    samples, shapes = free_batch(contract)
    program = torch.export.export(step, samples, dynamic_shapes=shapes)
    program.example_inputs = None  # they would be stored with pickle
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # source lines and paths of the exporting machine
    torch.export.save(program, str(path))
