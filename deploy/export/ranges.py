"""Equal quantisation ranges for everything that carries one stream state.

A state goes out of one step and into the next as raw integers, so its input and its output must have the same scale
and zero-point; and every tensor that only moves its values on (concat, slice, transpose, pad) must share them too,
or the compiler puts a requantising operator in between. Such tensors form a group, and the group takes the widest
range that any of its members has. Ranges always hold zero: the state of a fresh stream is exactly the zero-point.
"""

from collections.abc import Iterable, Mapping

from toolkit.errors import ParityError

__all__ = ["Range", "groups_of", "shared_ranges", "unequal_states"]

#: (least, greatest) value of a tensor over the calibration rollouts.
Range = tuple[float, float]
#: (scale, zero-point) of a tensor.
Quantisation = tuple[float, int]


def groups_of(moves: Iterable[Iterable[str]], links: Iterable[tuple[str, str]]) -> list[set[str]]:
    """Sets of tensors that must share one range, those of a stream state only.

    ``moves`` are the tensors of each operator that moves values without changing them; ``links`` the (output, input)
    of each state.
    """
    links = list(links)
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for names in (*moves, *links):
        first, *others = names
        for other in others:
            parent[root(other)] = root(first)
    found: dict[str, set[str]] = {root(name): set() for link in links for name in link}
    for name in parent:
        if root(name) in found:
            found[root(name)].add(name)
    return list(found.values())


def shared_ranges(groups: Iterable[set[str]], ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The widest range of its group, zero included, for every member that has a range."""
    shared: dict[str, Range] = {}
    for group in groups:
        members = [name for name in sorted(group) if name in ranges]
        low = min((ranges[name][0] for name in members), default=0.0)
        high = max((ranges[name][1] for name in members), default=0.0)
        shared |= {name: (min(low, 0.0), max(high, 0.0)) for name in members}
    return shared


def unequal_states(pairs: Mapping[str, tuple[Quantisation, Quantisation]]) -> None:
    """Refuse a file whose states do not come out as they go in; ``pairs`` is state -> (input, output).

    Raises:
        ParityError: names the state and both parameters.
    """
    for name, (inside, outside) in pairs.items():
        if inside != outside:
            raise ParityError(
                f"{name} goes in with scale {inside[0]:.6g}, zero-point {inside[1]} and comes out with "
                f"{outside[0]:.6g}, {outside[1]}: raw int8 state cannot be fed back; export the model again"
            )
