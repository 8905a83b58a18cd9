"""What a vendor's compiler estimates for its chip: cycles and memory by layer. Never a measurement, and labelled so."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from toolkit.errors import BundleError

__all__ = ["Estimate", "Layer", "estimate_of_rknn", "estimate_of_vela", "load_estimate"]

FILE = "estimate.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Layer(_Frozen):
    """One operator as compiled: where it was placed, and its estimated cycles; ``sram_bytes`` is its staging use."""

    name: str
    operator: str
    placed: Literal["npu", "cpu"]
    cycles: int = Field(ge=0)
    macs: int | None = Field(default=None, ge=0)
    sram_bytes: int | None = Field(default=None, ge=0)


class Estimate(_Frozen):
    """An offline compiler's account of one artefact.

    ``inference_ms``, ``sram_kib`` (with DRAM arenas apart in ``dram_kib``) and ``flash_kib`` are None where the tool
    does not tell; ``system`` is the memory system it assumed, which is seldom your board's.
    """

    schema_version: Literal[1] = 1
    evidence: Literal["vendor-estimated"] = "vendor-estimated"
    tool: str
    target: str
    system: str = ""
    clock_mhz: float | None = None
    inference_ms: float | None = None
    cycles: int = Field(ge=0)
    sram_kib: float | None = None
    dram_kib: float | None = None
    flash_kib: float | None = None
    macs: int | None = None
    layers: tuple[Layer, ...] = ()

    @property
    def left_on_cpu(self) -> tuple[str, ...]:
        """``operator (layer)`` of everything that the NPU does not take."""
        return tuple(f"{layer.operator} ({layer.name})" for layer in self.layers if layer.placed == "cpu")

    @property
    def metrics(self) -> dict[str, float]:
        """Figures for the manifest, each with ``estimated`` in its name."""
        named = {
            "ms": self.inference_ms, "cycles": self.cycles, "sram_kib": self.sram_kib, "dram_kib": self.dram_kib,
            "flash_kib": self.flash_kib,
        }  # fmt: skip
        known = {f"estimated_{name}": float(value) for name, value in named.items() if value is not None}
        return {**known, "cpu_operators": float(len(self.left_on_cpu))}


def estimate_of_vela(target: str, version: str, summary: dict[str, str], layers: list[dict[str, str]]) -> Estimate:
    """From the rows of Vela's summary and per-layer CSV files; memory is in KiB there, time in seconds."""
    rows = tuple(
        Layer(
            name=row["Name"], operator=row["Original Operator"], placed="npu" if row["Target"] == "NPU" else "cpu",
            cycles=int(float(row["Op Cycles"])), macs=int(float(row["MAC Count"])),
            sram_bytes=int(float(row["Staging Usage"])),
        )
        for row in layers
    )  # fmt: skip
    return Estimate(
        tool=f"ethos-u-vela {version}", target=target, system=f"{summary['system_config']}, {summary['memory_mode']}",
        clock_mhz=float(summary["core_clock"]) / 1e6, inference_ms=float(summary["inference_time"]) * 1e3,
        cycles=int(float(summary["cycles_total"])), sram_kib=float(summary["sram_memory_used"]),
        dram_kib=float(summary["dram_memory_used"]),
        flash_kib=float(summary["off_chip_flash_memory_used"]) + float(summary["on_chip_flash_memory_used"]),
        macs=int(float(summary["nn_macs"])), layers=rows,
    )  # fmt: skip


def estimate_of_rknn(target: str, version: str, layers: list[dict[str, str]]) -> Estimate:
    """From the table that the build prints; graph inputs and outputs are no operators. It tells no time."""
    rows = tuple(
        Layer(name=row["name"], operator=row["op"], placed="npu" if row["target"] == "NPU" else "cpu",
              cycles=int(row["total"]))
        for row in layers if row["op"] not in {"InputOperator", "OutputOperator"}
    )  # fmt: skip
    cycles = sum(row.cycles for row in rows)
    return Estimate(tool=f"rknn-toolkit2 {version}", target=target, cycles=cycles, layers=rows)


def load_estimate(folder: Path) -> Estimate | None:
    """The estimate that lies beside an artefact, or None.

    Raises:
        BundleError: it is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return Estimate.model_validate_json(file.read_bytes())
    except (ValidationError, UnicodeDecodeError) as error:
        raise BundleError(f"{file} is damaged ({str(error).splitlines()[0]}): export the bundle again") from error
