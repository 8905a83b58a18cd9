"""Commands from a trained model to a camera: export, quantize, evaluate, bench, verify, camera, report."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli import app
from toolkit.cli.options import (
    Data,
    Device,
    Fold,
    Format,
    Json,
    MemoryMode,
    RecipeFile,
    RuntimeNames,
    Set,
    SystemConfig,
    Targets,
    Threads,
    VelaConfig,
    Videos,
    data_of,
    either,
    names,
    recipe_of,
    say,
)

if TYPE_CHECKING:
    from deploy.vela_config import MemorySystem
    from toolkit.bundle import Bundle
    from toolkit.recipe import DataConfig

__all__: list[str] = []

BundlePath = Annotated[Path, typer.Argument(help="Bundle folder or zip.", metavar="BUNDLE")]
ModelPath = Annotated[Path, typer.Argument(help="Folder of a trained model.", metavar="MODEL")]
BundleOut = Annotated[Path, typer.Option("--out", "-o", help="Bundle to write, NAME.vidon.")]
_BEST = "Default: the fastest measured here (bench --all), else the bundle's best."
Key = Annotated[str | None, typer.Option("--artefact", "-a", help=f"RUNTIME-PRECISION[-TARGET]. {_BEST}")]
Keys = Annotated[
    list[str] | None, typer.Option("--artefact", "-a", help=f"RUNTIME-PRECISION[-TARGET]; may be repeated. {_BEST}")
]
All = Annotated[bool, typer.Option("--all", help="Every artefact whose runtime works here, instead of --artefact.")]
AnyKeys = Annotated[
    list[str] | None,
    typer.Option("--artefact", "-a", help="RUNTIME-PRECISION[-TARGET]; may be repeated. Default: all that work here."),
]
#: Vela's file, and the names of its two sections.
Board = tuple[Path | None, str | None, str | None]


def _memory_system(config: Path | None, system: str | None, memory: str | None) -> "MemorySystem | None":
    from deploy.vela_config import memory_system
    from toolkit.errors import UserError

    if config is None and (system or memory):
        raise UserError("--system-config and --memory-mode name sections of a file: give it with --vela-config")
    return None if config is None else memory_system(config, system, memory)


def _export(recipe: Path | None, model: Path, out: Path, overrides: list[str] | None, runtimes: str | None,
            precisions: str | None, as_json: bool, target: str | None, board: Board,
            batches: tuple[int, ...] = ()) -> None:  # fmt: skip
    from toolkit.cli.road import export_model

    settings = recipe_of(recipe, overrides)
    _refuse_idle(overrides, runtimes, target)
    system = _memory_system(*board)
    chips = names(target, ())
    # A chip asked for by name decides its runtime: the recipe's processor runtimes then come only if named too.
    chosen = names(runtimes, () if chips else settings.quantize.runtimes)
    wanted = names(precisions, ("fp32",))
    _no_effect(chosen, chips, precisions, runtimes)
    bundle = export_model(settings, model, out, chosen, wanted, chips, batches, system)
    rows = {artefact.key: artefact.metrics for artefact in bundle.manifest.artefacts}
    say(as_json, {"bundle": str(out), "artefacts": rows}, f"{out}: {', '.join(rows)}")


def _no_effect(chosen: tuple[str, ...], chips: tuple[str, ...], precisions: str | None, runtimes: str | None) -> None:
    """Say what was asked for and cannot be had: chips take int8 alone, torch fp32 alone."""
    from deploy.targets import COMPILED
    from toolkit.errors import UserError
    from toolkit.progress import note

    if precisions is None:
        return
    if (chips or chosen) and set(chosen) <= COMPILED.keys() and "int8" not in precisions:
        raise UserError(
            "chips are compiled in int8: leave out --precisions, or name processor runtimes with --runtimes"
        )
    if runtimes is not None and "torch" in chosen and "fp32" not in precisions:
        note("left out: torch in int8, which it has not")


def _refuse_idle(overrides: list[str] | None, runtimes: str | None, target: str | None) -> None:
    """An override of what an option of the command decides would say nothing."""
    from toolkit.errors import UserError

    given = {override.partition("=")[0].strip() for override in overrides or ()}
    if "quantize.precisions" in given:
        raise UserError("--set quantize.precisions is for vidon compress: here vidon export --precisions says it")
    if "quantize.runtimes" in given and (runtimes or target):
        raise UserError("--set quantize.runtimes means nothing beside --runtimes or --target: leave one out")


@app.command()
def export(
    model: ModelPath, recipe: RecipeFile = None, out: BundleOut = Path("model.vidon"), runtimes: RuntimeNames = None,
    precisions: Annotated[
        str | None, typer.Option(help="fp32, int8, or both: fp32,int8. Default: fp32; chips always take int8.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=2, help="LiteRT file for so many streams too; repeatable. Default: none.")
    ] = None,
    set_: Set = None, target: Targets = None, vela_config: VelaConfig = None, system_config: SystemConfig = None,
    memory_mode: MemoryMode = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Export a trained model to a bundle; every file is checked against torch first.

    Example: **vidon export runs/pruned recipe.toml --out door.vidon --runtimes onnxruntime,litert --target u55-128**
    """
    _export(recipe, model, out, set_, runtimes, precisions, as_json, target,
            (vela_config, system_config, memory_mode), tuple(batch or ()))  # fmt: skip


