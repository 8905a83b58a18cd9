"""What the training stages share: opening the data, recognising a finished stage, leaving its results.

Each stage takes a recipe and an output folder and leaves there the model, the resolved recipe, the metrics and a
``done.json`` with a hash of everything that decided the result; a finished stage is recognised by it and not
repeated, an interrupted one goes on from its checkpoint.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from toolkit.errors import UserError
from toolkit.files import prove_writable, sha256, writable_dir, write_json, write_text
from toolkit.lock import alone
from toolkit.progress import note
from toolkit.recipe import Recipe, StudentConfig
from train.data.batch import Source
from train.data.clips import Augment
from train.data.index import Dataset, index_data
from train.data.sources import open_source
from train.evaluate import answer
from train.loop import is_main, main_first, wait_for_all
from train.models.mobilenet_v2 import IMAGENET, load_imagenet
from train.models.store import Card, Model, fingerprint, load_model, load_teacher, save_model
from train.models.student import StreamStudent

__all__ = [
    "Data",
    "begin",
    "card_of",
    "finish",
    "finished",
    "frozen_norms",
    "guide_of",
    "open_data",
    "own_weights",
    "parents_of",
    "run_folder",
    "run_stage",
    "start_from",
    "take_backbone",
    "validator",
]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MAY_DIFFER = ("readout.", "stem.")  # of a student that starts from another one


@dataclass(frozen=True, slots=True)
class Data:
    """The splits that training may see: never the test split."""

    index: Dataset
    train: Source
    val: Source | None
    augment: Augment


def open_data(recipe: Recipe, cache: Path | None = None, labelled: bool = True) -> Data:
    """Index the clips of a recipe and open training and validation, in memory or decoded on demand.

    Without ``labelled`` the labels are not used, so one class, or videos in no class folder, will do.

    Raises:
        UserError: whatever is wrong with the data, in one line.
    """
    index = index_data(recipe.data, labelled=labelled)
    train = open_source(recipe.data, index, "train", recipe.preprocess, random=True, cache=cache)
    has_val = any(clip.split == "val" for clip in index.clips)
    val = open_source(recipe.data, index, "val", recipe.preprocess, random=False, cache=cache) if has_val else None
    if labelled and not has_val and is_main():
        note(f"data {recipe.data.root} has no validation clip: nothing chooses the weights; add a split 'val'")
    if index.taken and is_main():
        note(f"data {recipe.data.root} has no list for validation: {index.taken} training clips, of whole groups, are "
             f"kept for it (data.val_share = {recipe.data.val_share:g}, 0: none)")  # fmt: skip
    flips = recipe.data.flips if labelled else {}
    augment = Augment(recipe.preprocess, index.labels, recipe.data.mirror, flips)
    return Data(index, train, val, augment)


def validator(model: Model, data: Data, recipe: Recipe) -> Callable[[], float] | None:
    """Accuracy on the validation split (mean average precision with many labels), or None without one."""
    val = data.val
    return None if val is None else lambda: answer(model, val, recipe.preprocess).score


def card_of(recipe: Recipe, kind: str, labels: tuple[str, ...]) -> Card:
    """The card of a teacher or student with this recipe's settings."""
    config = recipe.teacher if kind == "teacher" else recipe.student
    return Card.model_validate({
        "kind": kind, "config": config.model_dump(mode="json"), "labels": labels,
        "preprocess": recipe.preprocess, "frames": recipe.data.frames,
    })  # fmt: skip


def guide_of(teacher: Path | None, recipe: Recipe) -> Model | None:
    """The teacher to distil from: a saved model, or ``hf:<folder or hub id>``; None without one."""
    if teacher is None:
        return None
    labels = index_data(recipe.data).labels
    return load_teacher(teacher, labels, recipe.preprocess, recipe.data.frames)


def parents_of(**folders: str | Path | None) -> dict[str, str]:
    """Hashes of the models a stage starts from."""
    return {name: fingerprint(folder) for name, folder in folders.items() if folder is not None}


def own_weights(student: StudentConfig) -> Path | None:
    """The user's weights that a student starts from, if any; those of ImageNet come with vidon."""
    return None if str(student.pretrained) == "imagenet" else student.pretrained


