"""Detection on the footage that comes with vidon: students, clip encoder, baselines, every runtime and precision.

    python benchmarks/detection.py [FOLDER]      trains in FOLDER (default runs/detection), going on where it stopped

The boxes of training, validation and test come from background subtraction (benchmarks/make_boxes.py), from disjoint
times of three static cameras. The teacher is found at ../shared/weights/fastestdet_coco beside the project; without it
its rows are left out. Everything is chosen on validation and reported once on test.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.common import ROOT, save
from deploy.bench import bench_calls
from deploy.detect import evaluate_boxes
from deploy.overlay import Overlay, Scene
from deploy.runtimes import open_session
from toolkit.boxed import read_boxed
from toolkit.bundle import Bundle, open_bundle
from toolkit.cli.road import export_model
from toolkit.coco import BoxData, FrameBoxes, read_coco
from toolkit.detection import EVERY, Found, decode, to_frame, to_picture
from toolkit.precision import BoxPrecision, box_precision
from toolkit.preprocess import Preprocess
from toolkit.recipe import Recipe, load_recipe
from train.detect.teacher import FastestDet
from train.macs import measure
from train.models.store import load_model
from train.stages.detect import answers_of, detect_encoder, detect_student

RECIPE = ROOT / "toolkit" / "assets" / "recipes" / "detection.toml"
WEIGHTS = ROOT.parent / "shared" / "weights" / "fastestdet_coco"
PICTURE = ROOT / "docs" / "detection.jpg"
TEACHER = (f"detection.teacher={WEIGHTS / 'FastestDet.onnx'}", f"detection.teacher_labels={WEIGHTS / 'coco.names'}")
ENCODER = ("detection.freeze=0", "detection.epochs=10", "detection.lr=1e-3")
#: name -> overrides of the recipe.
STUDENTS = {
    "student": (),
    "student, single frames": ("student.boxes.kernel=1",),
    "student, boxes refined by the teacher": ("detection.use=both", *TEACHER),
    "student, teacher's boxes alone": ("detection.use=teacher", *TEACHER),
}
#: name -> seeds; the controls get fewer.
SEEDS = {
    "student": 3,
    "student, single frames": 2,
    "student, boxes refined by the teacher": 3,
    "student, teacher's boxes alone": 1,
}


def trained(name: str, seed: int, folder: Path) -> tuple[Recipe, Path]:
    """The recipe and the folder of one trained student."""
    recipe = load_recipe(RECIPE, (*STUDENTS[name], f"detection.seed={seed}"))
    slug = name.replace(", ", "-").replace(" ", "-").replace("'", "")
    return recipe, detect_student(recipe, folder / f"{slug}-{seed}")


def precision_of(model: Path, data: BoxData, split: str, preprocess: Preprocess) -> tuple[BoxPrecision, BoxPrecision]:
    """Of a trained model in torch, by class and regardless of class."""
    loaded = load_model(model)
    spec = loaded.contract.detection
    assert spec is not None
    truth: list[FrameBoxes] = []
    found: list[Found] = []
    for part in data.split(split):
        seen = list(read_boxed(part, preprocess))
        answers = answers_of(loaded.model, np.stack([each.picture for each in seen]), preprocess)
        truth += [each.truth for each in seen if each.truth is not None]
        found += [
            decode(a, len(data.labels), spec, EVERY) for a, e in zip(answers, seen, strict=True) if e.truth is not None
        ]
    return box_precision(truth, found, data.labels), anything(truth, found)


def anything(truth: Sequence[FrameBoxes], found: Sequence[Found]) -> BoxPrecision:
    """Precision of the boxes as boxes: every class is the same."""
    true = [FrameBoxes(t.boxes, np.zeros_like(t.labels)) for t in truth]
    return box_precision(true, [Found(f.boxes, f.scores, np.zeros_like(f.labels)) for f in found], ("object",))


def teacher_as_it_is(data: BoxData, preprocess: Preprocess) -> tuple[BoxPrecision, BoxPrecision, Callable[[], object]]:
    """FastestDet on the source frames: its three classes, and all its boxes regardless of class."""
    teacher = FastestDet(WEIGHTS / "FastestDet.onnx", WEIGHTS / "coco.names", data.labels)

    def moved(found: Found, frame: npt.NDArray[np.uint8]) -> Found:
        return Found(to_picture(found.boxes, preprocess, *frame.shape[:2]), found.scores, found.labels)

    truth, found, every = [], [], []
    for part in data.split("test"):
        for seen in read_boxed(part, preprocess):
            if seen.truth is not None:
                truth.append(seen.truth)
                found.append(moved(teacher(seen.frame, EVERY), seen.frame))
                every.append(moved(teacher.every(seen.frame, EVERY), seen.frame))
    frame = seen.frame
    return box_precision(truth, found, data.labels), anything(truth, every), lambda: teacher(frame)


def subtraction(data: BoxData, preprocess: Preprocess) -> BoxPrecision:
    """OpenCV's running background model (MOG2), online: largest components first, regardless of class."""
    truth, found = [], []
    for part in data.split("test"):
        model = cv2.createBackgroundSubtractorMOG2(history=200, varThreshold=25, detectShadows=True)
        for seen in read_boxed(part, preprocess):
            mask = np.asarray(model.apply(seen.picture) == 255, np.uint8)
            mask = cv2.morphologyEx(cv2.medianBlur(mask, 3), cv2.MORPH_CLOSE, np.ones((9, 5), np.uint8))
            _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
            rows = sorted((row for row in stats[1:].tolist() if row[4] >= 40), key=lambda row: -row[4])
            boxes = np.asarray([[x, y, x + w, y + h] for x, y, w, h, _ in rows], np.float32).reshape(-1, 4)
            scores = np.asarray([min(1.0, row[4] / 5000) for row in rows], np.float32)
            if seen.truth is not None:
                truth.append(seen.truth)
                found.append(Found(boxes, scores, np.zeros(len(rows), np.int64)))
    return anything(truth, found)


