"""The names of the splits of labelled data, and which groups of a training list choose the weights if no list does."""

import hashlib
from collections.abc import Iterable

from toolkit.errors import UserError, nearest

__all__ = ["SPLITS", "check_split", "group_share", "validation_groups"]

SPLITS = ("train", "val", "test")


def check_split(name: str, *more: str) -> None:
    """Refuse what is neither a split, nor "all", nor one of ``more``.

    Raises:
        UserError: unknown split; the nearest is named.

    >>> check_split("all")
    """
    if name not in (*SPLITS, "all", *more):
        raise UserError(f"unknown split {name!r}{nearest(name, SPLITS)}; splits: {', '.join(SPLITS)}, all")


def group_share(group: str) -> float:
    """Where a group stands between 0 and 1: by a hash of its name, so that others never move it."""
    return int(hashlib.sha256(group.encode("utf-8", "surrogateescape")).hexdigest()[:8], 16) / 0xFFFFFFFF


def validation_groups(known: Iterable[tuple[str, str]], share: float) -> set[str]:
    """Of the (label, group) of training clips, the groups that are about ``share`` of all: each whole, or not at all.

    A label of so many groups that its share is nearest to one or more gives at least one, any other none, and each
    keeps one for training.

    >>> sorted(validation_groups([("ab"[number % 2], f"g{number}") for number in range(20)], 0.1))
    ['g6', 'g8', 'g9']
    """
    groups: dict[str, set[str]] = {}
    for label, group in known:
        groups.setdefault(label, set()).add(group)
    place = {group: group_share(group) for own in groups.values() for group in own}
    few = {group for own in groups.values() if len(own) * share < 0.5 for group in own}
    chosen = {group for group, at in place.items() if at < share} - few
    for _, own in sorted(groups.items()):
        if own - few and not own & chosen:
            chosen.add(min(own - few, key=lambda group: (place[group], group)))
    for _, own in sorted(groups.items()):  # training comes first where groups of several labels do not let both be
        if own <= chosen:
            chosen.discard(max(own, key=lambda group: (place[group], group)))
    return chosen