def run_stage(
    name: str, recipe: Recipe, sections: tuple[str, ...], parents: dict[str, str], out: Path, kind: str,
    work: Callable[[Data], Model], report: Callable[[Model, Data], dict[str, Any]] | None = None,
) -> Path:  # fmt: skip
    """Skip a finished stage, else do ``work`` and leave model, recipe and ``done.json``.

    ``report`` adds to ``done.json`` what is only known, and only asked, when the model is final.
    """
    resolved = json.loads(recipe.model_dump_json())
    decided = {key: resolved[key] for key in (*sections, "data", "preprocess")}
    decided["run"] = {key: resolved["run"][key] for key in ("precision", "accumulate")}  # the rest is how, not what
    for where in ("root", "videos", "device"):  # the same clips found elsewhere are the same data
        del decided["data"][where]
    labelled = name != "pretrain"
    if is_main() and not (out / "done.json").is_file():  # a finished run may lie on a disk that is read-only by now
        prove_writable(out)
    clips = index_data(recipe.data, labelled=labelled).digest()
    text = json.dumps([name, decided, clips, parents], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    if finished(out, key):
        note(f"  {name}: already done in {out}")
        return out
    with run_folder(out):
        with main_first(recipe.run):
            if is_main():
                begin(out, key, decided, recipe)
            data = open_data(recipe, out.parent / "cache", labelled)
        model = work(data)
        if is_main():
            labels = data.index.labels
            lineage = {"stage": name, "parents": parents, "multi_label": data.index.multi_label}
            card = card_of(recipe, kind, labels).model_copy(update={"lineage": lineage})
            save_model(out, model, card)
            result: dict[str, Any] = {"stage": name}
            if data.val is not None and labelled:
                result["metric"] = "mAP" if data.index.multi_label else "accuracy"
                result["validation"] = answer(model, data.val, recipe.preprocess).score
            if report is not None:
                result |= report(model, data)
            finish(out, key, result)
        wait_for_all()
    return out


def start_from(student: StreamStudent, recipe: Recipe) -> None:
    """Load ``student.pretrained``: ImageNet weights, a TFLite file or a saved model's folder."""
    source = recipe.student.pretrained
    if source is None:
        return
    if str(source) == "imagenet":
        load_imagenet(student, IMAGENET)
    elif source.is_dir():
        take_backbone(student, load_model(source).model, source)
    else:
        load_imagenet(student, source)


def take_backbone(student: StreamStudent, start: Model, source: Path) -> None:
    """Fill a student with what another one has in common with it: all but readout, look-back and temporal modules.

    Raises:
        UserError: the other one is no student of these widths.
    """
    own, state = student.state_dict(), start.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    wrong = [name for name in own if name in state.keys() - fitting.keys() and not name.startswith(_MAY_DIFFER)]
    if wrong or all(name.startswith(_MAY_DIFFER) for name in fitting):
        reason = f"{wrong[0]} has another shape" if wrong else "no weight fits"
        raise UserError(f"model {source} is no start for the recipe's student ({reason}): use the same [student]")
    student.load_state_dict(fitting, strict=False)


def frozen_norms(model: nn.Module, rates: Callable[[str], float]) -> list[nn.Module]:
    """The batch norms of frozen layers: their statistics stay as they are too."""
    return [
        module for name, module in model.named_modules()
        if isinstance(module, _NORMS) and all(rates(f"{name}.{own}") == 0 for own in ("weight", "bias"))
    ]  # fmt: skip


@contextlib.contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Make the folder of a run and hold it: two runs in one folder would tear each other's files.

    Raises:
        UserError: the folder cannot be written to, or another run is in it.
    """
    if not is_main():
        yield
        return
    with alone(writable_dir(out), "training"):
        for name in ("checkpoint", "model"):  # a run that was killed while it wrote left its half behind
            for torn in out.glob(f".{name}.safetensors.*"):
                torn.unlink()
        yield


def begin(out: Path, key: str, decided: dict[str, Any], recipe: Recipe) -> None:
    """Leave the recipe, and what decided a run that starts or goes on; ``key`` is the hash of that and of the data.

    Raises:
        UserError: an interrupted run of other settings, data or weights is here; it is not thrown away unasked.
    """
    checkpoint, started = out / "checkpoint.safetensors", out / "started.json"
    if checkpoint.is_file() and _key_in(started) != key:
        if not (out / "done.json").is_file():
            raise UserError(
                f"{out} holds an interrupted run of other settings, data or weights{_changes(started, decided)}: go on "
                f"with those, choose another --out, or remove {checkpoint} to start anew"
            )
        checkpoint.unlink()
    (out / "done.json").unlink(missing_ok=True)
    write_text(out / "recipe.json", recipe.model_dump_json(indent=2) + "\n")
    write_json(started, {"key": key, "decided": decided})


def _changes(started: Path, decided: dict[str, Any]) -> str:
    """What decides otherwise than when the run was started: `` (finetune.lr 0.1, now 0.2)``."""
    try:
        before, now = _leaves(json.loads(started.read_bytes())["decided"]), _leaves(decided)
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    found = [f"{key} {before.get(key)}, now {now[key]}" for key in now if now[key] != before.get(key)]
    return f" ({'; '.join(found[:3])})" if found else ""


def _leaves(table: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(table, dict) or not table:
        return {name: table}
    inner = [_leaves(value, f"{name}.{key}" if name else str(key)) for key, value in table.items()]
    return {key: value for part in inner for key, value in part.items()}


def finish(out: Path, key: str, result: dict[str, Any]) -> None:
    """Leave ``done.json``, which names the saved weights, and drop the checkpoint."""
    write_json(out / "done.json", {"key": key, "weights": sha256(out / "model.safetensors"), **result})
    (out / "checkpoint.safetensors").unlink(missing_ok=True)


def finished(out: Path, key: str) -> bool:
    """Whether this very run has ended here, and its model is still what it left."""
    if _key_in(out / "done.json") != key or not (out / "model.json").is_file():
        return False
    try:
        return bool(json.loads((out / "done.json").read_bytes())["weights"] == sha256(out / "model.safetensors"))
    except (OSError, ValueError, KeyError):
        return False


def _key_in(file: Path) -> str | None:
    try:
        return str(json.loads(file.read_bytes())["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
