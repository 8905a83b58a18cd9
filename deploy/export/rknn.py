"""Rockchip: the QDQ ONNX file through rknn-toolkit2; the source stays beside it, for the simulator.

The simulator runs only what was built in the same process, so it builds ``source.onnx`` again (about a second).
"""

import shutil
from pathlib import Path

from deploy.estimate import FILE, Estimate, estimate_of_rknn
from deploy.targets import SOURCE, Target
from devices.tools import Worker, python_of, tool_called

__all__ = ["ENTRY", "compile_rknn"]

ENTRY = "model.rknn"


def compile_rknn(source: Path, target: Target, folder: Path) -> Estimate:
    """Build for one chip into ``folder``.

    Raises:
        MissingTool: rknn-toolkit2 has no environment yet.
        ToolError: it refused the file.
    """
    tool = tool_called("rockchip")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / SOURCE)
    with Worker(tool.name, python_of(tool)) as worker:
        request = {"source": str(folder / SOURCE), "out": str(folder / ENTRY), **target.settings}
        result, _ = worker.call("compile", request)
        estimate = estimate_of_rknn(target.name, str(worker.hello["version"]), result["layers"])
    (folder / FILE).write_text(estimate.model_dump_json(indent=2) + "\n")
    return estimate
