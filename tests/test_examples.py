"""The examples in docstrings are run: each module that has one."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for package in ("toolkit", "train", "deploy", "devices")
    for file in (ROOT / package).rglob("*.py")
    if "    >>> " in file.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_are_right(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), raise_on_error=True)
    assert result.attempted > 0
