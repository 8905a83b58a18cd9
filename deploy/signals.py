"""The thread's alternate signal stack is left as it was found.

OpenVINO's CPU plugin (seen in 2026.4.1) puts a stack of its own in place when a Core loads it, and puts back the one it
found when that Core dies. Two Cores that die in the order in which they were made leave the thread with a stack that is
no longer there. The next signal with a handler, be it Ctrl-C or the end of a child while torch holds data workers, then
kills the process, and no handler can say so. The plugin needs its stack only while it is loaded.
"""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

__all__ = ["kept_signal_stack"]


class _Stack(ctypes.Structure):
    """Linux's ``stack_t``."""

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Around whatever makes an OpenVINO Core load its CPU plugin. Only Linux's plugin has such a stack."""
    if sys.platform != "linux":
        yield
        return
    system, before = ctypes.CDLL(None), _Stack()
    system.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        system.sigaltstack(ctypes.byref(before), None)
