"""Commands from a trained model to a camera: export, quantize, evaluate, bench, verify, camera, report, devices."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli import app
from toolkit.cli.options import Device, Json, RecipeFile, RuntimeNames, Set, Threads, names, recipe_of, say

__all__: list[str] = []

BundlePath = Annotated[Path, typer.Argument(help="Bundle folder or zip.", metavar="BUNDLE")]
ModelPath = Annotated[Path, typer.Argument(help="Folder of a trained model.", metavar="MODEL")]
BundleOut = Annotated[Path, typer.Option("--out", "-o", help="Bundle to write, NAME.vidon.")]
Key = Annotated[str | None, typer.Option("--artefact", "-a", help="<runtime>-<precision>; default: the bundle's best.")]
Keys = Annotated[
    list[str] | None, typer.Option("--artefact", "-a", help="<runtime>-<precision>, may be given more than once.")
]
All = Annotated[bool, typer.Option("--all", help="Every artefact whose runtime works here.")]


def _export(recipe: Path | None, model: Path, out: Path, overrides: list[str] | None, runtimes: str | None,
            precisions: tuple[str, ...], as_json: bool) -> None:  # fmt: skip
    from toolkit.cli.road import export_model

    settings = recipe_of(recipe, overrides)
    bundle = export_model(settings, model, out, names(runtimes, settings.quantize.runtimes), precisions)
    rows = {artefact.key: artefact.metrics for artefact in bundle.manifest.artefacts}
    say(as_json, {"bundle": str(out), "artefacts": rows}, f"{out}: {', '.join(rows)}")


@app.command()
def export(
    model: ModelPath, recipe: RecipeFile = None, out: BundleOut = Path("model.vidon"), runtimes: RuntimeNames = None,
    precisions: Annotated[str, typer.Option(help="fp32, int8 or both.")] = "fp32", set_: Set = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Export a trained model to a bundle; every file is checked against torch first.

    Example: **vidon export runs/pruned recipe.toml --out door.vidon --runtimes onnxruntime,litert**
    """
    _export(recipe, model, out, set_, runtimes, names(precisions, ()), as_json)


