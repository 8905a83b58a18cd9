"""The machine a number was measured on: processor, cores, memory, system, clock governor, temperature.

Read from ``/proc`` and ``/sys`` where there is one and from the standard library elsewhere; what cannot be read
is ``None``, never a guess.
"""

import os
import platform
from pathlib import Path

from pydantic import BaseModel, ConfigDict

__all__ = ["Machine", "describe_machine", "kernel_text"]

# Instructions that decide whether int8 is fast: dot products on x86 (VNNI, AMX) and on Arm (dotprod, i8mm).
_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")


class Machine(BaseModel):
    """One machine, in the units of the field names; ``cores`` are the logical ones this process may use."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: str
    architecture: str
    cores: int
    memory_gib: float | None = None
    os: str
    python: str
    board: str | None = None
    features: tuple[str, ...] = ()
    governor: str | None = None
    temperature_c: float | None = None
    virtual: bool = False

    @property
    def title(self) -> str:
        """One line for tables and captions, for example ``AMD EPYC, 2 cores, 23 GiB, Debian GNU/Linux 12``."""
        name = f"{self.board} ({self.cpu})" if self.board else self.cpu
        memory = "" if self.memory_gib is None else f", {self.memory_gib:.0f} GiB"
        return f"{name}, {self.cores} core{'s' if self.cores != 1 else ''}{memory}, {self.os}"


def describe_machine(root: Path = Path("/")) -> Machine:
    """Describe this machine. ``root`` is where ``proc``, ``sys`` and ``etc`` are looked up."""
    info = _cpuinfo(root)
    flags = set((info.get("flags") or info.get("Features") or "").split())
    machine = platform.machine() or "unknown"
    return Machine(
        cpu=info.get("model name") or info.get("Hardware") or platform.processor() or machine,
        architecture=machine,
        cores=_cores(),
        memory_gib=_memory_gib(root),
        os=_system(root),
        python=platform.python_version(),
        board=_board(root),
        features=tuple(name for name in _TELLING if name in flags),
        governor=kernel_text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        temperature_c=_temperature_c(root),
        virtual="hypervisor" in flags,
    )


def kernel_text(path: Path) -> str | None:
    """The stripped text of a kernel file, or None if it is absent or refuses to be read."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return None
    return text.replace("\0", "").strip() or None


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's block of ``/proc/cpuinfo`` and, on Arm, the trailing ``Hardware`` and ``Model``."""
    found: dict[str, str] = {}
    for line in (kernel_text(root / "proc/cpuinfo") or "").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib(root: Path) -> float | None:
    for line in (kernel_text(root / "proc/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "MemTotal":
            return round(int(value.split()[0]) / 2**20, 1)
    return None


def _system(root: Path) -> str:
    for line in (kernel_text(root / "etc/os-release") or "").splitlines():
        key, _, value = line.partition("=")
        if key == "PRETTY_NAME":
            return value.strip('"')
    return f"{platform.system()} {platform.release()}".strip()


def _board(root: Path) -> str | None:
    """The board's own name (device tree), for example ``Raspberry Pi 5 Model B Rev 1.0``."""
    return kernel_text(root / "proc/device-tree/model") or kernel_text(root / "sys/firmware/devicetree/base/model")


def _temperature_c(root: Path) -> float | None:
    """The hottest thermal zone in degrees Celsius."""
    readings = [kernel_text(zone / "temp") for zone in (root / "sys/class/thermal").glob("thermal_zone*")]
    degrees = [int(text) / 1000 for text in readings if text is not None and text.lstrip("-").isdigit()]
    plausible = [value for value in degrees if 0 < value < 150]
    return max(plausible, default=None)
