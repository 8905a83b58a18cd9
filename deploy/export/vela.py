"""Arm Ethos-U: the int8 LiteRT file through Vela, with its cycle and memory estimates; the int8 file stays beside it.

What is kept: ``model_vela.tflite`` for the device, ``reference.tflite`` (what Vela was given: the answers to compare
with), ``estimate.json``, and a board's own ``vela.ini`` if there was one.
"""

import shutil
from pathlib import Path

from deploy.estimate import FILE, Estimate, estimate_of_vela
from deploy.targets import REFERENCE, Target
from devices.tools import Worker, python_of, tool_called
from toolkit.errors import ToolError

__all__ = ["BOARD", "ENTRY", "compile_vela"]

ENTRY = "model_vela.tflite"
BOARD = "vela.ini"


def compile_vela(source: Path, target: Target, folder: Path) -> Estimate:
    """Compile an int8 file into ``folder``.

    Raises:
        MissingTool: Vela is not here.
        ToolError: it refused the file, or its tables have other columns than this version knows.
    """
    tool = tool_called("ethos-u")
    folder.mkdir(parents=True, exist_ok=True)
    with Worker(tool.name, python_of(tool)) as worker:
        version = str(worker.hello["version"])
        request = {"source": str(source), "out": str(folder / ENTRY), **target.settings}
        result, _ = worker.call("compile", request)
    try:
        estimate = estimate_of_vela(target.name, version, result["summary"], result["layers"])
    except (KeyError, ValueError) as error:
        raise ToolError(f"ethos-u: the tables of Vela {version} are not those that vidon reads ({error})") from error
    shutil.copyfile(source, folder / REFERENCE)
    if Path(target.settings["config"]).is_absolute():
        shutil.copyfile(target.settings["config"], folder / BOARD)
    (folder / FILE).write_text(estimate.model_dump_json(indent=2) + "\n")
    return estimate
