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
    "either",
    "names",
    "recipe_of",
    "say",
]

RecipeFile = Annotated[
    Path | None,
    typer.Argument(
        help="Recipe (TOML), see vidon train recipes. Default: every key as it is by itself.", metavar="RECIPE"
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        help="Override one value of the recipe, for example distill.epochs=5; may be repeated. Default: none.",
        metavar="KEY=VALUE",
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write; an interrupted run goes on here.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Processes = Annotated[
    int, typer.Option("--processes", min=1, help="Training processes on this machine: one per GPU, or CPU processes.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the runtime. Default: its own choice.")
]
Data = Annotated[
    Path,
    typer.Option("--data", "-d", help="Labelled clips: a folder, list or shards of any format that training reads."),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", help="folders, csv, kinetics, ucf101, hmdb51, something, coco or shards. Default: found by itself."
    ),
]
Videos = Annotated[
    Path | None, typer.Option("--videos", help="Folder of the videos that a list names. Default: beside the list.")
]
Fold = Annotated[
    int | None, typer.Option("--fold", min=1, max=3, help="Published split of UCF101 or HMDB51, 1 to 3. Default: 1.")
]
Device = Annotated[
    str, typer.Option("--device", help="Device of the runtime, one that vidon devices lists, for example cuda.")
]
RuntimeNames = Annotated[
    str | None,
    typer.Option(
        "--runtimes",
        help="Comma-separated runtimes, for example onnxruntime,openvino. Default: those of the "
        "recipe's quantize.runtimes; with --target none.",
    ),
]

Targets = Annotated[
    str | None,
    typer.Option(
        "--target",
        help="Comma-separated chips to compile for in int8, for example u55-128,rk3588,sm8650. Default: none.",
    ),
]
VelaConfig = Annotated[
    Path | None, typer.Option("--vela-config", help="Ethos-U: your board's .ini for Vela. Default: Arm's reference.")
]
SystemConfig = Annotated[
    str | None,
    typer.Option("--system-config", help="NAME of a section [System_Config.NAME] of that .ini. Default: the only one."),
]
MemoryMode = Annotated[
    str | None,
    typer.Option("--memory-mode", help="NAME of a section [Memory_Mode.NAME] of that .ini. Default: the only one."),
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


def either(**given: object) -> None:
    """Refuse two options of which one leaves the other nothing to say.

    >>> either(all=True, artefact=None)

    Raises:
        UserError: more than one was given.
    """
    names = [f"--{name}" for name, value in given.items() if value]
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} exclude each other: leave one out")


def say(as_json: bool, value: dict[str, Any], text: str) -> None:
    """Print ``value`` as JSON or ``text`` for people; a ``text`` inside the value is for people too."""
    told = {key: part for key, part in value.items() if key != "text"}
    with writing(Path("to standard output")):
        typer.echo(json.dumps(told, indent=2, default=str) if as_json else text)
