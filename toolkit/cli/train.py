"""Commands around training: train recipes, train recipe, train plan."""

from typing import Annotated, Any

import typer

from toolkit.cli import app
from toolkit.cli.options import Json, Processes, RecipeFile, Set, recipe_of, say
from toolkit.errors import UserError

__all__: list[str] = []

_PARTS = ("weights", "gradients", "optimizer", "average", "activations", "batch")
Stage = Annotated[
    str | None,
    typer.Option("--stage", help="Plan one stage alone: pretrain, finetune or distill. Default: all of them."),
]
Clips = Annotated[
    int | None,
    typer.Option(
        "--clips",
        min=1,
        help="Number of training clips to count steps for. Default: those of the recipe's data, if they are here.",
    ),
]

train_app = typer.Typer(help="Recipes to start from, and what a training will cost.", no_args_is_help=True)
app.add_typer(train_app, name="train")


@train_app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes that vidon brings along.

    Example: **vidon train recipes**
    """
    from toolkit.shelf import recipes as shelf

    found = shelf()
    wide = max(len(name) for name in found)
    say(as_json, found, "\n".join(f"{name:{wide}}  {purpose}" for name, purpose in found.items()))


@train_app.command()
def recipe(name: Annotated[str, typer.Argument(help="Name of a recipe; see vidon train recipes.")]) -> None:
    """Print a recipe: save it, change it, train with it.

    Example: **vidon train recipe finetune > my.toml**
    """
    from toolkit.shelf import recipe_text

    typer.echo(recipe_text(name), nl=False)


@train_app.command()
def plan(
    recipe: RecipeFile = None, stage: Stage = None, clips: Clips = None, processes: Processes = 1, set_: Set = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Say what training will cost: parameters, operations, memory, steps. Nothing is decoded or trained.

    Exit code 2 if a stage cannot be trained as the recipe says; the others are told all the same.

    Example: **vidon train plan my.toml --stage pretrain --processes 8 --clips 240000**
    """
    from toolkit.cli.forecast import forecast

    found = forecast(recipe_of(recipe, set_), stage, clips, processes)
    say(as_json, found, _page(found))
    if found["errors"]:
        raise UserError("; ".join(f"{name}: {why}" for name, why in found["errors"].items()))


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _page(found: dict[str, Any]) -> str:
    lines = [found["data"]]
    for row in found["stages"]:
        steps = "unknown" if row["steps"] is None else f"{row['steps']:,} ({row['per_epoch']:,} an epoch)"
        parts = ", ".join(f"{_short(row[f'{part}_mib'])} {part}" for part in _PARTS)
        lines += [
            f"{row['stage']}:", f"  parameters  {_short(row['parameters'] / 1e6)} million",
            f"  operations  {_short(row['forward_gflops'])} GFLOPs a clip forward, {_short(row['step_gflops'])} a step",
            f"  memory      {_short(row['memory_mib'])} MiB in each process (estimated: {parts}; "
            f"{row['clips_at_once']} clips at once)",
            f"  steps       {steps}",
        ]  # fmt: skip
    return "\n".join(lines)
