"""Hardware profiles: what a kind of target can run, as data files in ``devices/profiles/``.

A profile answers, before any board is reached: which runtimes in which order, which precisions, which ONNX
opset, and what is known to go wrong. Adding a device is one TOML file.
"""

import functools
import tomllib
from importlib.resources import files
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from devices.machine import Machine
from toolkit.errors import UserError, nearest

__all__ = ["Profile", "load_profile", "matching_profile", "profile_names"]


class Profile(BaseModel):
    """One kind of target.

    ``runtimes`` and ``precisions`` stand in order of preference. ``evidence`` says how numbers for it can be had
    without the hardware: ``measured`` (only on the device), ``simulated`` (the vendor's emulator checks values) or
    ``estimated`` (an offline compiler's cycle model). ``boards`` are pieces of the board names that identify it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    arch: str
    runtimes: tuple[str, ...] = Field(min_length=1)
    precisions: tuple[Literal["fp32", "fp16", "int8"], ...] = Field(min_length=1)
    opset: int | None = Field(default=None, ge=7)
    activations: Literal["any", "relu"] = "any"
    threads: int | None = Field(default=None, ge=1)
    evidence: Literal["measured", "simulated", "estimated"] = "measured"
    toolchain: str = ""
    boards: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@functools.cache
def profile_names() -> tuple[str, ...]:
    """Names of all profiles, sorted."""
    folder = files("devices") / "profiles"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


@functools.cache
def load_profile(name: str) -> Profile:
    """Load the profile called ``name``.

    Raises:
        UserError: there is none of that name (the nearest is named), or its file is damaged.
    """
    if name not in profile_names():
        choices = ", ".join(profile_names())
        raise UserError(f"there is no device profile {name!r}{nearest(name, profile_names())}; there are: {choices}")
    try:
        raw = tomllib.loads((files("devices") / "profiles" / f"{name}.toml").read_text(encoding="utf-8"))
        return Profile.model_validate(raw)
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        first = " ".join(str(error).split())
        raise UserError(f"device profile {name} is damaged ({first}): reinstall vidon") from error


def matching_profile(machine: Machine) -> Profile | None:
    """The profile of ``machine``: by its board name, else the plain processor of its architecture, else None."""
    profiles = [load_profile(name) for name in profile_names()]
    board = (machine.board or "").lower()
    for profile in profiles:
        if any(piece.lower() in board for piece in profile.boards):
            return profile
    plain = {"x86_64": "x86-cpu", "amd64": "x86-cpu", "aarch64": "generic-arm64", "arm64": "generic-arm64"}
    name = plain.get(machine.architecture.lower())
    return None if name is None else load_profile(name)
