"""The steps that join training and deployment: export a trained model, evaluate a bundle, choose its best artefact."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.bundle import Bundle, open_bundle, seal
from toolkit.contract import Array
from toolkit.errors import UserError
from toolkit.progress import note
from toolkit.recipe import DataConfig, Recipe

if TYPE_CHECKING:
    from deploy.bench import Latency
    from deploy.detect import BoxEvaluation
    from deploy.evaluate import Evaluation
    from deploy.evaluate_many import ManyEvaluation
    from deploy.vela_config import MemorySystem
    from toolkit.preprocess import Preprocess
    from train.data.clip import Clip
    from train.data.index import Dataset
    from train.models.store import Loaded

__all__ = ["bench_bundle", "compress", "evaluate_boxes", "evaluate_bundle", "export_model", "keep_best", "latencies_of"]

_GOLDEN_STEPS = 24


def export_model(
    recipe: Recipe,
    model: Path,
    out: Path,
    runtimes: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    targets: Sequence[str] = (),
    batches: Sequence[int] = (),
    board: "MemorySystem | None" = None,
) -> Bundle:
    """Export a trained model folder into a bundle, calibrated on training streams, checked on validation streams.

    ``batches`` are numbers of streams for which LiteRT gets files of its own; ``board`` is the memory system of the
    Ethos-U among the targets.
    """
    from deploy.export import asked_of, export_bundle
    from toolkit.files import writable_dir
    from train.data.index import index_data
    from train.models import load_model

    if out.suffix == ".zip":
        raise UserError(f"bundle {out}: bundles are written as folders; name it {out.with_suffix('.vidon')}")
    runtimes = recipe.quantize.runtimes if runtimes is None else runtimes
    precisions = precisions or recipe.quantize.precisions
    asked_of(
        runtimes, precisions, targets, board, batches
    )  # what is wrong with the words is told before anything is loaded
    writable_dir(out.parent)
    loaded = load_model(model)
    lineage = _lineage(recipe, loaded)
    if loaded.contract.detection is None:
        data = index_data(recipe.data, loaded.card.labels)
        rollouts, golden = _streams(recipe, loaded, data)
        lineage["data"] = {"sha256": data.digest()}
    else:
        rollouts, golden = _boxed_streams(recipe, loaded)
    return export_bundle(
        loaded.model, path=out, name=recipe.name, labels=loaded.card.labels, preprocess=loaded.card.preprocess,
        rollouts=rollouts, golden_frames=golden, runtimes=runtimes, precisions=precisions, lineage=lineage,
        targets=targets, batches=batches, board=board,
        answer="many" if loaded.card.lineage.get("multi_label") else "one",
    )  # fmt: skip


def _streams(recipe: Recipe, loaded: "Loaded", data: "Dataset") -> tuple[list[Array], Array]:
    """Calibration rollouts spread over the training clips, and a golden stream from validation (else training)."""
    import numpy as np

    preprocess = loaded.card.preprocess
    clips = data.split("train")
    limit = 2 * loaded.card.frames
    rollouts = list(_spread(clips, min(recipe.quantize.rollouts, len(clips)), preprocess, limit))
    others = [clip for clip in data.clips if clip.split == "val"] or list(clips)
    golden: list[Array] = []
    for stream in _spread(others, min(len(others), _GOLDEN_STEPS), preprocess, limit):
        golden.append(stream)
        if sum(len(part) for part in golden) >= _GOLDEN_STEPS:
            break
    if not rollouts or not golden:
        raise UserError(f"data {data.root}: no video to calibrate with can be read; run  vidon data check {data.root}")
    return rollouts, np.concatenate(golden)[:_GOLDEN_STEPS]


def _spread(clips: "Sequence[Clip]", count: int, preprocess: "Preprocess", limit: int) -> Iterator[Array]:
    """Streams of ``count`` clips spread over all; where one is broken, as training leaves it out, the next one's."""
    import numpy as np

    from train.data.opening import read_clip

    taken: set[int] = set()
    for place in np.linspace(0, len(clips) - 1, count):
        for index in range(round(place), len(clips)):
            if index in taken:
                continue
            taken.add(index)
            try:
                yield preprocess.normalise(read_clip(clips[index], preprocess, limit))
                break
            except UserError as error:
                note(f"left out a broken video: {error}")


def _boxed_streams(recipe: Recipe, loaded: "Loaded") -> tuple[list[Array], Array]:
    """The same for a detector: stretches of the training videos spread over time, and validation with most boxes."""
    import numpy as np

    from toolkit.boxed import read_boxed
    from toolkit.coco import read_coco

    preprocess, data = loaded.card.preprocess, read_coco(recipe.data.root, loaded.card.labels)
    length = 2 * loaded.card.frames

    def stretches(split: str, steps: int) -> list[tuple[int, Array]]:
        """Number of boxes and frames (T, 3, H, W) of every stretch of a split."""
        found = []
        for part in data.split(split):
            seen = list(read_boxed(part, preprocess))
            for start in range(0, len(seen), steps):
                block = seen[start : start + steps]
                boxes = sum(0 if each.truth is None else len(each.truth.labels) for each in block)
                found.append((boxes, preprocess.normalise(np.stack([each.picture for each in block]))))
        return found

    every = stretches("train", length)
    chosen = np.linspace(0, len(every) - 1, min(recipe.quantize.rollouts, len(every)))
    others = stretches("val" if any(part.split == "val" for part in data.footage) else "train", _GOLDEN_STEPS)
    golden = max(others, key=lambda pair: (len(pair[1]), pair[0]))[1]
    return [every[round(index)][1] for index in chosen], golden


