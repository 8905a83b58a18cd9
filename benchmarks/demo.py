"""The demo's ladder as a benchmark: ``python benchmarks/demo.py [FOLDER]`` runs the demo there and keeps its table."""

import sys
from pathlib import Path
from typing import Any

from benchmarks.common import save
from deploy.report import Rung
from toolkit.cli.demo import Demo


def row(rung: Rung) -> list[Any]:
    """One line of the ladder."""
    accuracy = f"{rung.accuracy:.3f} [{rung.ci_low:.2f}, {rung.ci_high:.2f}]"
    agreement = "" if rung.agreement is None else f"{rung.agreement:.1%}"
    macs = "" if rung.macs is None else f"{rung.macs / 1e6:.1f}"
    return [rung.name, accuracy, f"{(rung.parameters or 0) / 1e3:.0f}", macs, f"{(rung.size_bytes or 0) / 1024:.0f}",
            f"{rung.p50_ms:.2f} / {rung.p95_ms:.2f}", f"{rung.fps:.0f}", agreement]  # fmt: skip


def main() -> None:
    """Run (or go on with) the demo and write its table."""
    demo = Demo(Path(sys.argv[1] if len(sys.argv) > 1 else "vidon-demo"))
    report = demo.run()
    columns = ["rung", "test accuracy [95 % CI]", "parameters, k", "MMAC", "file, KiB", "latency p50 / p95 ms"]
    columns += ["a second", "agreement with torch"]
    seconds = sum(demo.steps.seconds().values())
    caption = (
        f"400 test clips; the single-frame control scores {report.control:.2f}, chance is {report.chance:.2f}. "
        f"Latency is of one frame (teacher: one clip). The whole demo took {seconds / 60:.1f} minutes. "
        f"Best on validation: {report.best}."
    )
    data = report.model_dump(mode="json", exclude={"preview"})
    print(save("demo", caption, columns, [row(rung) for rung in report.rungs], data))


if __name__ == "__main__":
    main()
