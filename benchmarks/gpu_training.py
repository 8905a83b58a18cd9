"""Every GPU measurement of training in one command: ViT-B at 16x224x224 against transformers' own, in one run.

    python benchmarks/gpu_training.py [--minutes 8] [--pretrain 64,32,128] [--finetune 32,16,64] [--save]
    python benchmarks/gpu_training.py --smoke      a tiny size on any machine: shows that all of it runs, no figures

Masked pretraining (90 % hidden, 4 decoder blocks) and fine-tuning (400 classes), bf16 autocast, fused attention on both
sides, fused AdamW, clips as bytes from pinned memory, normalised on the device. Parts come in order of weight: the
first batch of each task plain, compiled and through vidon's whole loop, then the other batches. In a part the
contenders take turns, a few steps each, so that drift of the machine cancels. Parts run in a child process; one that
fails, dies or hangs is noted and the others go on; the result is saved after every part.

Model FLOPs utilisation is what a step needs, three forward passes' operations (a multiply-add is two) with only the
visible tokens in the encoder, over the card's dense bf16 peak; what a plain matrix product reaches is measured too.
"""

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT, save
from benchmarks.gpu_models import (
    FULL,
    TASKS,
    TINY,
    Contender,
    Shown,
    Size,
    batches,
    contender,
    mask_of,
    operations,
    ours,
)
from toolkit.files import write_json
from toolkit.recipe import FinetuneConfig, PretrainConfig, RunConfig
from train.loop import Plan, fit

#: Dense bf16 TFLOP/s by the makers' data sheets; the first name that the card's holds.
PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "B200": 2250, "A100": 312, "L40S": 362, "L4": 121}
KINDS = ("plain", "compiled", "loop")
COLUMNS = ["task", "contender", "batch", "clips/s", "peak GiB", "MFU", "against transformers"]
LIMIT_S, TURNS_S = 150.0, 12.0  # of a part: at most, and of its turns once all is compiled


@dataclass(frozen=True)
class Part:
    """One task at one batch size: contenders in turns (plain or compiled), or the whole loop."""

    task: str
    batch: int
    kind: str

    @property
    def name(self) -> str:
        """As a word for the command line and a file's name."""
        return f"{self.task}:{self.batch}:{self.kind}"

    @classmethod
    def of(cls, name: str) -> "Part":
        """From its word."""
        task, batch, kind = name.split(":")
        return cls(task, int(batch), kind)


def parts_of(sizes: dict[str, list[int]], smoke: bool) -> list[Part]:
    """What matters most comes first."""
    first, kinds = {task: sizes[task][0] for task in TASKS}, [kind for kind in KINDS if not smoke or kind != "compiled"]
    found = [Part(task, first[task], kind) for kind in kinds for task in TASKS]
    others = itertools.zip_longest(*(sizes[task][1:] for task in TASKS))
    rest = [(task, batch) for each in others for task, batch in zip(TASKS, each, strict=True) if batch is not None]
    return found + [Part(task, batch, kind) for kind in kinds if kind != "loop" for task, batch in rest]


class Note:
    """The result of a part as it grows: ``contenders`` by name, ``done``; written after every turn."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.found: dict[str, Any] = {"done": False, "failed": {}, "contenders": {}}

    def add(self, name: str, **values: Any) -> None:
        """Of one contender."""
        self.found["contenders"][name] = {**self.found["contenders"].get(name, {}), **values}
        write_json(self.file, self.found)

    def fail(self, name: str, error: BaseException) -> None:
        """One contender is out; the others go on."""
        self.found["failed"][name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        write_json(self.file, self.found)

    def end(self) -> None:
        """All was tried."""
        self.found["done"] = True
        write_json(self.file, self.found)


def turns(part: Part, size: Size, device: torch.device, note: Note) -> None:
    """Each contender warms up and has a turn, then all take turns."""
    cuda = device.type == "cuda"
    data, ready = batches(size, part.batch, 2, device), []
    for name in ("vidon", "transformers"):
        with _noted(note, name if part.kind == "plain" else f"{name}, {part.kind}"):
            made = contender(name, part.task, size, device, part.kind == "compiled")
            started_s = time.perf_counter()
            for index in range(3 if cuda else 1):
                made.step(data[index % 2])
            _settle(device)
            note.add(made.name, warm_up_s=time.perf_counter() - started_s)
            _turn(made, data, note)
            ready.append(made)
    until_s = time.perf_counter() + (TURNS_S if cuda else 0.0)
    while ready and time.perf_counter() < until_s:
        for made in ready:
            _turn(made, data, note)


def _turn(made: Contender, data: list[Any], note: Note) -> None:
    steps, device = 5 if made.device.type == "cuda" else 1, made.device
    _settle(device)
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    started_s = time.perf_counter()
    for index in range(steps):
        made.step(data[index % 2])
    _settle(device)
    made.seconds.append((time.perf_counter() - started_s) / steps)
    if device.type == "cuda":
        made.peak_gib = (torch.cuda.max_memory_allocated() - before + made.own_bytes()) / 2**30
    note.add(made.name, seconds=made.seconds, peak_gib=made.peak_gib)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


@contextlib.contextmanager
def _noted(note: Note, name: str) -> Any:
    """A failure is the contender's own, and its memory is given back."""
    try:
        yield
    except Exception as error:
        note.fail(name, error)
        torch.cuda.empty_cache()


