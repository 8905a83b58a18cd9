"""Commands of the server side: pretrain, finetune, distill, prune, compress."""

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli import app
from toolkit.cli.launch import in_processes
from toolkit.cli.options import Json, Out, Processes, RecipeFile, Set, recipe_of, say

__all__: list[str] = []

Teacher = Annotated[
    Path | None, typer.Option("--teacher", help="Folder of the fine-tuned teacher. Default: none, the labels alone.")
]
Init = Annotated[
    Path | None,
    typer.Option(
        "--init",
        help="Folder of a pretrained encoder to start from. Default: the recipe's teacher.pretrained, else scratch.",
    ),
]


def _trained(folder: Path, as_json: bool) -> None:
    import json

    done = json.loads((folder / "done.json").read_bytes())
    validation, loss = done.get("validation"), done.get("loss")
    metric = done.get("metric") or ("accuracy" if validation is not None else None)
    table = {"model": str(folder), "stage": done["stage"], "metric": metric, "validation": validation}
    if loss is not None:
        say(as_json, {**table, "loss": loss}, f"{folder}: {metric} {loss:.3f}")
    else:
        say(as_json, table, f"{folder}" + (f": validation {metric} {validation:.3f}" if validation is not None else ""))


@app.command()
def pretrain(
    recipe: RecipeFile = None, out: Out = Path("runs/pretrained"), set_: Set = None, processes: Processes = 1,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Self-supervised training of the teacher's encoder by the objectives of the recipe; labels are not used.

    Example: **vidon pretrain recipe.toml --out runs/pretrained --set pretrain.epochs=50**
    """
    in_processes(processes, "pretrain", recipe, sets=set_, out=out, json=as_json)
    from train.stages import pretrain as stage

    _trained(stage(recipe_of(recipe, set_), out), as_json)


@app.command()
def finetune(
    recipe: RecipeFile = None, init: Init = None, out: Out = Path("runs/teacher"), set_: Set = None,
    processes: Processes = 1, as_json: Json = False,
) -> None:  # fmt: skip
    """Train the teacher on the labels, from a pretrained encoder or from scratch.

    Example: **vidon finetune recipe.toml --init runs/pretrained --out runs/teacher**
    """
    in_processes(processes, "finetune", recipe, sets=set_, init=init, out=out, json=as_json)
    from train.stages import finetune as stage

    _trained(stage(recipe_of(recipe, set_), out, init), as_json)


@app.command()
def distill(
    recipe: RecipeFile = None, teacher: Teacher = None, out: Out = Path("runs/student"), set_: Set = None,
    processes: Processes = 1, as_json: Json = False,
) -> None:  # fmt: skip
    """Train the streaming student on the labels and the teacher's soft answers.

    Example: **vidon distill recipe.toml --teacher runs/teacher --out runs/student**
    """
    in_processes(processes, "distill", recipe, sets=set_, teacher=teacher, out=out, json=as_json)
    from train.stages import distill as stage

    _trained(stage(recipe_of(recipe, set_), out, teacher), as_json)


@app.command()
def probe(recipe: RecipeFile = None, out: Out = Path("runs/probe"), set_: Set = None, as_json: Json = False) -> None:
    """Few clips: fit a student's motion readout on a frozen ImageNet backbone. Minutes, no seed, no teacher.

    Example: **vidon probe recipe.toml --out runs/probe**
    """
    from train.stages import probe as stage

    _trained(stage(recipe_of(recipe, set_), out), as_json)


@app.command()
def prune(
    student: Annotated[Path, typer.Argument(help="Folder of the trained student.")],
    recipe: RecipeFile = None, teacher: Teacher = None, out: Out = Path("runs/pruned"), set_: Set = None,
    processes: Processes = 1, as_json: Json = False,
) -> None:  # fmt: skip
    """Remove channels from a student and recover by distillation.

    Example: **vidon prune runs/student recipe.toml --teacher runs/teacher --set prune.ratio=0.5**
    """
    in_processes(processes, "prune", student, recipe, sets=set_, teacher=teacher, out=out, json=as_json)
    from train.stages import prune as stage

    _trained(stage(recipe_of(recipe, set_), out, student, teacher), as_json)


@app.command()
def compress(
    recipe: RecipeFile = None, teacher: Teacher = None, out: Out = Path("runs/compressed"), set_: Set = None,
    processes: Processes = 1, as_json: Json = False,
) -> None:  # fmt: skip
    """Distil, prune, quantise and export in one go; an interrupted run goes on where it stopped.

    Example: **vidon compress recipe.toml --teacher runs/teacher --out runs/door**
    """
    in_processes(processes, "compress", recipe, sets=set_, teacher=teacher, out=out, json=as_json)
    from toolkit.cli.road import compress as road

    bundle = road(recipe_of(recipe, set_), teacher, out)
    if bundle is None:
        return
    keys = [artefact.key for artefact in bundle.manifest.artefacts]
    say(as_json, {"bundle": str(bundle.root), "artefacts": keys}, f"{bundle.root}: {', '.join(keys)}")
