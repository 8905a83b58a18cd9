"""Every error a user can meet, as one small tree.

    VidonError
    |-- UserError            bad input: what is wrong, where, what to do
    |   |-- MissingDependency  an optional package is absent; names the extra to install
    |   `-- MissingTool        a vendor's tool has no environment yet; names the command that makes it
    |-- UnavailableDevice    the runtime or device asked for cannot be used here, and why
    |-- ToolError            a vendor's tool failed in its own environment
    |-- BundleError          schema, checksum or signature of a bundle
    `-- ParityError          an artefact's answers differ from the float model's

The command line prints the message as one line and exits with code 2. Anything outside this tree is a
defect of vidon's own and keeps its traceback.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "BundleError",
    "MissingDependency",
    "MissingTool",
    "ParityError",
    "ToolError",
    "UnavailableDevice",
    "UserError",
    "VidonError",
    "nearest",
]


class VidonError(Exception):
    """Base of all errors that vidon raises on purpose; its text is one line meant for people."""

    exit_code = 2


class UserError(VidonError):
    """The input is wrong: the message says what, where, and what to do."""


class MissingDependency(UserError):
    """An optional library is not installed.

    >>> str(MissingDependency("onnxruntime", "onnxruntime"))
    "onnxruntime is not installed: run  pip install 'vidon[onnxruntime]'"
    """

    def __init__(self, package: str, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"{package} is not installed: run  pip install 'vidon[{extra}]'")


class MissingTool(UserError):
    """A vendor's tool needs an environment of its own, which is not there (or only half).

    >>> str(MissingTool("rknn-toolkit2", "rockchip"))
    'rknn-toolkit2 is not set up here: run  vidon devices setup rockchip'
    """

    def __init__(self, package: str, tool: str) -> None:
        self.package = package
        self.tool = tool
        super().__init__(f"{package} is not set up here: run  vidon devices setup {tool}")


class ToolError(VidonError):
    """A vendor's tool crashed, hung, or answered with something else than was asked; its last words are in it."""


class UnavailableDevice(VidonError):
    """A runtime or device cannot be used on this machine; the message says why."""


class BundleError(VidonError):
    """A bundle is corrupt, incomplete, tampered with, or from a newer schema."""


class ParityError(VidonError):
    """The answers of an artefact differ from the golden answers by more than is allowed."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest choice, or an empty string.

    >>> nearest("lr_rate", ["learning_rate", "epochs"])
    " (did you mean 'learning_rate'?)"
    """
    names = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(word.lower(), list(names), n=1, cutoff=0.5)
    return f" (did you mean {names[close[0]]!r}?)" if close else ""
