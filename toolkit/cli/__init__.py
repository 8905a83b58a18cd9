"""The command line: a command parses, imports lazily, calls one public function and prints.

This package is the one place that knows both ``train`` and ``deploy``. Results go to stdout (``--json`` for
scripts), progress to stderr. User errors are one line and exit code 2; Ctrl-C is exit code 130 and the same
command run again goes on where it stopped.
"""

import importlib
import sys
from typing import Annotated, Any

import typer
import typer.core

from toolkit import __version__
from toolkit.errors import VidonError

__all__ = ["app"]


class _Group(typer.core.TyperGroup):
    """Catches vidon's errors once, for every command."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except VidonError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt as error:
            print("interrupted: run the same command again to go on", file=sys.stderr)
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Group,
    name="vidon",
    help="Train, compress and deploy video models to edge devices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vidon {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One road: clips -> teacher -> streaming student -> verified bundle -> live camera -> report."""


# They register their commands on app, which must exist first.
for _module in (  # the order of the help: along the road
    "demo",
    "data",
    "train",
    "training",
    "tasks",
    "deployment",
    "devices",
):
    importlib.import_module(f"toolkit.cli.{_module}")
