"""Fill the tables in README and docs from the committed benchmark results; ``--check`` only compares.

A table stands between ``<!-- table:NAME -->`` and ``<!-- /table -->``; NAME is a benchmark, and its newest file
``benchmarks/results/NAME_*.json`` holds ``{"table": {"columns": [...], "rows": [[...], ...]}, "caption": "..."}``.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- table:(?P<name>[a-z0-9_]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def newest(name: str) -> Path:
    """The newest result of a benchmark (the date ends the file's name)."""
    found = sorted((ROOT / "benchmarks" / "results").glob(f"{name}_*.json"), key=lambda path: path.stem.split("_")[-1])
    if not found:
        raise SystemExit(f"no committed result for benchmark {name!r} in benchmarks/results")
    return found[-1]


def render(name: str) -> str:
    """The benchmark's table in Markdown, with its caption and the file it comes from."""
    path = newest(name)
    data = json.loads(path.read_text())
    columns, rows = data["table"]["columns"], data["table"]["rows"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    source = path.relative_to(ROOT).as_posix()
    return "\n".join([*lines, "", f"{data['caption']} Source: `{source}`.", ""])


def filled(text: str) -> str:
    """``text`` with every table block renewed."""
    return BLOCK.sub(lambda match: match.group(1) + render(match.group("name")) + match.group(3), text)


def main() -> int:
    """Renew the files, or with ``--check`` name those that are stale."""
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        new = filled(text)
        if new != text:
            stale.append(path.relative_to(ROOT).as_posix())
            if "--check" not in sys.argv:
                path.write_text(new)
    if "--check" in sys.argv and stale:
        print("stale tables, run  make docs :", ", ".join(stale))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
