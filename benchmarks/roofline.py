"""The student's step against the machine's limit, layer by layer, on one thread.

    python benchmarks/roofline.py [--side 112] [--width 1.0] [--bundles FOLDER]

Measured here: the peak of matrix products in fp32 and int8 (oneDNN through OpenVINO) and the bandwidth of copies by
size of the working set. A layer's bound is the larger of arithmetic over peak and bytes moved (input, weights, output
once each) over the bandwidth at that size. OpenVINO's profile of the real step gives each layer's time, of which the
median over the steps is taken: on a shared machine no whole step is left alone. The peak is that of a square product:
no depthwise convolution can reach it, which is why its share is small whatever the runtime does.

*Before* is the file as its quantiser makes it, with states (B, C, H, W) and whatever precision OpenVINO chooses for the
unquantised rest; *now* is what a session opens.
"""

import argparse
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common import save
from benchmarks.runtimes import build, bundle_of
from deploy.export.step import flat_step, sample_inputs
from toolkit.bundle import Bundle

SIZES_MIB = (0.25, 1, 4, 16, 64)
EDGE = 384


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution or matrix product; ``kind`` groups them in the table."""

    kind: str
    macs: int
    values: int

    def bound_ms(self, peak_gflops: float, bandwidth: dict[float, float], width: int) -> float:
        """Least time at ``width`` bytes a value."""
        size = self.values * width
        nearest = next((mib for mib in SIZES_MIB if mib * 2**20 >= size), SIZES_MIB[-1])
        return max(2 * self.macs / peak_gflops / 1e6, size / bandwidth[nearest] / 1e6)


def layers_of(model: nn.Module) -> list[Layer]:
    """Every convolution and linear layer of the step, in order of the graph."""
    found: list[Layer] = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        per_output = weight[0].numel()
        found.append(Layer(_kind(module), output.numel() * per_output,
                           inputs[0].numel() + weight.numel() + output.numel()))  # fmt: skip

    step = flat_step(model)
    for module in step.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(look)  # type: ignore[arg-type]
    with torch.no_grad():
        step(*sample_inputs(model.contract()))  # type: ignore[operator]
    return found


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Linear):
        return "linear"
    assert isinstance(module, nn.Conv2d)
    if module.groups > 1:
        return "depthwise 3x3"
    if module.kernel_size[0] > 1:
        return "stem 3x3"
    return "expand 1x1" if module.out_channels > module.in_channels else "project 1x1"


def product(precision: str) -> Any:
    """An infer request of one large matrix product in OpenVINO."""
    import nncf
    import openvino
    import openvino.opset13 as ops

    rng = np.random.default_rng(0)
    value = ops.parameter([EDGE, EDGE], np.float32)
    weight = ops.constant(rng.standard_normal((EDGE, EDGE)).astype(np.float32))
    model = openvino.Model([ops.matmul(value, weight, False, True)], [value])
    if precision == "int8":
        model = nncf.quantize(model, nncf.Dataset([rng.standard_normal((EDGE, EDGE)).astype(np.float32)]))
    config = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(model, "CPU", config).create_infer_request()
    request.set_input_tensor(openvino.Tensor(rng.standard_normal((EDGE, EDGE)).astype(np.float32)))
    return request


def step_request(bundle: Bundle, key: str, now: bool) -> Any:
    """An infer request of the step that keeps a profile."""
    import openvino

    from deploy.runtimes.openvino_runtime import _channels_last

    core, contract, artefact = openvino.Core(), bundle.manifest.contract, bundle.artefact(key)
    model = core.read_model(bundle.root / artefact.folder / artefact.entry)
    shapes = [contract.input_shape, *(state.shape for state in contract.states)]
    model.reshape({name: [1, *shape] for name, shape in zip(contract.input_names, shapes, strict=True)})
    config: dict[str, Any] = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": True}
    if key.endswith("fp32") or now:
        config["INFERENCE_PRECISION_HINT"] = "f32"
    if now:
        model = _channels_last(openvino, model, contract)
    compiled = core.compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    rng = np.random.default_rng(0)
    for value in compiled.inputs:
        request.set_tensor(value, openvino.Tensor(rng.standard_normal(tuple(value.shape)).astype(np.float32)))
    return request


def profile(bundle: Bundle, key: str, now: bool, steps: int = 20) -> tuple[list[list[float]], list[float], int]:
    """(ms of each convolution and product in order of the graph, ms of everything else), for each of ``steps``.

    Besides the number of other operators. OpenVINO tells the mean since the model was compiled: a step's own time is
    the difference of two sums.
    """
    request, heavy, rest = step_request(bundle, key, now), [], []
    before: dict[str, float] = {}
    for count in range(1, steps + 1):
        request.infer()
        sums = {row.node_name: row.real_time.total_seconds() * 1e3 * count for row in request.get_profiling_info()}
        own = {name: value - before.get(name, 0.0) for name, value in sums.items()}
        kinds = {row.node_name: row.node_type for row in request.get_profiling_info()}
        placed = {name: place for name, kind in kinds.items() if (place := _place(name, kind)) is not None}
        heavy.append([own[name] for name in sorted(placed, key=lambda name: placed[name])])
        rest.append(sum(value for name, value in own.items() if name not in placed))
        before = sums
    ran = [row.node_name for row in request.get_profiling_info() if row.real_time.total_seconds() > 0]
    return heavy, rest, sum(name not in placed for name in ran)


def _place(name: str, kind: str) -> int | None:
    """Where a layer stands in the graph; None for what is no convolution or product."""
    if kind.startswith(("FullyConnected", "MatMul")):
        return 10**6
    number = re.search(r"conv2d(?:_(\d+))?", name)
    return int((number and number.group(1)) or 0) if kind.startswith(("Convolution", "GroupConvolution")) else None


def milliseconds(call: Any) -> float:
    """One call."""
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1e3


def measure(bundles: dict[str, Bundle], rounds: int) -> dict[str, Any]:
    """The machine's best and the step's medians, before and now, by turns."""
    products = {precision: product(precision) for precision in ("fp32", "int8")}
    arrays = {mib: np.ones(int(mib * 2**20 / 8), np.float32) for mib in SIZES_MIB}
    targets = {mib: np.empty_like(array) for mib, array in arrays.items()}
    best: dict[str, float] = {}
    bandwidth = dict.fromkeys(SIZES_MIB, 0.0)
    steps: dict[str, tuple[list[list[float]], list[float]]] = {}
    others: dict[str, int] = {}
    for _ in range(rounds):
        for name, request in products.items():
            best[name] = min(best.get(name, 1e9), *(milliseconds(request.infer) for _ in range(40)))
        for mib, array in arrays.items():
            repeats = max(4, int(16 / mib))
            ms = min(milliseconds(lambda a=array, t=targets[mib]: np.copyto(t, a)) for _ in range(repeats))
            bandwidth[mib] = max(bandwidth[mib], 2 * array.nbytes / ms / 1e6)
        for precision in products:
            for way, bundle in bundles.items():
                name = f"{precision} {way}"
                heavy, rest, others[name] = profile(bundle, f"openvino-{precision}", way == "now")
                kept = steps.setdefault(name, ([], []))
                # The first steps still meet cold caches.
                kept[0].extend(heavy[2:])
                kept[1].extend(rest[2:])
    return {"peak_gflops": {name: 2 * EDGE**3 / best[name] / 1e6 for name in products},
            "bandwidth_gb_s": bandwidth, "other_operators": others,
            "layers_ms": {name: np.median(heavy, 0).tolist() for name, (heavy, _) in steps.items()},
            "rest_ms": {name: float(np.median(rest)) for name, (_, rest) in steps.items()}}  # fmt: skip


def _cells(bound: float, took: list[float]) -> list[str]:
    """Bound, what it took before and now, and the shares."""
    return [f"{bound:.3f}", *(f"{ms:.3f}" for ms in took), *(f"{bound / ms:.0%}" for ms in took)]


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=112)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--bundles", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.bundles or Path(scratch)
        bundles = {
            way: bundle_of("student", args.side, args.width, folder, plain=way == "before") for way in ("before", "now")
        }
        found = measure(bundles, args.rounds)
    layers = layers_of(build("student", args.side, args.width))
    rows = []
    for precision, width in (("fp32", 4), ("int8", 1)):
        ways = [f"{precision} before", f"{precision} now"]
        for way in ways:
            assert len(found["layers_ms"][way]) == len(layers), "the profile does not show every layer of the model"
        bounds = [layer.bound_ms(found["peak_gflops"][precision], found["bandwidth_gb_s"], width) for layer in layers]
        for kind in dict.fromkeys(layer.kind for layer in layers):
            chosen = [index for index, layer in enumerate(layers) if layer.kind == kind]
            bound, took = (
                sum(bounds[i] for i in chosen),
                [sum(found["layers_ms"][way][i] for i in chosen) for way in ways],
            )
            macs = sum(layers[i].macs for i in chosen) / 1e6
            rows.append([precision, kind, len(chosen), f"{macs:.1f}", *_cells(bound, took)])
        rest = [found["rest_ms"][way] for way in ways]
        whole = [sum(found["layers_ms"][way]) + other for way, other in zip(ways, rest, strict=True)]
        macs = sum(layer.macs for layer in layers) / 1e6
        counts = " / ".join(str(found["other_operators"][way]) for way in ways)
        rows.append([precision, "all else (states, sums, reorders)", counts, "", "", *(f"{ms:.3f}" for ms in rest), "",
                     ""])  # fmt: skip
        rows.append([precision, "whole step", len(layers), f"{macs:.1f}", *_cells(sum(bounds), whole)])
    columns = ["precision", "layers", "count", "million MACs", "bound ms", "before, ms", "now, ms",
               "share of the bound before", "now"]  # fmt: skip
    peaks = found["peak_gflops"]
    speeds = ", ".join(f"{mib:g} MiB {rate:.0f}" for mib, rate in found["bandwidth_gb_s"].items())
    caption = (
        f"Student of width {args.width:g} at {args.side} px, OpenVINO, one thread, median of {18 * args.rounds} steps. "
        f"Peak fp32 {peaks['fp32']:.0f} GFLOP/s, int8 {peaks['int8']:.0f} GOP/s; copies in GB/s by size: {speeds}."
    )
    found["layers"] = [[layer.kind, layer.macs, layer.values] for layer in layers]
    print(save("roofline", caption, columns, rows, found))


if __name__ == "__main__":
    main()
