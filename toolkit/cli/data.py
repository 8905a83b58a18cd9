"""Commands on labelled clips: data check, data shard."""

import re
from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli import app
from toolkit.cli.options import Fold, Format, Json, Videos, data_of, say
from toolkit.errors import UserError

__all__: list[str] = []

data_app = typer.Typer(help="Look at labelled clips before training, and pack them.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Root = Annotated[
    Path, typer.Argument(help="Folder per class, split folders, CSV, Kinetics / UCF101 / HMDB51 / "
                         "Something-Something / COCO lists, or tar shards.")
]  # fmt: skip
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="Decoding processes. Default: one per core.")]

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?$", re.IGNORECASE)


def _bytes(text: str) -> int:
    """``256MB`` in bytes.

    Raises:
        UserError: no such size.
    """
    match = _SIZE.match(text.strip())
    size = round(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ")) if match else 0
    if size < 1:
        raise UserError(f"--size {text!r} is no size: write for example 256MB")
    return size


@data_app.command("check")
def data_check(
    root: Root, form: Format = None, videos: Videos = None, fold: Fold = None,
    frames: Annotated[
        int, typer.Option(min=1, help="Frames, at --fps, that a clip must have not to be too short.")
    ] = 2,
    fps: Annotated[float, typer.Option(min=0.01, help="Frames a second at which --frames are counted.")] = 10.0,
    distance: Annotated[
        float | None, typer.Option("--distance", min=0, max=1, help="At less distance two clips look like copies: "
                                   "0 (do not look for them) to 1. Default: 0.1.")
    ] = None,
    mirrored: Annotated[bool, typer.Option("--mirrored", help="Look for copies of mirror images too.")] = False,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder that keeps what was seen: an interrupted check goes on, a "
                                  "later one decodes only what is new. Default: nothing is kept.")
    ] = None,
    workers: Workers = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Decode every clip: unreadable, too short and duplicate videos, leaks between splits; exit code 2 if any.

    Clips that look the same, such as re-encoded, trimmed or cropped copies, are a warning within a split and a leak
    between two.

    Example: **vidon data check clips/ --frames 16**
    """
    from toolkit.cli.inspect import check_data

    if mirrored and distance == 0:
        raise UserError("--mirrored looks for copies of mirror images, --distance 0 for no copies: leave one out")
    config = data_of(root, form, videos, fold, val_share=0)  # leaks of the lists themselves
    result = check_data(config, frames=frames, fps=fps, workers=workers, distance=distance, mirrored=mirrored,
                        cache=cache)  # fmt: skip
    say(as_json, result, result["text"])
    raise typer.Exit(0 if result["ok"] else 2)


@data_app.command("shard")
def data_shard(
    root: Root,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the shards; an interrupted run goes on here.")],
    size: Annotated[str, typer.Option("--size", help="Largest size of a shard, in KB, MB or GB.")] = "256MB",
    form: Format = None, videos: Videos = None, fold: Fold = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Reading processes.")] = 2, as_json: Json = False,
) -> None:  # fmt: skip
    """Pack clips into WebDataset tar shards with an index, for large data and remote storage.

    Example: **vidon data shard clips/ --out shards/ --size 256MB**
    """
    from dataclasses import asdict

    from toolkit.files import prove_writable
    from train.data.index import index_data
    from train.data.shard import write_shards

    limit, config = _bytes(size), data_of(root, form, videos, fold, val_share=0)
    prove_writable(out)
    packed = write_shards(index_data(config), out, limit, workers)
    text = f"{packed.index}: {packed.clips} clips in {packed.shards} shards, {packed.bytes / 1e6:.1f} MB"
    say(as_json, asdict(packed), text)
