"""Describing a machine from a made-up file tree, and this one for real."""

from pathlib import Path

import pytest

from devices.machine import Machine, describe_machine


def _board(root: Path) -> Path:
    files = {
        "proc/cpuinfo": "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd asimddp\n\nHardware\t: BCM2712\n",
        "proc/meminfo": "MemTotal:        8247172 kB\nMemFree:  1 kB\n",
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/class/thermal/thermal_zone0/temp": "48200\n",
        "sys/class/thermal/thermal_zone1/temp": "61000\n",
        "sys/class/thermal/thermal_zone2/temp": "-274000\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_board_is_described_by_its_kernel_files(tmp_path: Path) -> None:
    machine = describe_machine(_board(tmp_path))
    assert machine.board == "Raspberry Pi 5 Model B Rev 1.0"
    assert machine.cpu == "BCM2712"
    assert machine.features == ("asimd", "asimddp")
    assert machine.memory_gib == pytest.approx(7.9)
    assert machine.governor == "ondemand"
    assert machine.temperature_c == 61.0
    assert not machine.virtual


def test_what_cannot_be_read_is_none_and_never_guessed(tmp_path: Path) -> None:
    machine = describe_machine(tmp_path)
    assert (machine.memory_gib, machine.board, machine.governor, machine.temperature_c) == (None, None, None, None)
    assert machine.features == ()


def test_the_title_is_one_line_with_board_memory_and_system(tmp_path: Path) -> None:
    title = describe_machine(_board(tmp_path)).title
    assert title.startswith("Raspberry Pi 5 Model B Rev 1.0 (BCM2712), ")
    assert title.endswith(", 8 GiB, Debian GNU/Linux 12 (bookworm)")


def test_this_machine_survives_a_round_trip_through_json() -> None:
    machine = describe_machine()
    assert machine.cores >= 1
    assert Machine.model_validate_json(machine.model_dump_json()) == machine
