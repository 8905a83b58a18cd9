"""What the training stages share: opening the data, recognising a finished stage, leaving its results.

Each stage takes a recipe and an output folder and leaves there the model, the resolved recipe, the metrics and a
``done.json`` with a hash of everything that decided the result; a finished stage is recognised by it and not
repeated, an interrupted one goes on from its checkpoint.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.files import sha256, writable_dir, write_json, write_text
from toolkit.progress import note
from toolkit.recipe import Recipe
from train.data.clips import Augment, Pictures, load_pictures
from train.data.index import Dataset, index_clips
from train.evaluate import answer
from train.models.mobilenet_v2 import IMAGENET, load_imagenet
from train.models.store import Card, Model, load_model, save_model
from train.models.student import StreamStudent

__all__ = ["Data", "card_of", "open_data", "parents_of", "run_stage", "start_from", "validator"]


@dataclass(frozen=True, slots=True)
class Data:
    """The decoded splits that training may see: never the test split."""

    index: Dataset
    train: Pictures
    val: Pictures | None
    augment: Augment


def open_data(recipe: Recipe, cache: Path | None = None) -> Data:
    """Index and decode the training and validation clips of a recipe.

    Raises:
        UserError: whatever is wrong with the data, in one line.
    """
    index = index_clips(recipe.data.root)
    train = load_pictures(index, "train", recipe.preprocess, recipe.data.frames, cache)
    has_val = any(clip.split == "val" for clip in index.clips)
    val = load_pictures(index, "val", recipe.preprocess, recipe.data.frames, cache) if has_val else None
    augment = Augment(recipe.preprocess, index.labels, recipe.data.mirror, recipe.data.flips)
    return Data(index, train, val, augment)


def validator(model: Model, data: Data, recipe: Recipe) -> Callable[[], float] | None:
    """Accuracy on the validation split, or None without one."""
    val = data.val
    return None if val is None else lambda: answer(model, val, recipe.preprocess).accuracy


def card_of(recipe: Recipe, kind: str, labels: tuple[str, ...]) -> Card:
    """The card of a teacher or student with this recipe's settings."""
    config = recipe.teacher if kind == "teacher" else recipe.student
    return Card.model_validate({
        "kind": kind, "config": config.model_dump(mode="json"), "labels": labels,
        "preprocess": recipe.preprocess, "frames": recipe.data.frames,
    })  # fmt: skip


def parents_of(**folders: Path | None) -> dict[str, str]:
    """Hashes of the models a stage starts from."""
    return {name: sha256(folder / "model.safetensors") for name, folder in folders.items() if folder is not None}


def run_stage(
    name: str, recipe: Recipe, sections: tuple[str, ...], parents: dict[str, str], out: Path, kind: str,
    work: Callable[[Data], Model],
) -> Path:  # fmt: skip
    """Skip a finished stage, else do ``work`` and leave model, recipe and ``done.json``."""
    resolved = json.loads(recipe.model_dump_json())
    decided = {key: resolved[key] for key in (*sections, "data", "preprocess")}
    del decided["data"]["root"]  # the same clips under another path are the same data
    clips = index_clips(recipe.data.root).digest()
    text = json.dumps([name, decided, clips, parents], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()
    done, started = out / "done.json", out / "started.json"
    if _says(done, key):
        note(f"  {name}: already done in {out}")
        return out
    writable_dir(out)
    if (out / "checkpoint.safetensors").is_file() and not _says(started, key):
        (out / "checkpoint.safetensors").unlink()  # of other settings: cannot be continued
    done.unlink(missing_ok=True)
    write_json(started, {"key": key})
    data = open_data(recipe, out.parent / "cache")
    model = work(data)
    labels = data.index.labels
    card = card_of(recipe, kind, labels).model_copy(update={"lineage": {"stage": name, "parents": parents}})
    save_model(out, model, card)
    write_text(out / "recipe.json", recipe.model_dump_json(indent=2) + "\n")
    result: dict[str, Any] = {"key": key, "stage": name}
    if data.val is not None:
        result["validation"] = answer(model, data.val, recipe.preprocess).accuracy if name != "pretrain" else None
    write_json(done, result)
    (out / "checkpoint.safetensors").unlink(missing_ok=True)
    return out


def start_from(student: StreamStudent, recipe: Recipe) -> None:
    """Fill a fresh student with the weights that ``student.pretrained`` names, as far as they fit."""
    source = recipe.student.pretrained
    if source is None:
        return
    if str(source) == "imagenet":
        load_imagenet(student, IMAGENET)
    elif source.is_dir():
        state = load_model(source).model.state_dict()
        own = student.state_dict()
        student.load_state_dict({n: t for n, t in state.items() if n in own and own[n].shape == t.shape}, strict=False)
    else:
        load_imagenet(student, source)


def _says(file: Path, key: str) -> bool:
    try:
        return bool(json.loads(file.read_text())["key"] == key)
    except (OSError, ValueError, KeyError):
        return False
