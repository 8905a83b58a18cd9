"""Chips that a model is compiled for by name: ``vidon export MODEL recipe.toml --target u55-128,rk3588,sm8650``.

A target decides runtime, precision (always int8) and compiler settings. Adding one is a line here.

Sources: Ethos-U system configurations and memory modes are Arm's reference systems in ``Arm/vela.ini`` of
ethos-u-vela 5.2; Rockchip names are those that rknn-toolkit2 2.5 takes; Snapdragon model numbers and Hexagon
generations are those of ExecuTorch's public QNN table; GPU generations are TensorRT-RTX 1.7's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from toolkit.errors import UserError, nearest

__all__ = ["COMPILED", "REFERENCE", "SOURCE", "TARGETS", "Target", "target_called", "targets_for"]

#: Files beside a compiled one: what the compiler was given, to build again from or to compare with.
REFERENCE, SOURCE = "reference.tflite", "source.onnx"


@dataclass(frozen=True, slots=True)
class Target:
    """One chip or configuration: the runtime that plays it, the tool that compiles for it, and the tool's settings."""

    name: str
    runtime: str
    tool: str
    title: str
    settings: dict[str, str] = field(default_factory=dict)


def _ethos(name: str, system: str, memory: str, title: str) -> Target:
    settings = {"accelerator": f"ethos-{name}", "config": "Arm/vela.ini", "system": system, "memory": memory}
    return Target(name, "ethosu", "ethos-u", title, settings)


def _all() -> list[Target]:
    u55 = ("Ethos_U55_High_End_Embedded", "Shared_Sram", "500 MHz, SRAM 4 GB/s, flash 0.5 GB/s")
    u65 = ("Ethos_U65_High_End", "Dedicated_Sram", "1 GHz, SRAM 16 GB/s, DRAM 3.75 GB/s")
    u85 = ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_384KB", "1 GHz, SRAM 32 GB/s, DRAM 12 GB/s")
    macs = [(n, u55) for n in ("u55-32", "u55-64", "u55-128", "u55-256")]
    macs += [(n, u65) for n in ("u65-256", "u65-512")]
    macs += [(n, u85) for n in ("u85-128", "u85-256", "u85-512", "u85-1024", "u85-2048")]
    found = [_ethos(n, system, memory, f"Arm Ethos-{n.upper()}, {text}") for n, (system, memory, text) in macs]
    for chip in ("rk3562", "rk3566", "rk3568", "rk3576", "rk3588", "rv1103", "rv1106", "rv1126b"):
        found.append(Target(chip, "rknn", "rockchip", f"Rockchip {chip.upper()}", {"platform": chip}))
    for chip, model, text in (
        ("sm8350", "30", "Snapdragon 888, Hexagon v68"), ("sm8450", "36", "Snapdragon 8 Gen 1, Hexagon v69"),
        ("sm8550", "43", "Snapdragon 8 Gen 2, Hexagon v73"), ("sm8650", "57", "Snapdragon 8 Gen 3, Hexagon v75"),
        ("sm8750", "69", "Snapdragon 8 Elite, Hexagon v79"),
    ):  # fmt: skip
        found.append(Target(chip, "qnn", "qualcomm", f"Qualcomm {text}", {"soc_model": model}))
    for arch in ("68", "69", "73", "75", "79", "81"):
        found.append(Target(f"hexagon-v{arch}", "qnn", "qualcomm", f"Qualcomm Hexagon v{arch}", {"htp_arch": arch}))
    for code, text in (("75", "Turing"), ("86", "Ampere"), ("89", "Ada"), ("120", "Blackwell")):
        title = f"NVIDIA RTX, {text} (compute capability {code[:-1]}.{code[-1]})"
        found.append(Target(f"rtx-sm{code}", "tensorrt", "tensorrt-rtx", title, {"capability": f"SM{code}"}))
    return found


#: name -> target.
TARGETS = {target.name: target for target in _all()}
#: Runtimes whose files are compiled for one named chip -> the target that stands for them when none is named.
COMPILED = {"ethosu": "u55-128", "rknn": "rk3588", "qnn": "hexagon-v73", "tensorrt": "rtx-sm89"}


def target_called(name: str) -> Target:
    """The target of that name.

    Raises:
        UserError: unknown; the nearest is named.
    """
    if name not in TARGETS:
        raise UserError(f"unknown target {name!r}{nearest(name, TARGETS)}; targets: {', '.join(TARGETS)}")
    return TARGETS[name]


def targets_for(runtimes: Sequence[str], names: Sequence[str]) -> list[Target]:
    """The targets asked for by name, and the usual one of each compiled runtime that was named without a target.

    Raises:
        UserError: an unknown target, or the same one twice.
    """
    found = [target_called(name) for name in names]
    if len(set(names)) != len(names):
        raise UserError(f"a target is named twice: {', '.join(names)}")
    for runtime in runtimes:
        if runtime in COMPILED and all(target.runtime != runtime for target in found):
            found.append(TARGETS[COMPILED[runtime]])
    return found
