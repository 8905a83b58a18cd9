"""What ``vidon score``, ``vidon embed`` and ``vidon search`` tell."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from toolkit.errors import UserError
from toolkit.files import prove_writable, writable_dir, writable_file, write_json
from toolkit.recipe import DataConfig
from toolkit.splits import check_split

__all__ = ["embed_clips", "score_model", "search_clips"]


def score_model(model: Path, data: DataConfig, split: str, views: str, out: Path | None) -> dict[str, Any]:
    """Every figure of a trained model on one split; with ``out`` also metrics.json and pictures there."""
    from train.data.index import index_data
    from train.evaluate import judge_split
    from train.models import load_model

    times, _, crops = views.partition("x")
    if not (times.isdigit() and int(times) and crops in ("1", "3")):
        raise UserError(f"--views {views!r} is not TEMPORALxSPATIAL with 1 or 3 spatial crops, for example 3x1")
    check_split(split)
    if out is not None:
        prove_writable(out)
    loaded = load_model(model)
    index = index_data(data, loaded.card.labels)
    if loaded.card.lineage.get("multi_label", False):  # even if every clip here happens to have one label
        index = replace(index, multi_label=True)
    if out is not None:
        writable_dir(out)
    found = judge_split(loaded.model, index, split, loaded.card.preprocess, (int(times), int(crops)), out)
    found = {"model": str(model), **found}
    if out is not None:
        write_json(out / "metrics.json", found)
    return {**found, "text": _score_text(found)}


def _score_text(found: dict[str, Any]) -> str:
    interval = f"95 % interval {found['ci_low']:.3f}-{found['ci_high']:.3f}"
    head = f"{found['model']}, {found['clips']} clips of split {found['split']}:"
    if "top1" in found:
        lines = [f"{head} top-1 {found['top1']:.3f} ({interval}), top-5 {found['top5']:.3f}, mAP {found['map']:.3f}"]
    else:
        lines = [f"{head} mAP {found['map']:.3f}, every label right {found['exact']:.3f} ({interval})"]
    width = max(map(len, found["per_class"]))
    for label, row in found["per_class"].items():
        recall, ap = ("-" if row[key] is None else f"{row[key]:.3f}" for key in ("recall", "ap"))
        lines.append(f"  {label:{width}s}  {row['clips']:5d} clips  recall {recall:>5s}  average precision {ap:>5s}")
    return "\n".join(lines)


def embed_clips(model: Path, data: DataConfig, out: Path) -> dict[str, Any]:
    """Embed every clip; where there are labels, say how good its neighbours are."""
    from train.features import extract
    from train.tasks.retrieval import Retrieval

    made = extract(model, data, out)
    found: dict[str, Any] = {"features": str(out), "clips": len(made.names), "width": made.features.shape[1]}
    text = f"{out}: {found['clips']} clips, {found['width']} numbers each"
    if made.label_names:
        task, gallery, queries = Retrieval(made.label_names), made.take("train"), made.take("val")
        if len(gallery.names) and len(queries.names):
            figures = task.against(gallery.features, gallery.labels, queries.features, queries.labels)
            how = "val clips among train clips"
        else:
            figures, how = task.metrics(made.features, made.labels), "each clip among all others"
        found |= {"judged": how, **{key: value for key, value in figures.items() if key != "clips"}}
        text += f"\n  {how}: " + ", ".join(
            f"{key} {figures[key]:.3f}" for key in figures if key not in ("clips", "asked")
        )
    return {**found, "text": text}


def search_clips(
    features: Path, clip: Path, top: int, model: Path | None, moved: dict[str, Any], sheet: Path
) -> dict[str, Any]:
    """Find the clips most like ``clip`` and draw them. ``moved``: keys of ``[data]`` that are no longer as embedded."""
    from train.contact import contact_sheet
    from train.data.clip import Clip
    from train.features import clips_by_name, read_features, search
    from train.models import load_model

    writable_file(sheet)
    known = read_features(features)
    found = clips_by_name(known.data.model_copy(update=moved))
    hits = search(known, clip, top, model)
    card = load_model(model or known.model).card
    rows: list[tuple[Clip | None, str]] = [(Clip(clip, "", "", ""), f"query\n{clip.name}")]
    rows += [(found.get(hit.name), f"{hit.rank}. {hit.label}\n{hit.cosine:.3f}") for hit in hits]
    contact_sheet(sheet, rows, card.frames, card.preprocess.fps)
    lines = [f"{hit.rank:3d}  {hit.cosine:.3f}  {hit.label:12s}  {hit.name}" for hit in hits]
    return {"query": str(clip), "sheet": str(sheet), "hits": [asdict(hit) for hit in hits],
            "text": "\n".join([*lines, f"contact sheet: {sheet}"])}  # fmt: skip
