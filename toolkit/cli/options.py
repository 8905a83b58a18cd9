"""Options that several commands share, each defined once."""

import json
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from toolkit.errors import UserError, nearest
from toolkit.files import writing
from toolkit.recipe import DataConfig, Recipe, load_recipe

__all__ = [
    "Data",
    "Device",
    "Fold",
    "Format",
    "Json",
    "MemoryMode",
    "Out",
    "Processes",
    "RecipeFile",
    "RuntimeNames",
    "Set",
    "SystemConfig",
    "Targets",
    "Threads",
    "VelaConfig",
    "Videos",
    "data_of",
    "names",
    "recipe_of",
    "say",
]

RecipeFile = Annotated[
    Path | None, typer.Argument(help="Recipe (TOML). Without one the defaults apply.", metavar="[RECIPE]")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="Override one value: --set distill.epochs=5", metavar="KEY=VALUE"),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; an interrupted run goes on here.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Processes = Annotated[
    int, typer.Option("--processes", min=1, help="Training processes on this machine: one a GPU, or CPU processes.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the runtime (default: its own choice).")
]
Data = Annotated[Path, typer.Option("--data", "-d", help="Labelled clips of any format that training reads.")]
Format = Annotated[
    str | None, typer.Option("--format", help="Format of the data, if it is not to be guessed, for example kinetics.")
]
Videos = Annotated[Path | None, typer.Option("--videos", help="Folder of the videos, if not beside their list.")]
Fold = Annotated[
    int | None, typer.Option("--fold", min=1, max=3, help="Which published split of UCF101 or HMDB51 (default: 1).")
]
Device = Annotated[str, typer.Option("--device", help="Device of the runtime, for example cpu.")]
RuntimeNames = Annotated[
    str | None, typer.Option("--runtimes", help="Comma-separated runtimes, for example onnxruntime,openvino.")
]

Targets = Annotated[
    str | None,
    typer.Option("--target", help="Comma-separated chips to compile for in int8, for example u55-128,rk3588,sm8650."),
]
VelaConfig = Annotated[
    Path | None, typer.Option("--vela-config", help="Ethos-U: your board's .ini for Vela, instead of Arm's reference.")
]
SystemConfig = Annotated[
    str | None, typer.Option("--system-config", help="Its section [System_Config.NAME], if there are several.")
]
MemoryMode = Annotated[
    str | None, typer.Option("--memory-mode", help="Its section [Memory_Mode.NAME], if there are several.")
]


def recipe_of(path: Path | None, overrides: list[str] | None) -> Recipe:
    """Load the recipe with its overrides."""
    return load_recipe(path, tuple(overrides or ()))


def data_of(
    root: Path, form: str | None = None, videos: Path | None = None, fold: int | None = None, **more: Any
) -> DataConfig:
    """The data that ``--data``, ``--format``, ``--videos`` and ``--fold`` name, as a recipe's ``[data]`` would.

    ``more`` of its values may be set.

    Raises:
        UserError: no such format.
    """
    formats = get_args(DataConfig.model_fields["format"].annotation)
    if form is not None and form not in formats:
        raise UserError(f"unknown format {form!r}{nearest(form, formats)}; formats: {', '.join(formats)}")
    given = {"root": root, "format": form, "videos": videos, "fold": fold, **more}
    return DataConfig.model_validate({key: value for key, value in given.items() if value is not None})


def names(text: str | None, default: tuple[str, ...]) -> tuple[str, ...]:
    """Split a comma-separated option.

    Raises:
        UserError: the list is empty.
    """
    if text is None:
        return default
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise UserError("an empty list of names was given: write for example onnxruntime,openvino")
    return found


def say(as_json: bool, value: dict[str, Any], text: str) -> None:
    """Print ``value`` as JSON or ``text`` for people; a ``text`` inside the value is for people too."""
    told = {key: part for key, part in value.items() if key != "text"}
    with writing(Path("to standard output")):
        typer.echo(json.dumps(told, indent=2, default=str) if as_json else text)
