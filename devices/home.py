"""Where vidon keeps what it made or learned on this machine: tools' environments, measured choices, built engines."""

import os
from pathlib import Path

from toolkit.errors import UserError

__all__ = ["home"]


def home() -> Path:
    """``$VIDON_HOME``, else ``vidon`` in ``$XDG_CACHE_HOME`` or in ``~/.cache``.

    Raises:
        UserError: this user has no home folder (a container with a bare user number), and the variables are not set.
    """
    given, cache = os.environ.get("VIDON_HOME"), os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given)
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "vidon"
    except RuntimeError as error:
        raise UserError("this user has no home folder: set VIDON_HOME to a folder that vidon may write to") from error