def whole_loop(part: Part, size: Size, device: torch.device, note: Note) -> None:
    """``fit`` itself with decoding workers and everything that a real run does; from the second epoch on."""
    cuda = device.type == "cuda"
    torch.manual_seed(0)
    model, loss = ours(part.task, size)
    kind: Any = PretrainConfig if part.task == "pretrain" else FinetuneConfig
    steps, epochs = (24, 4) if cuda else (2, 2)
    plan = Plan(
        f"{part.task} through the loop", model,
        lambda batch, generator: loss(batch.first, batch.labels, mask_of(size, len(batch.labels), generator)),
        kind(epochs=epochs, batch=part.batch, lr=1e-5),
        run=RunConfig(device=device.type, precision="bf16", compile=cuda, workers=_workers(part, size) if cuda else 0),
        every_s=1e9,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        fit(plan, Shown(size, steps * part.batch), Path(folder))
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    ends = [line for line in lines if "lr" not in line][1:]
    note.add("vidon, whole loop", seconds=[part.batch / line["clips_per_s"] for line in ends], peak_gib=0.0,
             waiting=[line["waiting"] for line in ends], workers=plan.run.workers)  # fmt: skip


def _workers(part: Part, size: Size) -> int:
    """As many as there are cores for and room for two batches each in shared memory."""
    room = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0
    batch_bytes = part.batch * size.frames * size.side**2 * 3
    return max(0, min((os.cpu_count() or 1) - 2, 8, room // (3 * batch_bytes)))


def work(part: Part, size: Size, device: torch.device, file: Path) -> Note:
    """Measure one part into its file."""
    note = Note(file)
    with _noted(note, part.name):
        (whole_loop if part.kind == "loop" else turns)(part, size, device, note)
    note.end()
    return note


def child(parts: list[Part], folder: Path, smoke: bool) -> None:
    """Measure these parts; after a failure that may have spoilt the GPU's context the rest is for a fresh process."""
    device = torch.device("cpu" if smoke else "cuda")
    write_json(folder / "machine.json", _machine(device))
    for part in parts:
        failed = work(part, TINY if smoke else FULL, device, folder / f"{part.name}.json").found["failed"]
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        if failed and part is not parts[-1]:
            raise SystemExit(0)


def _machine(device: torch.device) -> dict[str, Any]:
    """The card, what it should and what it does reach, and the libraries."""
    cuda = device.type == "cuda"
    card = torch.cuda.get_device_name() if cuda else "none"
    peak = next((value for name, value in PEAKS.items() if name in card and "MIG" not in card), None)
    found = {"card": card, "peak_tflops": peak, "product_tflops": product_tflops(device, 8192 if cuda else 256),
             "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version() if cuda else None}  # fmt: skip
    for name in ("torch", "transformers", "accelerate", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def product_tflops(device: torch.device, side: int) -> float:
    """What a plain bf16 matrix product reaches."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(3):
        _settle(device)
        started_s = time.perf_counter()
        for _ in range(10):
            a @ b
        _settle(device)
        best = max(best, 20 * side**3 / (time.perf_counter() - started_s) / 1e12)
    return best


def conduct(parts: list[Part], folder: Path, minutes: float, smoke: bool, tell: Callable[[], None]) -> None:
    """Run the parts in children until the time is over; ``tell`` is called after each."""
    until_s, left = time.monotonic() + 60 * minutes, list(parts)
    while left:
        if time.monotonic() > until_s:
            _give_up(folder, left.pop(0), "no time was left")
            continue
        why = _watched(left, folder, until_s, smoke, tell)
        if why is not None:
            _give_up(folder, left.pop(0), why)
    tell()


def _watched(left: list[Part], folder: Path, until_s: float, smoke: bool, tell: Callable[[], None]) -> str | None:
    """Run a child over what is left and take away what it has done; why it could not do the next one, if so."""
    command = [sys.executable, "-P", "-m", "benchmarks.gpu_training", "--into", str(folder), "--parts",
               ",".join(part.name for part in left), *(["--smoke"] if smoke else [])]  # fmt: skip
    running = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    count, began_s = len(left), time.monotonic()
    while True:
        over = running.poll() is not None
        while left and _is_done(folder, left[0]):
            left.pop(0)
            began_s = time.monotonic()
            tell()
        if over:
            went_on = running.returncode == 0 and len(left) < count
            return None if went_on or not left else f"its process ended with {running.returncode}"
        if time.monotonic() > min(until_s, began_s + LIMIT_S):
            running.kill()
            running.wait()
            return "it took too long" if left else None
        time.sleep(0.2)


def _read(folder: Path, part: Part) -> dict[str, Any]:
    file = folder / f"{part.name}.json"
    empty: dict[str, Any] = {"done": False, "failed": {}, "contenders": {}}
    return json.loads(file.read_text()) if file.is_file() else empty


def _is_done(folder: Path, part: Part) -> bool:
    return bool(_read(folder, part)["done"])


def _give_up(folder: Path, part: Part, why: str) -> None:
    found = _read(folder, part)
    write_json(folder / f"{part.name}.json", {**found, "failed": {**found["failed"], part.name: why}})


def table(parts: list[Part], folder: Path, flops: dict[str, float]) -> tuple[list[list[Any]], dict[str, Any]]:
    """Rows by task and batch, and the raw data; ratios are to transformers run in the same way."""
    file = folder / "machine.json"
    machine = json.loads(file.read_text()) if file.is_file() else {"card": "unknown"}
    data = {**machine, "flops_per_clip": flops, "parts": {part.name: _read(folder, part) for part in parts}}
    peak = machine.get("peak_tflops")
    rows: list[list[Any]] = []
    for part in sorted(parts, key=lambda each: (TASKS.index(each.task), each.batch, KINDS.index(each.kind))):
        way = "plain" if part.kind == "plain" else "compiled"
        base = _speed(data["parts"], Part(part.task, part.batch, way), "transformers")
        for name, found in sorted(data["parts"][part.name]["contenders"].items(), reverse=True):
            if "seconds" not in found:
                continue
            clips_per_s = part.batch / statistics.median(found["seconds"])
            mfu = f"{100 * clips_per_s * flops[part.task] / peak / 1e12:.1f} %" if peak else "-"
            rows.append([part.task, name, part.batch, f"{clips_per_s:.1f}",
                         f"{found['peak_gib']:.1f}" if found["peak_gib"] else "-", mfu,
                         f"{clips_per_s / base:.2f}x" if base else "-"])  # fmt: skip
    return rows, data


def _speed(parts: dict[str, Any], part: Part, name: str) -> float | None:
    """Clips a second of a contender in a part."""
    found = parts.get(part.name, {"contenders": {}})["contenders"]
    seconds = next((each.get("seconds") for key, each in found.items() if key.startswith(name)), None)
    return part.batch / statistics.median(seconds) if seconds else None


def main() -> None:
    """Measure on the GPU, or show on a tiny size that everything here runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--pretrain", default=None, help="batch sizes, the most important one first")
    parser.add_argument("--finetune", default=None)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--copy", type=Path, default=None, help="a folder that gets the saved result too, as it grows")
    parser.add_argument("--parts", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.smoke:
        raise SystemExit("nothing was measured: torch sees no GPU here (--smoke runs a tiny size on the CPU instead)")
    if args.parts is not None:
        child([Part.of(name) for name in args.parts.split(",")], args.into, args.smoke)
        return
    usual = {"pretrain": "4", "finetune": "2"} if args.smoke else {"pretrain": "64,32,128", "finetune": "32,16,64"}
    sizes = {task: [int(word) for word in (getattr(args, task) or usual[task]).split(",")] for task in TASKS}
    parts, size = parts_of(sizes, args.smoke), TINY if args.smoke else FULL
    flops = {task: operations(task, size) for task in TASKS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def tell() -> None:
            rows, data = table(parts, folder, flops)
            if args.save and not args.smoke and rows:
                path = save("gpu_training", f"ViT-B, 16x224x224, bf16, {data['card']}.", COLUMNS, rows, data)
                if args.copy is not None:
                    shutil.copy(path, args.copy)

        conduct(parts, folder, args.minutes, args.smoke, tell)
        _print(*table(parts, folder, flops))
    if args.smoke:
        print("smoke run on the CPU with a tiny size: these figures say nothing about a GPU")


def _print(rows: list[list[Any]], data: dict[str, Any]) -> None:
    for row in [COLUMNS, *rows]:
        print(" | ".join(str(cell) for cell in row))
    print(", ".join(f"{key} {value}" for key, value in data.items() if not isinstance(value, dict)))
    for name, found in data["parts"].items():
        for who, why in found["failed"].items():
            print(f"not measured: {name}: {who}: {why}")


if __name__ == "__main__":
    main()
