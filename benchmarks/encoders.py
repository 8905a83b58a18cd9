"""Parameters, multiply-accumulates and one forward pass of every encoder at its paper's input.

    python benchmarks/encoders.py [--rounds 2]

Sizes are counted on the meta device and checked against torch's own FLOP counter. Fresh weights: time does not depend
on them. One clip, one thread, float32, interleaved rounds, in processor time: other work on the machine does not
count.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import cpu_seconds, save
from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig
from train.macs import Size, measure
from train.models.registry import make_encoder
from train.models.store import ClipModel

#: (encoder, settings, frames, side, classes, paper).
CASES: tuple[tuple[str, dict[str, Any], int, int, int, str], ...] = (
    ("c3d", {}, 16, 112, 101, "Tran et al. 2015, arXiv:1412.0767"),
    ("i3d", {}, 64, 224, 400, "Carreira and Zisserman 2017, arXiv:1705.07750"),
    ("r2plus1d", {}, 16, 112, 400, "Tran et al. 2018, arXiv:1711.11248"),
    ("vit", {}, 16, 112, 400, "Arnab et al. 2021, arXiv:2103.15691 (a small one)"),
    ("vit-s", {}, 16, 224, 400, "Tong et al. 2022, arXiv:2203.12602"),
    ("vit-b", {}, 16, 224, 400, "Tong et al. 2022, arXiv:2203.12602"),
    ("vit-b", {"attention": "divided"}, 16, 224, 400, "Bertasius et al. 2021, arXiv:2102.05095"),
    ("vit-l", {}, 16, 224, 400, "Tong et al. 2022, arXiv:2203.12602"),
    ("x3d-xs", {}, 4, 160, 400, "Feichtenhofer 2020, arXiv:2004.04730"),
    ("x3d-s", {}, 13, 160, 400, "Feichtenhofer 2020, arXiv:2004.04730"),
    ("x3d-m", {}, 16, 224, 400, "Feichtenhofer 2020, arXiv:2004.04730"),
    ("x3d-l", {}, 16, 312, 400, "Feichtenhofer 2020, arXiv:2004.04730"),
)


def make(name: str, settings: dict[str, Any], frames: int, side: int, classes: int) -> ClipModel:
    """A fresh encoder on the current device."""
    config = TeacherConfig.model_validate({"encoder": name, **settings})
    return make_encoder(config, classes, Preprocess(size=(side, side)), frames).eval()


def counted(model: ClipModel) -> Size:
    """The size of a model on the meta device, by two counters that must agree."""
    size = measure(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *model.contract().input_shape, device="meta"))
    if counter.get_total_flops() != 2 * size.macs:
        raise SystemExit(f"the counters disagree: {size.macs} MACs, {counter.get_total_flops()} FLOPs")
    return size


def _giga(count: int) -> str:
    return f"{count / 1e9:.{2 if count < 1e10 else 1}f}"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes: dict[str, Size] = {}
    calls: dict[str, Callable[[], object]] = {}
    for name, settings, frames, side, classes, _ in CASES:
        key = " ".join([name, *settings.values()])
        with torch.device("meta"):
            sizes[key] = counted(make(name, settings, frames, side, classes))
        model = make(name, settings, frames, side, classes)
        clip = torch.randn(1, 3, frames, side, side)
        calls[key] = torch.inference_mode()(lambda model=model, clip=clip: model(clip))
    times = cpu_seconds(calls, args.rounds)
    rows: list[list[Any]] = []
    for (_, _, frames, side, classes, paper), (key, size) in zip(CASES, sizes.items(), strict=True):
        rows.append([
            f"`{key}`", f"{frames}x{side}x{side}", classes, f"{size.parameters / 1e6:.1f}", _giga(size.macs),
            f"{min(times[key]):.2f}", paper,
        ])  # fmt: skip
    columns = ["encoder", "input", "classes", "parameters, M", "GMACs a clip", "forward, CPU s", "paper"]
    caption = (
        "The literature calls 1 MAC 1 FLOP; the counter gives 2 operations for each. "
        f"Forward: one clip, float32, processor time of one thread, the fastest of {args.rounds}."
    )
    data = {key: {"parameters": size.parameters, "macs": size.macs, "cpu_s": times[key]} for key, size in sizes.items()}
    print(save("encoders", caption, columns, rows, data))


if __name__ == "__main__":
    main()