def seeds_of(name: str, folder: Path, data: BoxData) -> dict[str, Any]:
    """Test precision of every seed, and which one validation prefers."""
    runs = []
    for seed in range(SEEDS[name]):
        recipe, model = trained(name, seed, folder)
        test, any_class = precision_of(model, data, "test", recipe.preprocess)
        val, _ = precision_of(model, data, "val", recipe.preprocess)
        runs.append({"seed": seed, "model": model.name, "val": val.as_dict(), "test": test.as_dict(),
                     "any_class": any_class.as_dict()})  # fmt: skip
        print(name, seed, f"val AP {val.ap:.3f}  test AP {test.ap:.3f} AP50 {test.ap50:.3f}", test.per_class)
    return {"name": name, "runs": runs, "best": int(np.argmax([run["val"]["ap"] for run in runs]))}


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{values[0]:.3f}" if len(values) == 1 else f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def row_of(group: dict[str, Any]) -> list[Any]:
    """One line of the table for three seeds."""
    tests = [run["test"] for run in group["runs"]]
    classes = " / ".join(f"{np.mean([t['per_class'].get(c, 0.0) for t in tests]):.2f}" for c in tests[0]["per_class"])
    free = [run["any_class"]["ap50"] for run in group["runs"]]
    count = f"{len(tests)} seeds" if len(tests) > 1 else "1 seed"
    return [f"{group['name']} (torch, {count})", spread([t["ap"] for t in tests]), spread([t["ap50"] for t in tests]),
            classes, spread(free), ""]  # fmt: skip


def single(name: str, found: BoxPrecision | None, any_class: BoxPrecision | None, p50_ms: float | None) -> list[Any]:
    """One line of the table for one artefact."""
    classes = "" if found is None else " / ".join(f"{value:.2f}" for value in found.per_class.values())
    ap, ap50 = ("", "") if found is None else (f"{found.ap:.3f}", f"{found.ap50:.3f}")
    return [name, ap, ap50, classes, "" if any_class is None else f"{any_class.ap50:.3f}",
            "" if p50_ms is None else f"{p50_ms:.2f}"]  # fmt: skip


