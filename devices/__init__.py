"""What a hardware target is: profiles, probing, placement."""

from devices.machine import Machine, describe_machine
from devices.probe import Device, probe
from devices.profile import Profile, load_profile, matching_profile, profile_names

__all__ = [
    "Device",
    "Machine",
    "Profile",
    "describe_machine",
    "load_profile",
    "matching_profile",
    "probe",
    "profile_names",
]
