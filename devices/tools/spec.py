"""The tools by name, with the exact versions that were tried together. Adding one is an entry here."""

from dataclasses import dataclass

from toolkit.errors import UserError, nearest

__all__ = ["TOOLS", "Tool", "tool_called"]


@dataclass(frozen=True, slots=True)
class Tool:
    """One environment: what is installed, in which order, and what must import afterwards.

    ``installs`` are pip argument lists, one after the other; ``pythons`` the least and greatest minor version of
    Python 3 that the packages have wheels for. A ``shareable`` tool may also stand in vidon's own environment.
    """

    name: str
    version: str
    title: str
    module: str
    installs: tuple[tuple[str, ...], ...]
    pythons: tuple[int, int]
    shareable: bool = False
    note: str = ""


_ALL = (
    Tool(
        "ethos-u", "5.2.0", "ethos-u-vela", "ethosu.vela",
        (("ethos-u-vela==5.2.0", "numpy==2.4.6", "flatbuffers==25.12.19"),),
        (11, 13), shareable=True, note="Arm's compiler for Ethos-U55, U65 and U85 (Apache-2.0)",
    ),
    Tool(
        "rockchip", "2.5.0", "rknn-toolkit2", "rknn.api",
        (
            ("torch==2.13.0",),
            ("setuptools==80.9.0", "numpy==1.26.4", "onnx==1.18.0", "protobuf==4.25.4", "psutil==7.2.2",
             "scipy==1.17.1",
             "ruamel.yaml==0.19.1", "tqdm==4.70.1", "opencv-python-headless==4.11.0.86", "fast-histogram==0.14"),
            # Their own limits (torch <= 2.4, protobuf < 4.25.8) contradict each other; these versions were tried.
            ("--no-deps", "onnxruntime==1.20.1", "flatbuffers==25.12.19", "packaging==26.3", "rknn-toolkit2==2.5.0"),
        ),
        (11, 12), note="Rockchip's compiler and simulator; under Rockchip's own licence",
    ),
    Tool(
        "qualcomm", "2.7.0", "onnxruntime-qnn", "onnxruntime_qnn",
        (("onnxruntime==1.31.1", "onnxruntime-qnn==2.7.0", "numpy==2.4.6"),),
        (11, 13), note="Qualcomm's compiler and x86 emulation of the Hexagon NPU; needs glibc 2.35",
    ),
    Tool(
        "tensorrt-rtx", "1.7.1.116", "tensorrt-rtx-cu13", "tensorrt_rtx",
        (("tensorrt-rtx-cu13==1.7.1.116", "numpy==2.4.6"),),
        (11, 13), note="NVIDIA's compiler for GeForce and RTX GPUs; compiles without a GPU",
    ),
    Tool(
        "old-tflite", "2.14.0", "tflite-runtime", "tflite_runtime.interpreter",
        (("tflite-runtime==2.14.0", "numpy==1.26.4", "opencv-python-headless==4.11.0.86", "pydantic==2.11.10",
          "typer==0.29.2", "rich==15.0.0"),),
        (11, 11), note="the runtime of old boards, which fails beside numpy 2",
    ),
)  # fmt: skip

#: name -> tool, as in ``vidon devices setup NAME``.
TOOLS = {tool.name: tool for tool in _ALL}


def tool_called(name: str) -> Tool:
    """The tool of that name.

    Raises:
        UserError: unknown; the nearest is named.
    """
    if name not in TOOLS:
        raise UserError(f"unknown tool {name!r}{nearest(name, TOOLS)}; there are: {', '.join(TOOLS)}")
    return TOOLS[name]