def draw(bundle: Bundle, data: BoxData, key: str) -> None:
    """Test frames of every camera with the artefact's boxes, as the camera loop draws them."""
    session, preprocess = open_session(bundle, key), bundle.manifest.preprocess
    spec = session.contract.detection
    assert spec is not None
    cells = []
    for part, wanted in zip(data.split("test"), (6, 12, 14, 20), strict=True):
        session.reset()
        for index, seen in enumerate(read_boxed(part, preprocess)):
            answer = session.step(preprocess.normalise(seen.picture)[None])[0]
            if index == wanted:
                found = decode(answer, session.contract.classes, spec)
                found = Found(to_frame(found.boxes, preprocess, *seen.frame.shape[:2]), found.scores, found.labels)
                shown = np.zeros(session.contract.classes, np.float32)
                np.maximum.at(shown, found.labels, found.scores)
                scene = Scene(shown, (), {}, 0.0, index / preprocess.fps, boxes=found)
                cells.append(Overlay(data.labels).draw(seen.frame, scene)[:360])
    session.close()
    grid = np.vstack([np.hstack(cells[:2]), np.hstack(cells[2:])])
    cv2.imwrite(
        str(PICTURE), cv2.resize(grid, (960, 540), interpolation=cv2.INTER_AREA), [cv2.IMWRITE_JPEG_QUALITY, 85]
    )


def main(folder: Path) -> None:
    """Train, export, evaluate, time, write."""
    recipe = load_recipe(RECIPE)
    data, preprocess = read_coco(recipe.data.root), recipe.preprocess
    names = [name for name in STUDENTS if WEIGHTS.is_dir() or "teacher" not in name]
    groups = [seeds_of(name, folder, data) for name in names]
    chosen = folder / groups[0]["runs"][groups[0]["best"]]["model"]
    bundle_path = folder / f"{chosen.name}.vidon"
    if not bundle_path.exists():
        export_model(recipe, chosen, bundle_path)
    bundle = open_bundle(bundle_path)
    keys = [artefact.key for artefact in bundle.manifest.artefacts]
    sessions = {key: open_session(bundle, key, threads=1) for key in keys}
    exported = {key: evaluate_boxes(sessions[key], data, "test", preprocess, key).precision for key in keys}
    encoder = detect_encoder(load_recipe(RECIPE, ENCODER), folder / "encoder")
    clip, clip_any = precision_of(encoder, data, "test", preprocess)
    frame = np.zeros((1, 3, *preprocess.size), np.float32)
    calls: dict[str, Callable[[], object]] = {key: (lambda s=s: s.step(frame)) for key, s in sessions.items()}  # type: ignore[misc]
    extra: list[list[Any]] = []
    raw: dict[str, Any] = {}
    if WEIGHTS.is_dir():
        own, every, call = teacher_as_it_is(data, preprocess)
        calls["teacher"] = call
        raw["teacher"] = {"own_classes": own.as_dict(), "any_class": every.as_dict()}
    latency = bench_calls(calls, steps=100)
    if WEIGHTS.is_dir():
        extra.append(single("FastestDet as it is (352 x 352)", own, every, latency["teacher"].p50_ms))
    mog = subtraction(data, preprocess)
    extra.append(single("background subtraction online (MOG2)", None, mog, None))
    size = measure(load_model(chosen).model)
    rows = [row_of(group) for group in groups]
    rows.append(single("clip encoder (ViT, 8 frames) with the head (torch)", clip, clip_any, None))
    rows += [single(f"{chosen.name} as {key}", exported[key], None, latency[key].p50_ms) for key in keys] + extra
    caption = (
        f"Test times of three static cameras: {exported[keys[0]].frames} frames, {exported[keys[0]].boxes} boxes, made "
        "by background subtraction as those of training are; by class: person / car / bottle. 'Any class' asks for "
        f"boxes only, as background subtraction gives them. The student has {size.parameters / 1e6:.2f} M parameters, "
        f"{size.macs / 1e6:.0f} MMAC a frame of 160x96; latency is of one step on one thread, p50, interleaved."
    )
    columns = ["model", "AP", "AP50", "AP50 by class", "AP50, any class", "ms a step"]
    raw |= {
        "groups": groups, "exported": {key: value.as_dict() for key, value in exported.items()},
        "metrics": {a.key: a.metrics for a in bundle.manifest.artefacts}, "encoder": clip.as_dict(),
        "subtraction": mog.as_dict(), "latency": {key: value.as_dict(samples=True) for key, value in latency.items()},
        "recipe": recipe.model_dump(mode="json"),
    }  # fmt: skip
    raw["recipe"]["data"]["root"] = "footage/boxes.json"
    draw(bundle, data, keys[1])
    print(save("detection", caption, columns, rows, raw))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "detection")
