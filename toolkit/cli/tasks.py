"""Commands on a trained model folder: score it on a split, embed clips, search by example."""

from pathlib import Path
from typing import Annotated, Any

import typer

from toolkit.cli import app
from toolkit.cli.options import Json, say

__all__: list[str] = []

Model = Annotated[Path, typer.Argument(help="Folder of a trained model (the --out of a training stage).")]
Data = Annotated[Path, typer.Option("--data", "-d", help="Labelled clips, as for training.")]


@app.command()
def score(
    model: Model,
    data: Data,
    split: Annotated[str, typer.Option("--split", help="val, test, train or all.")] = "val",
    views: Annotated[
        str, typer.Option("--views", help="Temporal x spatial crops to average, for example 3x3.")
    ] = "1x1",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for figures and metrics.json.")] = None,
    as_json: Json = False,
) -> None:
    """Every figure of a torch model on one split: top-1, top-5, mean average precision, recall by class.

    Exported files are judged by **vidon evaluate**. Example: **vidon score runs/teacher --data clips --views 3x1**
    """
    from toolkit.cli.judge import score_model

    found = score_model(model, data, split, views, out)
    say(as_json, found, found["text"])


@app.command()
def embed(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("features.safetensors"),
    as_json: Json = False,
) -> None:
    """Write the embedding of every clip to a file; labelled clips are also judged by their neighbours.

    Example: **vidon embed runs/teacher --data clips --out features.safetensors**
    """
    from toolkit.cli.judge import embed_clips

    found = embed_clips(model, data, out)
    say(as_json, found, found["text"])


@app.command()
def search(
    features: Annotated[Path, typer.Argument(help="File of vidon embed.")],
    clip: Annotated[Path, typer.Option("--clip", "-c", help="Video to find the like of.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many to find.")] = 5,
    model: Annotated[Path | None, typer.Option("--model", help="The model's folder, if it was moved.")] = None,
    data: Annotated[Path | None, typer.Option("--data", "-d", help="The clips' folder, if it was moved.")] = None,
    sheet: Annotated[Path, typer.Option("--sheet", help="PNG with the query and what was found.")] = Path("search.png"),
    as_json: Json = False,
) -> None:
    """Find the clips most like a video, by example, without any words; draws a contact sheet.

    Example: **vidon search features.safetensors --clip x.mp4 --top 5**
    """
    from toolkit.cli.judge import search_clips

    found: dict[str, Any] = search_clips(features, clip, top, model, data, sheet)
    say(as_json, found, found["text"])
