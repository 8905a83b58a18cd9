"""Qualcomm Hexagon: the QDQ ONNX file to a context binary for one chip, wrapped in an ONNX file.

The emulation's profiler counts are not device cycles (they change from run to run), so nothing is estimated.
"""

from pathlib import Path

from deploy.targets import Target
from devices.tools import Worker, python_of, tool_called

__all__ = ["ENTRY", "compile_qnn"]

ENTRY = "context.onnx"


def compile_qnn(source: Path, target: Target, folder: Path) -> None:
    """Compile for one chip into ``folder``, with nothing left to the processor.

    Raises:
        MissingTool: the tool has no environment yet.
        ToolError: it refused the file; the first operator that it cannot take is in its words.
    """
    tool = tool_called("qualcomm")
    folder.mkdir(parents=True, exist_ok=True)
    with Worker(tool.name, python_of(tool)) as worker:
        request = {"source": str(source), "out": str(folder / ENTRY), "options": target.settings}
        worker.call("compile", request)
