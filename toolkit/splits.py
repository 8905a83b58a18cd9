"""The names of the splits of labelled data."""

from toolkit.errors import UserError, nearest

__all__ = ["SPLITS", "check_split"]

SPLITS = ("train", "val", "test")


def check_split(name: str, *more: str) -> None:
    """Refuse what is neither a split, nor "all", nor one of ``more``.

    Raises:
        UserError: unknown split; the nearest is named.

    >>> check_split("all")
    """
    if name not in (*SPLITS, "all", *more):
        raise UserError(f"unknown split {name!r}{nearest(name, SPLITS)}; splits: {', '.join(SPLITS)}, all")
