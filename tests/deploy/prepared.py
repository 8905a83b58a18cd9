"""The bundle and the rollouts of the conformance suite as files, so that the suite runs where there is no torch.

python -P -m tests.deploy.prepared FOLDER       # where torch and the exporters are
python -P -m pytest tests/deploy/test_{conformance,adapters}.py --prepared FOLDER --adapters litert     # on the board
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from tests.deploy.conftest import PRECISIONS, RUNTIME_NAMES, SIDE, lively_student, streams
from toolkit.bundle import Bundle, open_bundle
from toolkit.preprocess import Preprocess

if TYPE_CHECKING:
    from train.models.student import StreamStudent

__all__ = ["LONG", "Rollouts", "open_prepared", "prepare", "tiny_bundle"]

#: A stream of a thousand frames.
LONG = np.concatenate([streams(4)[index % 4] for index in range(84)])[:1000]
_BUNDLE, _ROLLOUTS = "tiny.vidon", "rollouts.npz"


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What torch's clip form answers (T, K): to a short stream, and to the last 40 frames of the long one."""

    short: np.ndarray
    long: np.ndarray

    @classmethod
    def of(cls, student: "StreamStudent") -> Self:
        """Ask torch."""
        import torch

        with torch.no_grad():
            short, long = (student(torch.from_numpy(f)[None])[0].numpy() for f in (streams(9)[8], LONG[-40:]))
        return cls(short, long)


def tiny_bundle(student: "StreamStudent", path: Path) -> Bundle:
    """Every runtime and precision of the tiny student."""
    from deploy.export import export_bundle

    return export_bundle(
        student, path=path, name="tiny", labels=("a", "b", "c", "d"), preprocess=Preprocess(size=(SIDE, SIDE)),
        rollouts=streams(6), golden_frames=streams(7)[6], runtimes=RUNTIME_NAMES, precisions=PRECISIONS, lineage={},
    )  # fmt: skip


def prepare(folder: Path, student: "StreamStudent", bundle: Bundle | None = None) -> Path:
    """Write both into ``folder``; a bundle that is there already is linked to."""
    if bundle is None:
        tiny_bundle(student, folder / _BUNDLE)
    else:
        (folder / _BUNDLE).symlink_to(bundle.root, target_is_directory=True)
    rollouts = Rollouts.of(student)
    np.savez(folder / _ROLLOUTS, short=rollouts.short, long=rollouts.long)
    return folder


def open_prepared(folder: Path) -> tuple[Bundle, Rollouts]:
    """Read both again."""
    with np.load(folder / _ROLLOUTS, allow_pickle=False) as data:
        return open_bundle(folder / _BUNDLE), Rollouts(data["short"], data["long"])


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), lively_student())
