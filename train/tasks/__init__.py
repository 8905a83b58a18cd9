"""Downstream tasks by name. Adding one is a file and a line here; listing them imports none.

A task is what stands behind an encoder: its head, its loss, its figures of merit and its pictures, all in one file.
Each module has ``make(labels, **settings)``, which returns a frozen object that keeps the ``Task`` protocol.
Shapes: B batch, N examples of a split, D width of the encoder, K classes.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from toolkit.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from train.data.batch import Batch

__all__ = ["TASKS", "Task", "make_task"]

#: name -> module.
TASKS = {
    "classification": "train.tasks.classification",
    "detection": "train.tasks.detection",
    "retrieval": "train.tasks.retrieval",
}


@runtime_checkable
class Task(Protocol):
    """What every task has. ``outputs`` are what the model with this head answers: (B, K) logits, maps, embeddings."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the K classes, in the order of the outputs."""
        ...

    @property
    def chooses(self) -> str:
        """The key of ``metrics`` that picks the best weights on validation; higher is better."""
        ...

    def head(self, width: int) -> "nn.Module":
        """The layer behind an encoder of this width."""
        ...

    def loss(self, batch: "Batch", outputs: Any) -> "Tensor":
        """A scalar to minimise. ``batch`` is as augmented: soft labels and moved boxes are already in it."""
        ...

    def metrics(self, outputs: Any, targets: Any) -> dict[str, Any]:
        """Figures of merit of a whole split, ready for JSON; ``outputs`` and ``targets`` are of its N examples."""
        ...

    def figures(self, folder: Path, outputs: Any, targets: Any) -> tuple[Path, ...]:
        """Write the pictures of a report as PNG files into ``folder`` and return their paths."""
        ...


def make_task(name: str, labels: tuple[str, ...], **settings: Any) -> Task:
    """The task called ``name`` for these classes; ``settings`` are the fields of its own frozen object.

    Raises:
        UserError: unknown name; the nearest is named.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}{nearest(name, TASKS)}; tasks: {', '.join(TASKS)}")
    return cast(Task, importlib.import_module(TASKS[name]).make(labels, **settings))
