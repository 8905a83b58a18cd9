"""Vendors' tools that cannot share vidon's environment: each lives in one of its own and is driven as a subprocess."""

from devices.tools.client import PROTOCOL, Worker
from devices.tools.environment import is_ready, place_of, python_of, setup
from devices.tools.spec import TOOLS, Tool, tool_called

__all__ = ["PROTOCOL", "TOOLS", "Tool", "Worker", "is_ready", "place_of", "python_of", "setup", "tool_called"]
