"""What this machine has to run a model on and to see with, found without importing any runtime.

Only device nodes, ``/sys`` and the search path are looked at, so probing takes milliseconds, needs no driver
and never starts an accelerator. Whether a *runtime* can use a device is answered by that runtime's adapter.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from devices.machine import describe_machine, kernel_text

__all__ = ["Device", "probe"]

Kind = Literal["cpu", "gpu", "npu", "camera"]

# PCI vendors of graphics adapters, as /sys/class/drm/*/device/vendor spells them.
_VENDORS = {"0x8086": "Intel", "0x1002": "AMD", "0x10de": "NVIDIA", "0x1af4": "virtio"}

# Device node -> (kind, title, hint). Globs, relative to the root.
_NODES: tuple[tuple[str, Kind, str, str], ...] = (
    ("dev/accel/accel*", "npu", "NPU (accel subsystem)", "Intel: OpenVINO device NPU"),
    ("dev/rknpu", "npu", "Rockchip NPU", "RKNN runtime; convert with rknn-toolkit2"),
    ("dev/galcore", "npu", "VeriSilicon NPU/GPU", "vendor delegate for LiteRT"),
    ("dev/ethosu*", "npu", "Arm Ethos-U NPU", "int8 LiteRT model compiled with Vela"),
    ("dev/apex_*", "npu", "Coral Edge TPU", "int8 LiteRT model compiled for the Edge TPU"),
    ("dev/hailo*", "npu", "Hailo NPU", "HailoRT; convert with the vendor's compiler"),
    ("dev/fastrpc-cdsp*", "npu", "Qualcomm Hexagon DSP", "ONNX Runtime with the QNN execution provider"),
    ("dev/adsprpc-smd*", "npu", "Qualcomm Hexagon DSP", "ONNX Runtime with the QNN execution provider"),
    ("dev/nvhost-ctrl-nvdla*", "npu", "NVIDIA DLA", "TensorRT with DLA"),
    ("dev/nvhost-gpu", "gpu", "NVIDIA Jetson GPU", "TensorRT, or ONNX Runtime with CUDA"),
    ("dev/mali*", "gpu", "Arm Mali GPU", "LiteRT GPU delegate"),
)


class Device(BaseModel):
    """One thing to run on or to see with.

    ``name`` is what to type (``cpu``, ``gpu0``, ``npu0``, or the camera's index), ``path`` the device node,
    ``hint`` how to use it, ``usable`` False when this user may not open the node.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    name: str
    title: str
    path: str = ""
    hint: str = ""
    usable: bool = True


def probe(root: Path = Path("/")) -> tuple[Device, ...]:
    """List the processor, accelerators and cameras of this machine. ``root`` is where ``dev`` and ``sys`` are."""
    found = [_cpu(root), *_graphics(root), *_nodes(root), *_cameras(root)]
    counts: dict[str, int] = {}
    named = []
    for device in found:
        if device.name:
            named.append(device)
            continue
        number = counts.get(device.kind, 0)
        counts[device.kind] = number + 1
        named.append(device.model_copy(update={"name": f"{device.kind}{number}"}))
    return tuple(named)


def _cpu(root: Path) -> Device:
    machine = describe_machine(root)
    plural = "s" if machine.cores != 1 else ""
    features = ", ".join(machine.features)
    return Device(kind="cpu", name="cpu", title=f"{machine.cpu}, {machine.cores} core{plural}", hint=features)


def _graphics(root: Path) -> Iterator[Device]:
    """Render nodes of /dev/dri, plus an NVIDIA card whose driver gives no such node."""
    nvidia = False
    for node in sorted((root / "dev/dri").glob("renderD*")):
        code = kernel_text(root / "sys/class/drm" / node.name / "device/vendor")
        vendor = _VENDORS.get(code or "", "unknown vendor")
        nvidia |= vendor == "NVIDIA"
        hint = {"Intel": "OpenVINO device GPU", "NVIDIA": "ONNX Runtime with CUDA or TensorRT"}.get(vendor, "")
        yield _device("gpu", f"{vendor} GPU", node, hint)
    cards = sorted((root / "dev").glob("nvidia[0-9]*"))
    if not nvidia and (cards or (root == Path("/") and shutil.which("nvidia-smi"))):
        for card in cards or [Path("/dev/nvidia0")]:
            usable = card.exists() and os.access(card, os.R_OK | os.W_OK)
            hint = "ONNX Runtime with CUDA or TensorRT" if usable else "nvidia-smi is there but the card is not"
            yield Device(kind="gpu", name="", title="NVIDIA GPU", path=str(card), hint=hint, usable=usable)


def _nodes(root: Path) -> Iterator[Device]:
    for pattern, kind, title, hint in _NODES:
        for node in sorted(root.glob(pattern)):
            yield _device(kind, title, node, hint)


def _cameras(root: Path) -> Iterator[Device]:
    """V4L2 capture nodes: index 0 of each driver's nodes (the others carry metadata, not pictures)."""
    folders = sorted((root / "sys/class/video4linux").glob("video*"), key=lambda folder: _number(folder.name))
    for folder in folders:
        if kernel_text(folder / "index") not in {None, "0"}:
            continue
        title = kernel_text(folder / "name") or folder.name
        number = _number(folder.name)
        device = _device("camera", title, root / "dev" / folder.name, f"vidon camera {number} --bundle NAME.vidon")
        yield device.model_copy(update={"name": str(number)})


def _number(name: str) -> int:
    digits = name.removeprefix("video")
    return int(digits) if digits.isdigit() else -1


def _device(kind: Kind, title: str, node: Path, hint: str) -> Device:
    usable = os.access(node, os.R_OK | os.W_OK)
    if not usable:
        hint = "no permission: add yourself to the node's group (video, render) and log in again"
    return Device(kind=kind, name="", title=title, path=str(node), hint=hint, usable=usable)
