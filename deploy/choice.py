"""Which artefact, threads and form were measured fastest for a bundle on this machine.

``vidon bench BUNDLE --all`` writes it; opening the bundle without naming an artefact uses it. One small JSON file per
machine and bundle, named by their fingerprints, so that a changed bundle or another machine never meets an old choice.
It lies in ``$VIDON_HOME/choices`` (by default ``~/.cache/vidon/choices``).
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from devices.home import home
from devices.machine import Machine, describe_machine
from toolkit.bundle import Bundle
from toolkit.errors import UserError
from toolkit.files import sha256, write_text
from toolkit.progress import note

__all__ = ["Choice", "choice_file", "load_choice", "save_choice"]


class Choice(BaseModel):
    """The winner and what it was measured against. ``artefact`` is a key, ``rows`` the whole table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    machine: str
    measured: str
    artefact: str
    threads: int
    form: str | None = None
    p50_ms: float
    rows: tuple[dict[str, Any], ...] = ()

    @property
    def line(self) -> str:
        """One line for people."""
        form = f", {self.form}" if self.form else ""
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"{self.artefact} ({threads}{form}): measured fastest here on {self.measured}, p50 {self.p50_ms:.2f} ms"


def _fingerprint(machine: Machine) -> str:
    """What decides speed and does not change from day to day."""
    told = [machine.cpu, machine.architecture, machine.cores, machine.board, machine.features]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:12]


def choice_file(bundle: Bundle) -> Path:
    """The file for this machine and this very bundle (its manifest holds the checksum of every file)."""
    manifest = sha256(bundle.root / "manifest.json")[:16]
    return home() / "choices" / f"{_fingerprint(describe_machine())}-{manifest}.json"


def save_choice(bundle: Bundle, choice: Choice) -> Path:
    """Keep the choice (atomically) and return its file."""
    return write_text(choice_file(bundle), choice.model_dump_json(indent=2) + "\n")


def load_choice(bundle: Bundle) -> Choice | None:
    """The choice measured for this bundle on this machine, if there is one."""
    try:
        file = choice_file(bundle)
        choice = Choice.model_validate_json(file.read_bytes())
    except (OSError, UserError):  # never measured, or nowhere to keep it
        return None
    except (ValueError, ValidationError):
        note(f"{file} is damaged and is not used: run  vidon bench {bundle.root} --all")
        return None
    return choice if any(artefact.key == choice.artefact for artefact in bundle.manifest.artefacts) else None