def _lineage(recipe: Recipe, loaded: "Loaded") -> dict[str, Any]:
    from toolkit import __version__

    return {"vidon": __version__, "recipe": recipe.model_dump(mode="json"), "model": loaded.card.lineage}


def evaluate_bundle(
    bundle: Bundle,
    root: Path | DataConfig,
    split: str,
    keys: Sequence[str] | None = None,
    device: str = "cpu",
    threads: int | None = None,
) -> dict[str, "Evaluation | ManyEvaluation"]:
    """Run artefacts over labelled clips of any format.

    ``split`` "auto" takes the test split if the data has splits, or is what the model was trained on, else every clip;
    "all" takes every clip. ``root`` may be a whole ``[data]`` section, where format, folder of the videos or fold must
    be said.
    """
    from deploy.evaluate import evaluate
    from deploy.evaluate_many import evaluate_many
    from deploy.runtimes import open_session, pick
    from train.data.index import index_data
    from train.data.opening import read_clip

    config, manifest = root if isinstance(root, DataConfig) else DataConfig(root=root), bundle.manifest
    data = index_data(config, manifest.labels)
    if split == "auto":
        given = index_data(config, manifest.labels, "given")
        if given.clips == data.clips or not _trained_on(bundle, data):
            data = given
        else:
            note(f"data {config.root}: the model was trained on it, so its test split alone is judged (or --split all)")
    clips = data.split("test" if split == "auto" else split)
    found: dict[str, Evaluation | ManyEvaluation] = {}
    told: tuple[str, ...] = ()
    for key in keys or [pick(bundle, None).key]:
        session = open_session(bundle, key, device=device, threads=threads)
        try:
            rest = (manifest.labels, manifest.preprocess, f"evaluate {key}", read_clip)
            if manifest.contract.answer == "many":
                found[key] = evaluate_many(session, [(clip, clip.labels) for clip in clips], *rest)
            else:
                found[key] = evaluate(session, [(clip, clip.label) for clip in clips], *rest)
        finally:
            session.close()
        broken = found[key].broken
        if broken and broken != told:  # the same clips for every artefact: named once
            note(f"left out {len(broken)} broken of {len(clips)} videos: " + "; ".join(broken[:5]))
            told = broken
    return found


def _trained_on(bundle: Bundle, data: "Dataset") -> bool:
    """Whether the model's training clips are among these: the same clips anywhere, or the same place."""
    lineage = bundle.manifest.lineage
    root = lineage.get("recipe", {}).get("data", {}).get("root", "")
    return lineage.get("data", {}).get("sha256") == data.digest() or Path(root).resolve() == data.root.resolve()


def evaluate_boxes(
    bundle: Bundle, root: Path, split: str, keys: Sequence[str] | None = None, device: str = "cpu",
    threads: int | None = None,
) -> dict[str, "BoxEvaluation"]:  # fmt: skip
    """COCO's average precision of artefacts over a split of a COCO file."""
    from deploy.detect import evaluate_boxes as evaluate
    from deploy.runtimes import open_session, pick
    from toolkit.coco import read_coco

    data = read_coco(root, bundle.manifest.labels)
    found = {}
    for key in keys or [pick(bundle, None).key]:
        session = open_session(bundle, key, device=device, threads=threads)
        try:
            found[key] = evaluate(session, data, split, bundle.manifest.preprocess, f"evaluate {key}")
        finally:
            session.close()
    return found


def bench_bundle(bundle: Bundle, keys: Sequence[str], steps: int, threads: int | None) -> dict[str, "Latency"]:
    """Step latency of artefacts in interleaved rounds."""
    from deploy.bench import bench
    from deploy.runtimes import open_session

    with ExitStack() as opened:
        sessions = {}
        for key in keys:
            sessions[key] = opened.enter_context(closing(open_session(bundle, key, threads=threads)))
        return bench(sessions, steps)


def latencies_of(values: dict[str, "Latency"]) -> dict[str, Any]:
    """Plain data for JSON."""
    return {key: value.as_dict() for key, value in values.items()}


def keep_best(bundle: Bundle, accuracy: dict[str, float], p50_ms: dict[str, float]) -> Bundle:
    """Name the fastest artefact within one point of the best validation accuracy in the manifest."""
    top = max(accuracy.values())
    close = [key for key, value in accuracy.items() if value >= top - 0.01 and key in p50_ms]
    best = min(close, key=lambda key: p50_ms[key])
    seal(bundle.root, bundle.manifest.model_copy(update={"best": best}))
    return open_bundle(bundle.root)


def compress(recipe: Recipe, teacher: Path | None, out: Path) -> Bundle | None:
    """Distil, prune, recover, quantise and export in one go; finished stages are not repeated.

    Where several processes train, the first one alone exports: the others end with None.
    """
    from deploy.export import asked_of
    from train.loop import is_main
    from train.stages import distill, prune

    asked_of(recipe.quantize.runtimes, recipe.quantize.precisions)  # not after hours of training
    student = distill(recipe, out / "student", teacher)
    model = prune(recipe, out / "pruned", student, teacher) if recipe.prune.ratio > 0 else student
    return export_model(recipe, model, out / f"{recipe.name}.vidon") if is_main() else None