@app.command()
def quantize(
    model: ModelPath, recipe: RecipeFile = None, out: BundleOut = Path("model.vidon"), runtimes: RuntimeNames = None,
    set_: Set = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Export in int8, calibrated on streams of the training clips with min-max ranges.

    Example: **vidon quantize runs/pruned recipe.toml --out door.vidon --set quantize.rollouts=32**
    """
    _export(recipe, model, out, set_, runtimes, ("int8",), as_json)


@app.command()
def evaluate(
    bundle: BundlePath, data: Annotated[Path, typer.Option("--data", "-d", help="Labelled folder, CSV or COCO JSON.")],
    artefact: Keys = None, all_: All = False,
    split: Annotated[str, typer.Option(help="auto (test if there is one, else all), train, val, test, all.")] = "auto",
    save: Annotated[Path | None, typer.Option(help="Write every answer to this JSON file.")] = None,
    device: Device = "cpu", threads: Threads = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Accuracy of the exported file, through its runtime, on any labelled folder or CSV; of a detector, AP (COCO).

    Example: **vidon evaluate door.vidon --data clips/ --split test --all**
    """
    from deploy.runtimes import working
    from toolkit.bundle import open_bundle
    from toolkit.cli.road import evaluate_boxes, evaluate_bundle
    from toolkit.files import write_json

    opened = open_bundle(bundle)
    keys = working(opened)[0] if all_ else artefact
    if opened.manifest.contract.detection is not None:
        found = evaluate_boxes(opened, data, split, keys, device, threads)
        boxes = {key: result.as_dict() for key, result in found.items()}
        if save is not None:
            write_json(save, boxes)
        say(as_json, boxes, "\n".join(f"{key}: {result.summary}" for key, result in found.items()))
        return
    results = evaluate_bundle(opened, data, split, keys, device, threads)
    rows = {key: result.as_dict() for key, result in results.items()}
    if save is not None:
        write_json(save, rows)
    lines = [
        f"{key}: accuracy {row['accuracy']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}] on {row['clips']} clips"
        for key, row in rows.items()
    ]
    say(as_json, rows, "\n".join(lines))


@app.command()
def bench(
    bundle: BundlePath, artefact: Keys = None, all_: All = False, threads: Threads = None,
    steps: Annotated[int, typer.Option(min=10, help="Steps to time, after a warm-up.")] = 200, as_json: Json = False,
) -> None:  # fmt: skip
    """Latency of one step, p50/p95/p99, artefacts in interleaved rounds.

    Example: **vidon bench door.vidon --all --threads 1**
    """
    from deploy.runtimes import pick, working
    from toolkit.bundle import open_bundle
    from toolkit.cli.road import bench_bundle, latencies_of

    opened = open_bundle(bundle)
    keys = working(opened)[0] if all_ else artefact or [pick(opened, None).key]
    rows = latencies_of(bench_bundle(opened, keys, steps, threads))
    lines = [
        f"{k:18s} p50 {r['p50_ms']:7.2f} ms   p95 {r['p95_ms']:7.2f} ms   {r['fps']:7.0f} frames/s"
        for k, r in rows.items()
    ]
    say(as_json, rows, "\n".join(lines))


@app.command()
def verify(bundle: BundlePath, artefact: Keys = None, as_json: Json = False) -> None:
    """Replay the golden steps on this machine; a wrong answer is refused by name.

    Without **--artefact** all whose runtime works here are checked, and the others named.

    Example: **vidon verify door.vidon**
    """
    from deploy.runtimes import working
    from deploy.verify import verify as replay
    from toolkit.bundle import open_bundle

    opened = open_bundle(bundle)
    keys, left_out = (artefact, {}) if artefact else working(opened)
    results = replay(opened, keys)
    rows = {result.key: result.as_dict() for result in results}
    lines = [f"{result.key}: {result.summary}" for result in results]
    lines += [f"{key}: not checked here, {why}" for key, why in left_out.items()]
    say(as_json, {**rows, **{key: {"not_checked": why} for key, why in left_out.items()}}, "\n".join(lines))


@app.command()
def camera(
    bundle: BundlePath,
    source: Annotated[str, typer.Option("--source", help="USB index, video file, or rtsp:// URL.")] = "0",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Annotated video to write (.mp4, .webm).")] = None,
    headless: Annotated[bool, typer.Option("--headless", help="No window: JSON lines of answers on stdout.")] = False,
    artefact: Key = None, device: Device = "cpu", threads: Threads = None,
    realtime: Annotated[bool, typer.Option(help="Play a file at its own speed.")] = False,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    duration: Annotated[float | None, typer.Option(help="Stop after this many seconds.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Run a bundle on a live camera or a file. Ctrl-C ends it cleanly.

    Example: **vidon camera door.vidon --source 0**  or  **--source clip.mp4 --out annotated.mp4**
    """
    from deploy.camera import CameraOptions, run_camera
    from deploy.runtimes import open_session
    from deploy.sinks import EventSink, Sink, VideoSink, WindowSink
    from toolkit.bundle import open_bundle

    opened = open_bundle(bundle)
    sinks: list[Sink] = [VideoSink(out)] if out is not None else []
    if headless:
        sinks.append(EventSink(sys.stdout))
    if not sinks and not as_json:
        sinks.append(WindowSink())
    session = open_session(opened, artefact, device=device, threads=threads)
    try:
        options = CameraOptions(realtime=realtime, frames=frames, duration_s=duration)
        summary = run_camera(source, opened, session, sinks, options)
    finally:
        session.close()
    if as_json or not headless:
        stages = "  ".join(f"{name} {timing.p50_ms:.2f} ms" for name, timing in summary.stages.items())
        say(
            as_json,
            summary.as_dict(),
            f"{summary.frames} frames, {summary.steps} steps, {summary.fps:.1f} frames/s\n{stages}",
        )


@app.command()
def report(
    reports: Annotated[list[Path], typer.Argument(help="report.json files or their folders, one per device.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("report"), as_json: Json = False,
) -> None:  # fmt: skip
    """Write one report again, or compare several devices on one page.

    Example: **vidon report pi5/report.json jetson/report.json --out comparison**
    """
    from deploy.report import load_report, write_comparison, write_report

    loaded = [load_report(path) for path in reports]
    page = write_report(loaded[0], out) if len(loaded) == 1 else write_comparison(loaded, out)
    say(as_json, {"page": str(page)}, str(page))


@app.command()
def devices(
    profile: Annotated[str | None, typer.Option(help="Show one hardware profile instead.")] = None,
    as_json: Json = False,
) -> None:
    """What this machine has: runtimes, devices, and why something does not work.

    Example: **vidon devices --json**
    """
    from toolkit.cli.inspect import list_devices

    if profile is not None:
        from devices import load_profile

        found = load_profile(profile)
        say(as_json, found.model_dump(mode="json"), found.model_dump_json(indent=2))
        return
    result = list_devices()
    say(as_json, {key: value for key, value in result.items() if key != "text"}, result["text"])
