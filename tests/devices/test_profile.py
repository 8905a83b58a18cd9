"""Hardware profiles are data that a loader checks."""

import pytest

from devices.machine import Machine
from devices.profile import load_profile, matching_profile, profile_names
from toolkit.errors import UserError


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads_and_is_named_like_its_file(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.notes


def test_the_promised_targets_are_there() -> None:
    wanted = {"x86-cpu", "raspberry-pi-4", "raspberry-pi-5", "jetson-orin", "intel-npu", "rk3588"}
    assert wanted | {"qualcomm-hexagon", "ethos-u55"} <= set(profile_names())


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"raspbery-pi-5.*did you mean 'raspberry-pi-5'"):
        load_profile("raspbery-pi-5")


@pytest.mark.parametrize(
    ("board", "architecture", "name"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", "aarch64", "raspberry-pi-5"),
        ("Raspberry Pi 4 Model B Rev 1.4", "aarch64", "raspberry-pi-4"),
        ("NVIDIA Jetson Orin Nano Developer Kit", "aarch64", "jetson-orin"),
        ("Orange Pi 5 Plus", "aarch64", "rk3588"),
        ("Pine H64", "aarch64", "generic-arm64"),
        (None, "x86_64", "x86-cpu"),
        (None, "riscv64", None),
    ],
)
def test_a_machine_finds_its_profile(board: str | None, architecture: str, name: str | None) -> None:
    machine = Machine(cpu="?", architecture=architecture, cores=4, os="Linux", python="3.11", board=board)
    profile = matching_profile(machine)
    assert (profile and profile.name) == name
