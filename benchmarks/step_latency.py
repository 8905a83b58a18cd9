"""One stream step against the 16-frame clip re-run for every frame, per runtime and precision, in interleaved rounds.

    python benchmarks/step_latency.py [--side 112] [--width 0.5]

Same weights in both: the step form with explicit state, and the clip form of 16 frames exported as a clip model. Their
answers are compared first: the 16th step must give what the clip gives. Fresh weights: latency does not depend on them.
One thread and two threads. Ratios are those of the least disturbed tenth of the calls (p10): machines are shared.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import save
from deploy.bench import bench_calls
from deploy.export import export_bundle
from deploy.runtimes import open_session
from deploy.verify import replay
from toolkit.bundle import Bundle
from toolkit.contract import Contract
from toolkit.preprocess import Preprocess
from toolkit.recipe import StudentConfig
from train.models.student import StreamStudent, build_student

FRAMES = 16
RUNTIMES = ("torch", "onnxruntime", "openvino", "litert")


class ClipForm(torch.nn.Module):
    """The student's clip form behind a clip model's interface: (B, 3, T, H, W) -> last logits (B, K)."""

    def __init__(self, student: StreamStudent) -> None:
        super().__init__()
        self.student = student

    def contract(self) -> Contract:
        """A clip contract of 16 frames."""
        return Contract(kind="clip", frame=self.student.frame, classes=self.student.classes, frames=FRAMES)

    def forward(self, clip_BCTHW: torch.Tensor) -> torch.Tensor:
        """Logits of the last frame."""
        logits: torch.Tensor = self.student(clip_BCTHW.transpose(1, 2))[:, -1]
        return logits


def bundles(side: int, width: float, folder: Path) -> tuple[Bundle, Bundle]:
    """(step, clip) of the same student."""
    torch.manual_seed(0)
    student = build_student(StudentConfig(width=width), 5, (3, side, side), FRAMES).eval()
    common: dict[str, Any] = {
        "name": "latency",
        "labels": tuple("abcde"),
        "preprocess": Preprocess(size=(side, side)),
        "lineage": {},
    }
    rng = np.random.default_rng(0)
    streams = [rng.standard_normal((8, 3, side, side)).astype(np.float32) for _ in range(4)]
    step = export_bundle(
        student, path=folder / "step.vidon", rollouts=streams, golden_frames=streams[0],
        runtimes=RUNTIMES, precisions=("fp32", "int8"), **common,
    )  # fmt: skip
    clip = export_bundle(
        ClipForm(student), path=folder / "clip.vidon", rollouts=[], golden_frames=streams[0],
        runtimes=RUNTIMES, precisions=("fp32",), **common,
    )  # fmt: skip
    return step, clip


def difference(step: Bundle, clip: Bundle, key: str, side: int) -> float:
    """Worst difference between the 16th step and the clip of the same 16 frames, over the largest logit."""
    frames = np.random.default_rng(3).standard_normal((FRAMES, 3, side, side)).astype(np.float32)
    last = replay(open_session(step, key, threads=1), frames)[-1]
    whole = replay(open_session(clip, f"{key.split('-')[0]}-fp32", threads=1), frames)[-1]
    return float(np.abs(last - whole).max() / np.abs(whole).max())


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--width", type=float, default=0.5)
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    frame = rng.standard_normal((1, 3, args.side, args.side)).astype(np.float32)
    rows, data, equal = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        step, clip = bundles(args.side, args.width, Path(folder))
        equal = {artefact.key: difference(step, clip, artefact.key, args.side) for artefact in step.manifest.artefacts}
        for threads in (1, 2):
            calls: dict[str, Callable[[], object]] = {}
            for bundle, kind in ((step, "step"), (clip, "clip")):
                for artefact in bundle.manifest.artefacts:
                    session = open_session(bundle, artefact.key, threads=threads)
                    calls[f"{kind} {artefact.key}"] = lambda session=session: session.step(frame)
            found = bench_calls(calls, 60, 5, f"{threads} threads", block=5, rest_s=0.003)
            data[str(threads)] = {
                name: {**value.as_dict(samples=True), "p10_ms": value.p10_ms} for name, value in found.items()
            }
    for artefact in step.manifest.artefacts:
        row: list[Any] = [artefact.runtime, artefact.precision, f"{equal[artefact.key]:.0e}"]
        for threads in ("1", "2"):
            one = data[threads][f"step {artefact.key}"]
            again = data[threads][f"clip {artefact.runtime}-fp32"]
            row += [f"{one['p50_ms']:.2f} / {one['p10_ms']:.2f}", f"{again['p50_ms']:.1f} / {again['p10_ms']:.1f}",
                    f"{again['p10_ms'] / one['p10_ms']:.1f}x"]  # fmt: skip
        rows.append(row)
    columns = ["runtime", "precision", "step against clip", "step p50 / p10 ms, 1 thread", "16-frame clip", "ratio",
               "step p50 / p10 ms, 2 threads", "16-frame clip", "ratio"]  # fmt: skip
    model = f"Student of width {args.width} at {args.side} px with shift modules"
    caption = f"{model}; the clip is the fp32 file of the same runtime."
    print(
        save(
            "step_latency",
            caption,
            columns,
            rows,
            {"latency": data, "difference": equal, "side": args.side, "width": args.width},
        )
    )


if __name__ == "__main__":
    main()
