"""The recipes that vidon brings along: package data, one TOML file each; the first comment says what it is for."""

import json
import re
from pathlib import Path

from toolkit.errors import UserError, nearest

__all__ = ["recipe_text", "recipes"]

_SHELF = Path(__file__).parent / "assets" / "recipes"
_BESIDE = re.compile(r'^(\w+ = )"(\.\./[^"]+)"', re.MULTILINE)


def recipes() -> dict[str, str]:
    """Name and purpose of every shipped recipe."""
    return {path.stem: _purpose(path) for path in sorted(_SHELF.glob("*.toml"))}


def recipe_text(name: str) -> str:
    """The file's text, to be saved and changed; what it takes from the package is named by its full path.

    Raises:
        UserError: there is no such recipe; the nearest is named.
    """
    path = _SHELF / f"{name}.toml"
    if name not in recipes():
        raise UserError(f"there is no recipe {name!r}{nearest(name, recipes())}; recipes: {', '.join(recipes())}")
    text = path.read_text(encoding="utf-8")
    return _BESIDE.sub(lambda found: f"{found[1]}{json.dumps(str((_SHELF / found[2]).resolve()))}", text)


def _purpose(path: Path) -> str:
    return path.read_text(encoding="utf-8").splitlines()[0].removeprefix("#").strip()
