"""NPU targets without their hardware: what vendors' compilers estimate, and what their simulators answer.

    python benchmarks/npu.py [FOLDER]      needs: vidon devices setup ethos-u, rockchip, qualcomm, tensorrt-rtx

Trains the demo's student for a few epochs (no teacher; kept in FOLDER), compiles it for every target and plays real
test clips as streams through the compiled files, in simulation. Signal-to-noise and agreement are against torch, on
the frames after the warm-up. No figure here is a time on a device.
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
from toolkit.cli.demo import RECIPE
from toolkit.cli.footage import build_clips
from toolkit.cli.road import export_model
from toolkit.contract import Array
from toolkit.recipe import Recipe, load_recipe
from toolkit.video import read_pictures
from train.data.index import index_clips
from train.models import load_model
from train.stages import distill

TARGETS = ("u55-128", "u55-256", "u65-512", "u85-256", "rk3588", "rk3566", "hexagon-v73", "sm8650", "rtx-sm89")
EPOCHS, CLIPS = 10, 100
_NAMES = {"layers": {"__all__": {"name"}}}  # long, and of no use in a result


def student(folder: Path) -> tuple[Recipe, Path]:
    """The recipe and a trained student, made once."""
    if not (folder / "data").exists():
        build_clips(folder / "data")
    recipe = load_recipe(RECIPE, (f"data.root={folder / 'data'}", f"distill.epochs={EPOCHS}"))
    return recipe, distill(recipe, folder / "model")


def test_streams(recipe: Recipe) -> list[Array]:
    """Test clips, evenly chosen, as normalised streams (T, 3, H, W)."""
    clips = index_clips(recipe.data.root).split("test")
    chosen = [clips[round(index)] for index in np.linspace(0, len(clips) - 1, CLIPS)]
    return [recipe.preprocess.normalise(read_pictures(clip.path, recipe.preprocess)) for clip in chosen]


def play(bundle: Bundle, artefact: Artefact, streams: list[Array], wanted: list[Array]) -> VerifyResult:
    """Every stream from zero state through the compiled artefact, or what stands in for it."""
    session = open_session(bundle, artefact.key, device=available(artefact.runtime).devices[0])
    try:
        warmup = session.contract.warmup
        got = [replay(session, frames)[warmup:] for frames in streams]
    finally:
        session.close()
    return compare(artefact.key, np.concatenate(got), np.concatenate([logits[warmup:] for logits in wanted]))


def row(artefact: Artefact, played: VerifyResult, estimate: Estimate | None) -> list[Any]:
    """One line of the table."""

    def known(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    cpu = "none (refused otherwise)" if artefact.runtime == "qnn" else ""
    if estimate is not None:
        cpu = ", ".join(estimate.left_on_cpu) or "none"
    figures = [estimate.inference_ms, estimate.sram_kib, estimate.flash_kib] if estimate is not None else [None] * 3
    return [
        artefact.target, artefact.runtime, artefact.evidence, f"{played.decibels:.1f}", f"{played.agreement:.1%}", cpu,
        known(figures[0], ".3f"), known(None if estimate is None else estimate.cycles, ",d"), known(figures[1], ".0f"),
        known(figures[2], ".0f"), f"{artefact.metrics['size_bytes'] / 1024:.0f}",
    ]  # fmt: skip


def main() -> None:
    """Compile, play, and write the result."""
    torch.set_num_threads(1)
    for name in ("ethos-u", "rockchip", "qualcomm", "tensorrt-rtx"):
        python_of(TOOLS[name])
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "vidon-npu").resolve()
    recipe, trained = student(folder)
    model = load_model(trained).model
    bundle = export_model(recipe, trained, folder / "npu.vidon", (), ("int8",), TARGETS)
    streams = test_streams(recipe)
    wanted = [golden_of(model, frames).logits for frames in streams]
    rows, data = [], {}
    for artefact in bundle.manifest.artefacts:
        played = play(bundle, artefact, streams, wanted)
        estimate = load_estimate(bundle.root / artefact.folder)
        rows.append(row(artefact, played, estimate))
        data[artefact.key] = {
            "played": played.as_dict(), "metrics": artefact.metrics, "evidence": artefact.evidence,
            "estimate": None if estimate is None else estimate.model_dump(mode="json", exclude=_NAMES),
        }  # fmt: skip
    columns = ["target", "runtime", "answers", "SNR, dB", "agreement", "left to the processor", "estimated ms",
               "estimated cycles", "SRAM, KiB", "flash, KiB", "file, KiB"]  # fmt: skip
    parameters = sum(weight.numel() for weight in flat_step(model).parameters())
    size = recipe.preprocess.size
    frames = sum(len(stream) for stream in streams)
    caption = (
        f"Student of {parameters / 1e3:.0f} k parameters at {size[0]}x{size[1]}, {frames} frames of {len(streams)} "
        "test clips. Nothing ran on a device: answers are simulated (Ethos-U: the int8 file that Vela takes, played by "
        "LiteRT) or of the integer source of what was only compiled (TensorRT-RTX); milliseconds, cycles and memory "
        "are vendor-estimated."
    )
    data["tools"] = {tool.name: tool.version for tool in TOOLS.values()}
    print(save("npu", caption, columns, rows, data, evidence="simulated, compiled, vendor-estimated"))


if __name__ == "__main__":
    main()
