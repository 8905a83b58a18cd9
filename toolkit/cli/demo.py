"""``vidon demo``: the whole road once, on real footage, in a few minutes, ending in a report and an annotated video."""

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from toolkit.cli import app
from toolkit.cli.footage import LABELS, build_camera, build_clips
from toolkit.cli.options import Json, say
from toolkit.cli.steps import Steps
from toolkit.files import writable_dir
from toolkit.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from deploy.evaluate import Evaluation
    from deploy.report import Report

__all__ = ["Demo"]

RECIPE = Path(__file__).resolve().parents[1] / "assets" / "demo.toml"


class Demo:
    """The demo's steps, each resumable; ``folder`` holds everything it makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = writable_dir(folder)
        self.recipe = load_recipe(RECIPE, (f"data.root={folder / 'data'}",))
        self.steps = Steps(folder / "steps", 12)
        self.bundle = folder / f"{self.recipe.name}.vidon"

    def run(self) -> "Report":
        """Walk the road and write the report."""
        from deploy.export import asked_of
        from train.stages import distill, finetune, pretrain, prune

        folder, recipe, steps = self.folder, self.recipe, self.steps
        asked_of(recipe.quantize.runtimes, recipe.quantize.precisions)  # what is missing is told before training
        settings = recipe.model_dump(mode="json", exclude={"data": {"root"}})
        steps.run("data", "cut clips from real footage", LABELS, lambda: dict(build_clips(folder / "data")))
        runs: dict[str, Path] = {
            name: folder / name for name in ("pretrained", "teacher", "control", "student", "pruned")
        }

        def stage(name: str, title: str, work: Any) -> dict[str, Any]:
            return steps.run(name, title, settings, lambda: json.loads((work() / "done.json").read_bytes()))

        stage("pretrain", "pretrain the teacher (masked video)", lambda: pretrain(recipe, runs["pretrained"]))
        stage("finetune", "fine-tune the teacher", lambda: finetune(recipe, runs["teacher"], runs["pretrained"]))
        stage("control", "train the single-frame control", lambda: distill(_single_frame(recipe), runs["control"]))
        stage("distill", "distil the streaming student", lambda: distill(recipe, runs["student"], runs["teacher"]))
        stage("prune", "prune and recover", lambda: prune(recipe, runs["pruned"], runs["student"], runs["teacher"]))
        torch_rungs = steps.run(
            "torch", "evaluate the torch models on test clips", settings, lambda: self._torch_rungs(runs)
        )
        steps.run("export", "export, quantise and check parity", settings, self._export)
        chosen = steps.run("choose", "choose the best on validation clips", settings, self._choose)
        tested = steps.run("test", "evaluate every exported file on test clips", settings, self._test)
        camera = steps.run("camera", "play a held-out video as a camera", settings, self._camera)
        return self._report(torch_rungs["rungs"], chosen, tested, camera)

    def _torch_rungs(self, runs: dict[str, Path]) -> dict[str, Any]:
        import torch

        from deploy.bench import bench_calls
        from deploy.evaluate import wilson
        from train.data.clips import load_pictures
        from train.data.index import index_clips
        from train.evaluate import answer
        from train.macs import measure
        from train.models import load_model

        recipe = self.recipe
        data = load_pictures(index_clips(recipe.data.root), "test", recipe.preprocess, recipe.data.frames)
        rungs = []
        for kind in ("teacher", "control", "student", "pruned"):
            loaded = load_model(runs[kind])
            answers, size, contract = (
                answer(loaded.model, data, recipe.preprocess),
                measure(loaded.model),
                loaded.contract,
            )
            low, high = wilson(int(answers.correct.sum()), len(data))
            zeros = [torch.zeros(1, *contract.input_shape), *(torch.zeros(1, *s.shape) for s in contract.states)]
            model = loaded.model

            def call(model: Any = model, zeros: list[Any] = zeros, clip: bool = contract.kind == "clip") -> None:
                with torch.inference_mode():
                    model(zeros[0]) if clip else model.step(zeros[0], zeros[1:])

            latency = bench_calls({kind: call}, 50, 5, f"time {kind}")[kind]
            rungs.append({
                "name": kind, "kind": kind, "accuracy": answers.accuracy, "ci_low": low, "ci_high": high,
                "clips": len(data),
                "parameters": size.parameters, "macs": size.macs, "p50_ms": latency.p50_ms, "p95_ms": latency.p95_ms,
                "fps": latency.fps, "per": "clip" if contract.kind == "clip" else "frame",
                "size_bytes": (runs[kind] / "model.safetensors").stat().st_size,
            })  # fmt: skip
        return {"rungs": rungs}

    def _export(self) -> dict[str, Any]:
        from toolkit.cli.road import export_model

        bundle = export_model(self.recipe, self.folder / "pruned", self.bundle)
        return {artefact.key: artefact.metrics for artefact in bundle.manifest.artefacts}

    def _choose(self) -> dict[str, Any]:
        from toolkit.bundle import open_bundle
        from toolkit.cli.road import bench_bundle, evaluate_bundle, keep_best, latencies_of

        bundle = open_bundle(self.bundle)
        keys = [artefact.key for artefact in bundle.manifest.artefacts]
        latencies = bench_bundle(bundle, keys, 200, None)
        results = evaluate_bundle(bundle, self.recipe.data.root, "val", keys)
        accuracy = {key: result.accuracy for key, result in results.items()}
        best = keep_best(bundle, accuracy, {key: value.p50_ms for key, value in latencies.items()}).manifest.best
        return {"best": best, "validation": accuracy, "latency": latencies_of(latencies)}

    def _test(self) -> dict[str, Any]:
        from toolkit.bundle import open_bundle
        from toolkit.cli.road import evaluate_bundle

        bundle = open_bundle(self.bundle)
        keys = [artefact.key for artefact in bundle.manifest.artefacts]
        # The demo's clips have one label each.
        results = cast("dict[str, Evaluation]", evaluate_bundle(bundle, self.recipe.data.root, "test", keys))
        reference = results["torch-fp32"]
        return {
            key: {
                "accuracy": result.accuracy, "interval": result.interval, "clips": len(result.truth),
                "agreement": result.agreement(reference), "confusion": result.confusion(),
            }
            for key, result in results.items()
        }  # fmt: skip

    def _camera(self) -> dict[str, Any]:
        from deploy.camera import run_camera
        from deploy.report import preview_of
        from deploy.runtimes import open_session, pick
        from deploy.sinks import VideoSink
        from toolkit.bundle import open_bundle

        source, out = self.folder / "camera.mp4", self.folder / "annotated.mp4"
        build_camera(source)
        bundle = open_bundle(self.bundle)
        session = open_session(bundle, pick(bundle, None).key)
        try:
            summary = run_camera(str(source), bundle, session, [VideoSink(out)])
        finally:
            session.close()
        return {"summary": summary.as_dict(), "video": str(out), "preview": preview_of(out)}

    def _report(
        self, rungs: list[dict[str, Any]], chosen: dict[str, Any], tested: dict[str, Any], camera: dict[str, Any]
    ) -> "Report":
        from pydantic import TypeAdapter

        from deploy.camera import CameraSummary
        from deploy.report import Confusion, Report, Rung, write_report
        from devices import describe_machine
        from toolkit import __version__
        from toolkit.bundle import open_bundle

        manifest = open_bundle(self.bundle).manifest
        pruned = rungs[-1]
        ladder: list[Rung] = [Rung.model_validate(rung) for rung in rungs]
        for artefact in manifest.artefacts:
            test, latency = tested[artefact.key], chosen["latency"][artefact.key]
            ladder.append(Rung(
                name=artefact.key, kind="artefact", runtime=artefact.runtime, precision=artefact.precision,
                accuracy=test["accuracy"], ci_low=test["interval"][0], ci_high=test["interval"][1], clips=test["clips"],
                parameters=pruned["parameters"], macs=pruned["macs"], size_bytes=int(artefact.metrics["size_bytes"]),
                p50_ms=latency["p50_ms"], p95_ms=latency["p95_ms"], fps=latency["fps"], agreement=test["agreement"],
                max_diff=artefact.metrics["max_diff"], passed=True,
            ))  # fmt: skip
        best = str(chosen["best"])
        report = Report(
            title="vidon demo: what moves how",
            created=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            machine=describe_machine(), task=_TASK, labels=LABELS, rungs=tuple(ladder), best=best,
            chance=1 / len(LABELS), control=rungs[1]["accuracy"], preview=camera["preview"],
            camera=TypeAdapter(CameraSummary).validate_python(camera["summary"]),
            confusion=Confusion(rung=best, counts=tuple(tuple(row) for row in tested[best]["confusion"])),
            curves=tuple(_curves(self.folder)), notes=_NOTES, reproduce=("make demo", f"vidon verify {self.bundle}"),
            environment={"vidon": __version__},
            lineage={"recipe": self.recipe.model_dump(mode="json"), "seconds": self.steps.seconds()},
        )  # fmt: skip
        write_report(report, self.folder / "report")
        return report


_TASK = "Tell what moves how (still, towards, away, left, right) from 8 frames of real video; one frame cannot tell."
_NOTES = (
    "Train, validation and test clips come from disjoint times of the videos.",
    "Every accuracy of an artefact is of the exported file, run by its runtime; the best was chosen on validation.",
    "The single-frame control sees each frame alone: what it scores is what can be guessed without time.",
)


def _single_frame(recipe: Recipe) -> Recipe:
    """The same student without memory, trained on labels alone."""
    student = recipe.student.model_copy(update={"temporal": "none", "look_back": False})
    return recipe.model_copy(update={"student": student})


def _curves(folder: Path) -> list[Any]:
    from deploy.report import Curve

    curves = []
    for name in ("pretrained", "teacher", "control", "student", "pruned"):
        lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_bytes().splitlines()]
        rows = [line for line in lines if "clips_per_s" in line]  # of epochs; those of steps stand between them
        curves.append(Curve(panel="training loss", name=name, points=tuple((r["epoch"], r["loss"]) for r in rows)))
        if "validation" in rows[0]:
            points = tuple((r["epoch"], r["validation"]) for r in rows)
            curves.append(Curve(panel="validation accuracy", name=name, points=points))
    return curves


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything the demo makes.")] = Path(
        "vidon-demo"
    ),
    as_json: Json = False,
) -> None:
    """The whole road on real footage, in minutes: train, compress, export, verify, run, report.

    Example: **vidon demo --out vidon-demo**   (interrupt it and run it again: finished steps are kept)
    """
    from deploy.ladder import ladder_table
    from toolkit.progress import console

    report = Demo(out).run()
    if not as_json:
        console.print(ladder_table(report, console.width))
    places = {
        "report": str(out / "report/report.html"),
        "video": str(out / "annotated.mp4"),
        "bundle": str(out / "motion.vidon"),
    }
    say(as_json, {**places, "best": report.best}, "\n".join(f"{name:7s} {place}" for name, place in places.items()))
