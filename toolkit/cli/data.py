"""Commands on labelled clips: data check."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli import app
from toolkit.cli.options import Json, say

__all__: list[str] = []

data_app = typer.Typer(help="Look at labelled clips before training.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("check")
def data_check(
    root: Annotated[
        Path, typer.Argument(help="Folder per class, split folders, or a CSV (path,label[,split][,group]).")
    ],
    as_json: Json = False,
) -> None:
    """Decode every clip and count what is there, by split and class; exit code 2 if a video is broken.

    Example: **vidon data check clips/**
    """
    from toolkit.cli.inspect import check_data

    result = check_data(root)
    say(as_json, result, result["text"])
    raise typer.Exit(2 if result["broken"] else 0)
