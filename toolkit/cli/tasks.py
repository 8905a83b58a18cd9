"""Commands on a trained model folder: score it on a split, embed clips, search by example."""

from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.cli import app
from toolkit.cli.options import Data, Fold, Format, Json, Videos, data_of, say

__all__: list[str] = []

Model = Annotated[Path, typer.Argument(help="Folder of a trained model (the --out of a training stage).")]


@app.command()
def score(
    model: Model, data: Data, form: Format = None, videos: Videos = None, fold: Fold = None,
    split: Annotated[str, typer.Option("--split", help="val, test, train or all.")] = "val",
    views: Annotated[
        str, typer.Option("--views", help="Views of a clip to average: moments x crops (1 or 3).")
    ] = "1x1",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for figures and metrics.json. Default: none.")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Every figure of a torch model on one split: top-1, top-5, mean average precision, recall by class.

    Exported files are judged by **vidon evaluate**. Example: **vidon score runs/teacher --data clips --views 3x1**
    """
    from toolkit.cli.judge import score_model

    found = score_model(model, data_of(data, form, videos, fold), split, views, out)
    say(as_json, found, found["text"])


@app.command()
def embed(
    model: Model, data: Data, form: Format = None, videos: Videos = None, fold: Fold = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File of features to write (.safetensors).")
    ] = Path("features.safetensors"),
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write the embedding of every clip to a file; labelled clips are also judged by their neighbours.

    Example: **vidon embed runs/teacher --data clips --out features.safetensors**
    """
    from toolkit.cli.judge import embed_clips

    found = embed_clips(model, data_of(data, form, videos, fold), out)
    say(as_json, found, found["text"])


@app.command()
def search(
    features: Annotated[Path, typer.Argument(help="File that vidon embed wrote.")],
    clip: Annotated[Path, typer.Option("--clip", "-c", help="Video to find the like of.")],
    top: Annotated[int, typer.Option("--top", min=1, help="Number of clips to find.")] = 5,
    model: Annotated[
        Path | None, typer.Option("--model", help="Folder of the model that embedded. Default: where it was.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", "-d", help="The clips that were embedded. Default: where they were.")
    ] = None,
    form: Format = None, videos: Videos = None, fold: Fold = None,
    sheet: Annotated[
        Path, typer.Option("--sheet", help="PNG to write, with the query and what was found.")
    ] = Path("search.png"),
    as_json: Json = False,
) -> None:  # fmt: skip
    """Find the clips most like a video, by example, without any words; draws a contact sheet.

    Where the clips lie is known from **vidon embed**; what has moved since, or is read otherwise, can be said anew.

    Example: **vidon search features.safetensors --clip x.mp4 --top 5**
    """
    from toolkit.cli.judge import search_clips

    moved = data_of(data or Path(), form, videos, fold).model_dump(exclude_unset=True)
    if data is None:
        del moved["root"]
    found: dict[str, Any] = search_clips(features, clip, top, model, moved, sheet)
    say(as_json, found, found["text"])