@app.command()
def quantize(
    model: ModelPath, recipe: RecipeFile = None, out: BundleOut = Path("model.vidon"), runtimes: RuntimeNames = None,
    set_: Set = None, target: Targets = None, vela_config: VelaConfig = None, system_config: SystemConfig = None,
    memory_mode: MemoryMode = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Export in int8, calibrated on streams of the training clips with min-max ranges.

    Example: **vidon quantize runs/pruned recipe.toml --out door.vidon --set quantize.rollouts=32**
    """
    _export(recipe, model, out, set_, runtimes, "int8", as_json, target, (vela_config, system_config, memory_mode))


@app.command()
def evaluate(
    bundle: BundlePath, data: Data, form: Format = None, videos: Videos = None, fold: Fold = None,
    artefact: Keys = None, all_: All = False,
    split: Annotated[
        str, typer.Option(help="auto (test; all of new data without splits), train, val, test or all.")
    ] = "auto",
    save: Annotated[Path | None, typer.Option(help="JSON file to write every answer to. Default: none.")] = None,
    device: Device = "cpu", threads: Threads = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Accuracy of the exported file, through its runtime, on any labelled clips; of a detector, AP (COCO).

    Example: **vidon evaluate door.vidon --data clips/ --split test --all**
    """
    from deploy.runtimes import working
    from toolkit.bundle import open_bundle
    from toolkit.cli.road import evaluate_boxes, evaluate_bundle
    from toolkit.files import writable_file, write_json
    from toolkit.splits import check_split

    either(all=all_, artefact=artefact)
    config = data_of(data, form, videos, fold)
    check_split(split, "auto")
    if save is not None:
        writable_file(save)  # before minutes of work
    opened = open_bundle(bundle, keys=artefact or ())
    keys = working(opened)[0] if all_ else artefact
    if opened.manifest.contract.detection is not None:
        _only_coco(config)
        found = evaluate_boxes(opened, data, split, keys, device, threads)
        boxes = {key: result.as_dict() for key, result in found.items()}
        if save is not None:
            write_json(save, boxes)
        say(as_json, boxes, "\n".join(f"{key}: {result.summary}" for key, result in found.items()))
        return
    results = evaluate_bundle(opened, config, split, keys, device, threads)
    rows = {key: result.as_dict() for key, result in results.items()}
    if save is not None:
        write_json(save, rows)
    say(as_json, rows, "\n".join(f"{key}: {result.summary}" for key, result in results.items()))


def _only_coco(config: "DataConfig") -> None:
    """A detector's boxes have one format, whose files lie where it says."""
    from toolkit.errors import UserError

    if config.format not in ("auto", "coco") or config.videos is not None or config.fold != 1:
        raise UserError("a detector is evaluated on a COCO JSON, whose videos lie where it says: leave out --format, "
                        "--videos and --fold")  # fmt: skip


@app.command()
def bench(
    bundle: BundlePath, artefact: Keys = None, all_: All = False, threads: Threads = None,
    steps: Annotated[
        int, typer.Option(min=10, help="Steps of one frame to time for each artefact, after a warm-up.")
    ] = 200, as_json: Json = False,
) -> None:  # fmt: skip
    """Latency of one step, p50/p95/p99, artefacts in interleaved rounds.

    With **--all**: every runtime, precision and number of threads that works here, with memory, load time and parity;
    the fastest is kept for this machine and used whenever the bundle is opened without naming an artefact.

    Example: **vidon bench door.vidon --all**
    """
    from deploy.runtimes import pick
    from toolkit.bundle import open_bundle
    from toolkit.cli.road import bench_bundle, latencies_of

    either(all=all_, artefact=artefact)
    opened = open_bundle(bundle, keys=artefact or ())
    if all_:
        _bench_all(opened, steps, threads, as_json)
        return
    rows = latencies_of(bench_bundle(opened, artefact or [pick(opened, None).key], steps, threads))
    lines = [
        f"{k:18s} p50 {r['p50_ms']:7.2f} ms   p95 {r['p95_ms']:7.2f} ms   {r['fps']:7.0f} frames/s"
        for k, r in rows.items()
    ]
    say(as_json, rows, "\n".join(lines))


def _bench_all(bundle: "Bundle", steps: int, threads: int | None, as_json: bool) -> None:
    from deploy.choice import choice_file
    from deploy.sweep import sweep, table, winner
    from toolkit.files import writable_dir
    from toolkit.progress import note

    writable_dir(choice_file(bundle).parent)  # the winner is kept there: better refused now than after minutes
    rows = sweep(bundle, steps, (threads,) if threads else None)
    choice = winner(bundle, rows)
    for row in rows:
        if "error" in row:
            note(f"{row['artefact']} {row['form'] or ''}: {row['error']}")
    named = {f"{row['artefact']} {row['form'] or ''}".strip() + f" x{row['threads']}": row for row in rows}
    found = {name: row for name, row in named.items() if "error" not in row}
    say(as_json, found, f"{table(list(found.values()))}\nchosen: {choice.line}")


@app.command()
def verify(
    bundle: BundlePath, artefact: AnyKeys = None,
    trusted: Annotated[Path | None, typer.Option(help="Public key (PEM): refuse a bundle that its owner did not sign. "
                                              "Default: signatures are not looked at.")] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Replay the golden steps on this machine; a wrong answer is refused by name.

    Without **--artefact** all whose runtime works here are checked, and the others named.

    Example: **vidon verify door.vidon --trusted maker.pem.pub**
    """
    from deploy.runtimes import working
    from deploy.verify import verify as replay
    from toolkit.bundle import open_bundle

    opened = open_bundle(bundle, keys=artefact or ())
    if trusted is not None:
        from toolkit.signing import check_signature

        check_signature(opened, trusted)
    keys, left_out = (artefact, {}) if artefact else working(opened)
    results = replay(opened, keys)
    rows = {result.key: result.as_dict() for result in results}
    lines = [f"{result.key}: {result.summary}" for result in results]
    lines += [f"{key}: not checked here, {why}" for key, why in left_out.items()]
    say(as_json, {**rows, **{key: {"not_checked": why} for key, why in left_out.items()}}, "\n".join(lines))


@app.command()
def sign(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle folder to sign. Default: none.", metavar="BUNDLE")
    ] = None,
    key: Annotated[
        Path, typer.Option("--key", help="Private key (PEM) to sign with, or to write with --new-key.")
    ] = Path("maker.pem"),
    new_key: Annotated[bool, typer.Option("--new-key", help="Make the key pair first.")] = False, as_json: Json = False,
) -> None:  # fmt: skip
    """Vouch for a bundle with an Ed25519 signature, or make a key pair; boards check with **verify --trusted**.

    Example: **vidon sign --new-key --key maker.pem**  then  **vidon sign door.vidon --key maker.pem**
    """
    from toolkit.bundle import open_bundle
    from toolkit.errors import UserError
    from toolkit.signing import make_keys, sign_bundle

    if bundle is None and not new_key:
        raise UserError("nothing to do: give a bundle to sign, or --new-key to make a key pair")
    if bundle is not None and bundle.is_file():
        raise UserError(f"bundle {bundle} is a zip: sign the folder, then zip it")
    made = [str(make_keys(key))] if new_key else []
    made += [str(sign_bundle(open_bundle(bundle), key))] if bundle is not None else []
    say(as_json, {"written": made}, "\n".join(made))


@app.command()
def camera(
    bundle: BundlePath,
    source: Annotated[
        str, typer.Option("--source", help="Number of a camera, video file, or rtsp:// or http:// address.")
    ] = "0",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Annotated video to write (.mp4, .webm). Default: none.")
    ] = None,
    headless: Annotated[
        bool, typer.Option("--headless", help="No window: one JSON line an answer (with --json the summary alone).")
    ] = False,
    artefact: Key = None, device: Device = "cpu", threads: Threads = None,
    realtime: Annotated[bool, typer.Option(help="Play a file at its own speed instead of as fast as it goes.")] = False,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Stop after this many frames. Default: when the source ends.")
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Stop after this many seconds of the source. Default: when it ends.")
    ] = None,
    reconnect: Annotated[
        float, typer.Option(help="How many seconds to look for a lost camera or stream: 0 not at all, inf for good.")
    ] = 600.0,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Run a bundle on a live camera or a file. Ctrl-C ends it cleanly.

    Example: **vidon camera door.vidon --source 0**  or  **--source clip.mp4 --out annotated.mp4**
    """
    from deploy.camera import CameraOptions, run_camera
    from deploy.choice import load_choice
    from deploy.recorder import codec_line
    from deploy.runtimes import open_session
    from deploy.sinks import EventSink, Sink, VideoSink, WindowSink, check_video_file
    from toolkit.bundle import open_bundle
    from toolkit.progress import note

    if out is not None:
        check_video_file(out)
    opened = open_bundle(bundle, keys=[artefact] if artefact else ())
    sinks: list[Sink] = [VideoSink(out)] if out is not None else []
    if headless and not as_json:
        sinks.append(EventSink(sys.stdout))
    if not sinks and not as_json:
        sinks.append(WindowSink())
    session = open_session(opened, artefact, device=device, threads=threads)
    choice = load_choice(opened) if artefact is None and device == "cpu" else None
    if choice is not None:
        note(choice.line)
    try:
        options = CameraOptions(realtime=realtime, frames=frames, duration_s=duration, reconnect_s=reconnect)
        summary = run_camera(source, opened, session, sinks, options)
    finally:
        session.close()
    if summary.out is not None and summary.codec is not None:
        note(f"{summary.out}: {codec_line(summary.codec)}")
    if as_json or not headless:
        stages = "  ".join(f"{name} {timing.p50_ms:.2f} ms" for name, timing in summary.stages.items())
        lost = f", lost {summary.losses} times for {summary.lost_s:.0f} s" if summary.losses else ""
        say(
            as_json,
            summary.as_dict(),
            f"{summary.frames} frames, {summary.steps} steps, {summary.fps:.1f} frames/s{lost}\n{stages}",
        )


@app.command()
def report(
    reports: Annotated[list[Path], typer.Argument(help="report.json files, their folders, or bundles.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write the page to.")
    ] = Path("report"), as_json: Json = False,
) -> None:  # fmt: skip
    """Write one report again, or compare several devices on one page.

    Example: **vidon report pi5/report.json jetson/report.json --out comparison**
    """
    from deploy.bundle_report import report_of
    from deploy.report import load_report, write_comparison, write_report
    from toolkit.bundle import open_bundle
    from toolkit.files import prove_writable

    prove_writable(out)
    loaded = [report_of(open_bundle(p)) if (p / "manifest.json").is_file() else load_report(p) for p in reports]
    page = write_report(loaded[0], out) if len(loaded) == 1 else write_comparison(loaded, out)
    say(as_json, {"page": str(page)}, str(page))
