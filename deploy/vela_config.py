"""A board's own memory system for Vela: an .ini file with ``[System_Config.NAME]`` and ``[Memory_Mode.NAME]`` sections.

Vela schedules and estimates for a memory system. The targets name Arm's reference systems; clock, bandwidth and
latency of your board's SRAM, flash or DRAM come from its maker's file.
"""

from collections.abc import Sequence
from configparser import ConfigParser
from configparser import Error as ParseError
from dataclasses import dataclass, replace
from pathlib import Path

from deploy.targets import Target
from toolkit.errors import UserError, nearest

__all__ = ["MemorySystem", "memory_system", "on_board"]


@dataclass(frozen=True, slots=True)
class MemorySystem:
    """``system`` and ``memory`` are the names of sections of the file, without their kind."""

    config: Path
    system: str
    memory: str


def memory_system(config: Path, system: str | None = None, memory: str | None = None) -> MemorySystem:
    """Check that the file has the sections; a name may be left out where the file has one section of that kind.

    Raises:
        UserError: no such file, no .ini, or no such section; those there are, are named.
    """
    if config.suffix != ".ini" or not config.is_file():
        raise UserError(f"Vela configuration {config}: give the path of an .ini file that exists")
    parser = ConfigParser()
    try:
        parser.read_string(config.read_text(), str(config))
    except (ParseError, UnicodeDecodeError) as error:
        raise UserError(f"Vela configuration {config} cannot be read: {str(error).splitlines()[0]}") from error
    sections = parser.sections()
    return MemorySystem(
        config.resolve(),
        _section(config, sections, "System_Config", "--system-config", system),
        _section(config, sections, "Memory_Mode", "--memory-mode", memory),
    )


def _section(config: Path, sections: Sequence[str], kind: str, option: str, name: str | None) -> str:
    names = [section.partition(".")[2] for section in sections if section.startswith(f"{kind}.")]
    if not names:
        raise UserError(f"Vela configuration {config} has no section [{kind}.NAME]")
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        raise UserError(f"Vela configuration {config} has several {kind} sections: choose with {option} from "
                        f"{', '.join(names)}")  # fmt: skip
    if name not in names:
        raise UserError(
            f"Vela configuration {config} has no section [{kind}.{name}]{nearest(name, names)}; it has: "
            f"{', '.join(names)}"
        )
    return name


def on_board(targets: Sequence[Target], board: MemorySystem) -> list[Target]:
    """The targets with the board's memory system in every Ethos-U among them.

    Raises:
        UserError: there is none.
    """
    if all(target.tool != "ethos-u" for target in targets):
        raise UserError("a Vela configuration is for Ethos-U targets: name one, for example  --target u55-128")
    own = {"config": str(board.config), "system": board.system, "memory": board.memory}
    return [replace(t, settings={**t.settings, **own}) if t.tool == "ethos-u" else t for t in targets]
