"""A bundle as a report: every artefact with its parity, size and, where a vendor's compiler estimated it, its time."""

import datetime

from deploy.estimate import Estimate, load_estimate
from deploy.report import Report, Rung
from devices.machine import describe_machine
from toolkit.bundle import Artefact, Bundle, Manifest

__all__ = ["report_of"]

_COSTLIEST = 5


def report_of(bundle: Bundle) -> Report:
    """What the manifest knows; times are vendor-estimated or absent, never measured here.

    Raises:
        BundleError: a damaged estimate.
    """
    manifest = bundle.manifest
    estimates = {artefact.key: load_estimate(bundle.root / artefact.folder) for artefact in manifest.artefacts}
    notes = [note for key, estimate in estimates.items() if estimate is not None for note in _notes(key, estimate)]
    return Report(
        title=f"{manifest.name}: the bundle",
        created=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        machine=describe_machine(), task=_task(manifest), labels=manifest.labels, best=manifest.best,
        notes=tuple(notes),
        rungs=tuple(_rung(artefact, estimates[artefact.key]) for artefact in manifest.artefacts),
        reproduce=(f"vidon verify {bundle.root.name}",),
    )  # fmt: skip


def _task(manifest: Manifest) -> str:
    return manifest.task + (", many labels a clip" if manifest.contract.answer == "many" else "")


def _rung(artefact: Artefact, estimate: Estimate | None) -> Rung:
    metrics = artefact.metrics
    estimated_ms = estimate.inference_ms if estimate is not None else None
    return Rung(
        name=artefact.key, kind="artefact", runtime=artefact.runtime, precision=artefact.precision,
        size_bytes=int(metrics["size_bytes"]) if "size_bytes" in metrics else None,
        p50_ms=estimated_ms, fps=1000 / estimated_ms if estimated_ms else None,
        agreement=metrics.get("agreement"), max_diff=metrics.get("max_diff"),
        evidence="estimated" if estimated_ms else "measured" if artefact.evidence == "measured" else "simulated",
        passed=True, why=f"answers {artefact.evidence}" + (f", {estimate.system}" if estimate is not None else ""),
    )  # fmt: skip


def _notes(key: str, estimate: Estimate) -> list[str]:
    """The estimate in words: memory, what is left to the processor, and the costliest layers."""
    memory = [("SRAM", estimate.sram_kib), ("DRAM", estimate.dram_kib), ("flash", estimate.flash_kib)]
    sizes = ", ".join(f"{name} {value:.0f} KiB" for name, value in memory if value)
    left = ", ".join(estimate.left_on_cpu) or "nothing"
    costly = sorted(estimate.layers, key=lambda layer: -layer.cycles)[:_COSTLIEST]
    total = max(1, sum(layer.cycles for layer in estimate.layers))
    layers = ", ".join(f"{layer.operator} {layer.cycles / total:.0%}" for layer in costly)
    return [
        f"{key}, vendor-estimated by {estimate.tool}: {estimate.cycles:,} cycles{f', {sizes}' if sizes else ''}; "
        f"left to the processor: {left}; costliest layers: {layers}."
    ]
