"""Join a recipe with the data it names, as far as they are here, and look ahead at its training stages."""

from typing import Any

from toolkit.errors import UserError
from toolkit.recipe import Recipe

__all__ = ["forecast"]

_CLASSES = 2  # where nothing is known: a head is small


def forecast(recipe: Recipe, stage: str | None, clips: int | None, processes: int) -> dict[str, Any]:
    """``stages``: one row each; ``data``: where the number of clips and classes comes from; ``errors``: by stage.

    A recipe without a word about pretraining need not have a teacher that can be pretrained: that is no error.

    Raises:
        UserError: unknown stage.
    """
    from train.outlook import STAGES, check_stage, outlook

    if stage is not None:
        check_stage(stage)
    boxes = recipe.task == "detection"
    labels, count, text = _boxes(recipe) if boxes else _data(recipe, labelled=stage != "pretrain")
    if clips is not None:
        count, text = clips, f"data: {clips} training clips (as given)"
    seen = count
    if boxes and clips is None and stage in (None, "pretrain"):  # pretraining sees clips, not windows of boxes
        seen = _data(recipe, labelled=False)[1]
        text += f"\npretrain: {'unknown' if seen is None else seen} training clips"
    rows, errors = [], {}
    for name in [stage] if stage else STAGES:
        try:
            rows.append(outlook(recipe, name, labels, seen if name == "pretrain" else count, processes).as_dict())
        except UserError as error:
            if stage is None and name == "pretrain" and "pretrain" not in recipe.model_fields_set:
                text += f"\n{name}: {error}"
            else:
                errors[name] = str(error)
    return {"data": text, "clips": count, "classes": len(labels), "stages": rows, "errors": errors}


def _data(recipe: Recipe, labelled: bool) -> tuple[tuple[str, ...], int | None, str]:
    from train.data.index import index_data

    unknown = tuple(str(number) for number in range(_CLASSES))
    root = recipe.data.root
    if not (root.exists() or "{" in root.name):
        return unknown, None, f"data: {root} is not here, give --clips to know the steps"
    try:
        index = index_data(recipe.data, labelled=labelled)
        count = len(index.split("train"))
    except UserError as error:
        return unknown, None, f"data: {error}"
    return index.labels, count, f"data: {count} training clips of {len(index.labels)} classes in {root}"


def _boxes(recipe: Recipe) -> tuple[tuple[str, ...], int | None, str]:
    """The same for a detector, which learns from windows of boxed footage."""
    from toolkit.coco import read_coco
    from train.detect.source import count_windows

    unknown = tuple(str(number) for number in range(_CLASSES))
    try:
        data = read_coco(recipe.data.root)
        windows = count_windows(data.split("train"), recipe.preprocess, recipe.data.frames)
    except UserError as error:
        return unknown, None, f"data: {error}; give --clips (windows of {recipe.data.frames} frames) to know the steps"
    text = f"data: {windows} training windows of {recipe.data.frames} frames, {len(data.labels)} classes of boxes"
    return data.labels, windows, f"{text} in {recipe.data.root}"
