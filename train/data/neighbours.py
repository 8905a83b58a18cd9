"""Nearly equal 64-bit codes among very many, without comparing all with all.

After Charikar 2002 ("Similarity estimation techniques from rounding algorithms", the search by sorted permutations):
the codes are sorted as numbers, once for each of several rotations of their bits, and each is compared with the few
that stand around it. Two codes that differ in few bits share the leading ones in some rotation, and stand near each
other there. The work is ``tables`` sorts and ``2 * tables * width`` comparisons a code, however alike the codes are.

The orders lie in a temporary file, 8 bytes a code and table, and pairs come in parts, so memory is bounded.
Shapes: N codes, m of them at a time, w neighbours.
"""

import tempfile
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

__all__ = ["bits_apart", "near_codes"]

Codes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Owners = npt.NDArray[np.int32] | npt.NDArray[np.int64]
#: About so many pairs come at a time, 8 bytes each.
_MANY = 4_000_000
#: Codes that are compared in one go: what they are compared with stays in the processor's cache.
_BLOCK = 2048


def bits_apart(one: Codes, two: Codes) -> npt.NDArray[np.uint8]:
    """In how many bits codes differ, one by one."""
    return np.asarray(np.bitwise_count(one ^ two), np.uint8)


def near_codes(
    codes: Codes, owners: Owners, apart: int, tables: int = 16, width: int = 24, many: int = _MANY
) -> Iterator[tuple[Places, Places]]:
    """Places (n,), (n,) of codes of two owners that differ in at most ``apart`` bits: each pair once, lower first.

    All pairs whose lower code is in one run of an owner come in the same part.
    """
    ready: list[Places] = []
    if len(codes):
        with tempfile.TemporaryFile() as file:
            orders = _orders(codes, tables, np.memmap(file, np.int32, "w+", shape=(tables, 2, len(codes))))
            for begin, end in _blocks(owners):
                found = [_around(codes, owners, apart, order, width, begin, end) for order in orders]
                ready.append(_unique(np.concatenate(found)))
                if sum(map(len, ready)) >= many:
                    yield _parted(ready, len(codes))
                    ready = []
            del orders
    if ready or not len(codes):
        yield _parted(ready, max(len(codes), 1))


def _orders(codes: Codes, tables: int, file: npt.NDArray[np.int32]) -> list[npt.NDArray[np.int32]]:
    """Of each table the codes' places in their order, and where in it each code stands: (2, N)."""
    for table in range(tables):
        order = np.argsort(_turned(codes, table * 64 // tables), kind="stable")
        file[table, 0] = order
        file[table, 1, order] = np.arange(len(codes), dtype=np.int32)
    return [np.asarray(file[table]) for table in range(tables)]


def _blocks(owners: Owners) -> Iterator[tuple[int, int]]:
    """Runs of whole owners with about ``_BLOCK`` codes together."""
    begin = 0
    for end in [*(np.flatnonzero(np.diff(owners)) + 1).tolist(), len(owners)]:
        if end - begin >= _BLOCK or end == len(owners):
            yield begin, end
            begin = end


def _around(
    codes: Codes, owners: Owners, apart: int, order: npt.NDArray[np.int32], width: int, begin: int, end: int
) -> Places:
    """Pairs of the codes from ``begin`` to ``end`` with later ones around them: ``lower * N + higher``."""
    lined, places = order
    steps = np.concatenate([np.arange(-width, 0), np.arange(1, width + 1)])
    at = np.sort(places[begin:end]).astype(np.int64)
    near_mw = at[:, None] + steps
    other_mw = lined[near_mw.clip(0, len(codes) - 1)]
    row, column = np.nonzero((other_mw > lined[at][:, None]) & (near_mw >= 0) & (near_mw < len(codes)))
    own, other = lined[at][row].astype(np.int64), other_mw[row, column].astype(np.int64)
    good = (bits_apart(codes[own], codes[other]) <= apart) & (owners[own] != owners[other])
    return np.asarray(own[good] * len(codes) + other[good], np.int64)


def _unique(pairs: Places) -> Places:
    """Rising, each once: sorted, since NumPy's own way hashes and is slower by far."""
    pairs.sort()
    return pairs[np.append(True, pairs[1:] != pairs[:-1])] if len(pairs) else pairs


def _parted(ready: list[Places], count: int) -> tuple[Places, Places]:
    pairs = np.concatenate(ready) if ready else np.empty(0, np.int64)
    return pairs // count, pairs % count


def _turned(codes: Codes, bits: int) -> Codes:
    """The codes with their first ``bits`` bits moved to the end."""
    return codes if not bits else (codes << np.uint64(bits)) | (codes >> np.uint64(64 - bits))
