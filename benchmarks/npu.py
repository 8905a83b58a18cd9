"""NPU targets without their hardware: what vendors' compilers estimate, and what their simulators answer.

    python benchmarks/npu.py [FOLDER]      needs: vidon devices setup ethos-u, rockchip, qualcomm, tensorrt-rtx

Takes the demo's distilled and pruned student (FOLDER is a demo's, run or finished here if it is not there), compiles
it for every target and plays real test clips as streams through the compiled files, in simulation. Signal-to-noise and
agreement are against torch, on the frames after the warm-up; accuracy is of whole clips. No figure here is a time on a
device.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import save
from deploy.estimate import Estimate, load_estimate
from deploy.export.step import flat_step, golden_of
from deploy.runtimes import available, open_session
from deploy.verify import VerifyResult, compare, replay
from devices.tools import TOOLS, python_of
from toolkit.bundle import Artefact, Bundle
from toolkit.cli.demo import Demo
from toolkit.cli.road import export_model
from toolkit.contract import Array, clip_answer
from toolkit.recipe import Recipe
from toolkit.video import read_pictures
from train.data.index import index_clips
from train.models import load_model

TARGETS = ("u55-128", "u55-256", "u65-512", "u85-256", "rk3588", "rk3566", "hexagon-v73", "sm8650", "rtx-sm89")
CLIPS = 100
_NAMES = {"layers": {"__all__": {"name"}}}  # long, and of no use in a result


def test_streams(recipe: Recipe) -> tuple[list[Array], list[int]]:
    """Test clips, evenly chosen, as normalised streams (T, 3, H, W), and their labels as indices."""
    index = index_clips(recipe.data.root)
    clips = index.split("test")
    chosen = [clips[round(place)] for place in np.linspace(0, len(clips) - 1, CLIPS)]
    streams = [recipe.preprocess.normalise(read_pictures(clip.path, recipe.preprocess)) for clip in chosen]
    return streams, [index.labels.index(clip.label) for clip in chosen]


def play(bundle: Bundle, artefact: Artefact, streams: list[Array]) -> list[Array]:
    """Every stream from zero state through the compiled artefact, or what stands in for it: logits (T, K) of each."""
    session = open_session(bundle, artefact.key, device=available(artefact.runtime).devices[0])
    try:
        return [replay(session, frames) for frames in streams]
    finally:
        session.close()


def judge(key: str, got: list[Array], wanted: list[Array], warmup: int) -> VerifyResult:
    """Against torch, on the frames after the warm-up."""
    mine, theirs = (np.concatenate([logits[warmup:] for logits in one]) for one in (got, wanted))
    return compare(key, mine, theirs)


def accuracy(answers: list[Array], truth: list[int], warmup: int) -> float:
    """Share of the clips that are named rightly."""
    return float(
        np.mean([clip_answer(one, warmup).argmax() == label for one, label in zip(answers, truth, strict=True)])
    )


def row(artefact: Artefact, played: VerifyResult, right: float, estimate: Estimate | None) -> list[Any]:
    """One line of the table."""

    def known(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    cpu = "none (refused otherwise)" if artefact.runtime == "qnn" else ""
    if estimate is not None:
        cpu = ", ".join(estimate.left_on_cpu) or "none"
    figures = [estimate.inference_ms, estimate.sram_kib, estimate.flash_kib] if estimate is not None else [None] * 3
    return [
        artefact.target, artefact.runtime, artefact.evidence, f"{played.decibels:.1f}", f"{played.agreement:.1%}",
        f"{right:.3f}", cpu, known(figures[0], ".3f"), known(None if estimate is None else estimate.cycles, ",d"),
        known(figures[1], ".0f"), known(figures[2], ".0f"), f"{artefact.metrics['size_bytes'] / 1024:.0f}",
    ]  # fmt: skip


def main() -> None:
    """Compile, play, and write the result."""
    torch.set_num_threads(1)
    for name in ("ethos-u", "rockchip", "qualcomm", "tensorrt-rtx"):
        python_of(TOOLS[name])
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "vidon-npu").resolve()
    demo = Demo(folder)
    demo.run()
    recipe, trained = demo.recipe, folder / "pruned"
    model = load_model(trained).model
    bundle = export_model(recipe, trained, folder / "npu.vidon", (), ("int8",), TARGETS)
    warmup = bundle.manifest.contract.warmup
    streams, truth = test_streams(recipe)
    wanted = [golden_of(model, frames).logits for frames in streams]
    rows, data = [], {}
    for artefact in bundle.manifest.artefacts:
        answers = play(bundle, artefact, streams)
        played, right = judge(artefact.key, answers, wanted, warmup), accuracy(answers, truth, warmup)
        estimate = load_estimate(bundle.root / artefact.folder)
        rows.append(row(artefact, played, right, estimate))
        data[artefact.key] = {
            "played": played.as_dict(), "accuracy": right, "metrics": artefact.metrics, "evidence": artefact.evidence,
            "estimate": None if estimate is None else estimate.model_dump(mode="json", exclude=_NAMES),
        }  # fmt: skip
    columns = ["target", "runtime", "answers", "SNR, dB", "agreement", "accuracy", "left to the processor",
               "estimated ms", "estimated cycles", "SRAM, KiB", "flash, KiB", "file, KiB"]  # fmt: skip
    parameters = sum(weight.numel() for weight in flat_step(model).parameters())
    size = recipe.preprocess.size
    frames = sum(len(stream) for stream in streams)
    known = f"{accuracy(wanted, truth, warmup):.1%}"
    caption = (
        f"The demo's pruned student: {parameters / 1e3:.0f} k parameters at {size[0]}x{size[1]}; {frames} frames of "
        f"{len(streams)} test clips, of which torch names {known} rightly. Nothing ran on a device: answers are "
        "simulated (Ethos-U: the int8 file that Vela takes, played by LiteRT) or of the integer source of what was "
        "only compiled (TensorRT-RTX); milliseconds, cycles and memory are vendor-estimated."
    )
    data["tools"] = {tool.name: tool.version for tool in TOOLS.values()}
    print(save("npu", caption, columns, rows, data, evidence="simulated, compiled, vendor-estimated"))


if __name__ == "__main__":
    main()
