"""Tests that need a vendor's tool skip where it is not set up, with the command that would set it up."""

import pytest

from devices.tools import TOOLS, python_of
from toolkit.errors import MissingTool

__all__ = ["needs"]


def needs(name: str) -> pytest.MarkDecorator:
    """A mark that skips where the tool is not set up."""
    try:
        python_of(TOOLS[name])
    except MissingTool as error:
        return pytest.mark.skip(reason=str(error))
    return pytest.mark.skipif(False, reason="the tool is there")
