"""Entry point of ``vidon`` and ``python -m toolkit``.

A user's own ``train.py`` in the current folder must not break anything: the current folder leaves the
import path first, and then each sibling package is checked to be the one beside this file.
"""

import importlib.util
import os
import signal
import sys
from pathlib import Path

__all__ = ["main"]

_HOME = Path(__file__).resolve().parents[1]


def _drop_current_folder() -> None:
    here = Path.cwd().resolve()
    sys.path[:] = [entry for entry in sys.path if entry and (Path(entry).resolve() != here or here == _HOME)]


def _open_closed_streams() -> None:
    """A service may start without standard streams (``>&-``): Python then has None where all expect a file."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # for as long as the process lives


def _hidden_sibling() -> str | None:
    """Return a message if something else hides one of vidon's packages, else None."""
    for name in ("train", "deploy", "devices"):
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if origin is None or origin.parent.parent != _HOME:
            return f"{origin or name} hides vidon's own package {name!r}: rename it or take its folder off PYTHONPATH"
    return None


def main() -> None:
    """Run the command line."""
    _drop_current_folder()
    _open_closed_streams()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what stops a service ends as orderly as Ctrl-C
    hidden = _hidden_sibling()
    if hidden is not None:
        print(f"error: {hidden}", file=sys.stderr)
        raise SystemExit(2)
    from toolkit.cli import app

    app(prog_name="vidon")


if __name__ == "__main__":
    main()
