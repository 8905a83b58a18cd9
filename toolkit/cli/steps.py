"""Named steps of a long road: each one's result is kept as JSON, so an interrupted road goes on where it stopped.

A step is redone only if its own inputs or those of a step before it changed.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.files import writable_dir, write_json
from toolkit.progress import note

__all__ = ["Steps"]


class Steps:
    """The steps of one road in ``folder``; ``total`` is only for the running count shown to people."""

    def __init__(self, folder: Path, total: int) -> None:
        self._folder = writable_dir(folder)
        self._total = total
        self._count = 0
        self._chain = ""

    def run(self, name: str, title: str, inputs: Any, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the kept result of ``name``, or do ``action`` and keep what it returns (JSON-able)."""
        self._count += 1
        text = json.dumps([self._chain, name, inputs], sort_keys=True, default=str)
        self._chain = hashlib.sha256(text.encode()).hexdigest()
        file = self._folder / f"{name}.json"
        place = f"[{self._count}/{self._total}]"
        kept = _kept(file, self._chain)
        if kept is not None:
            note(f"{place} {title}: already done")
            return kept
        note(f"{place} {title}", style="bold")
        start_s = time.monotonic()
        result = action()
        seconds = time.monotonic() - start_s
        write_json(file, {"inputs": self._chain, "seconds": seconds, "result": result})
        note(f"      {seconds:.1f} s")
        # What comes out of JSON is what a resumed run would see: return exactly that.
        return _kept(file, self._chain) or {}

    def seconds(self) -> dict[str, float]:
        """Seconds each finished step took when it was really run."""
        found = {}
        for file in sorted(self._folder.glob("*.json")):
            found[file.stem] = float(json.loads(file.read_bytes())["seconds"])
        return found


def _kept(file: Path, chain: str) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        raw = json.loads(file.read_bytes())
    except ValueError:
        return None
    if raw.get("inputs") != chain:
        return None
    result: dict[str, Any] = raw["result"]
    return result
