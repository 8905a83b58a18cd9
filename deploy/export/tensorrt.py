"""NVIDIA RTX GPUs without one: TensorRT-RTX compiles the symmetric QDQ ONNX file for a GPU generation.

The source stays beside the engine: its integer answers, from ONNX Runtime, are all that can be checked here. On a
Jetson or a server the engine is built from ``source.onnx`` on the device itself.
"""

import shutil
from pathlib import Path

from deploy.targets import SOURCE, Target
from devices.tools import Worker, python_of, tool_called

__all__ = ["ENTRY", "compile_tensorrt"]

ENTRY = "model.engine"


def compile_tensorrt(source: Path, target: Target, folder: Path) -> None:
    """Compile for one GPU generation into ``folder``.

    Raises:
        MissingTool: the tool has no environment yet.
        ToolError: it refused the file.
    """
    tool = tool_called("tensorrt-rtx")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, folder / SOURCE)
    with Worker(tool.name, python_of(tool)) as worker:
        worker.call("compile", {"source": str(source), "out": str(folder / ENTRY), **target.settings})
