"""Nearly equal 64-bit codes among very many, without comparing all with all.

After Charikar 2002 ("Similarity estimation techniques from rounding algorithms", the search by sorted permutations):
the codes are sorted as numbers, once for each of several rotations of their bits, and each is compared with the few
that follow it. Two codes that differ in few bits share the leading ones in some rotation, and stand near each other
there. The work is ``tables`` sorts and ``tables * width`` comparisons a code, however alike the codes are.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["bits_apart", "near_codes"]

Codes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
#: So many pairs are gathered before those found twice are dropped.
_MANY = 20_000_000


def bits_apart(one: Codes, two: Codes) -> npt.NDArray[np.uint8]:
    """In how many bits codes differ, one by one."""
    return np.asarray(np.bitwise_count(one ^ two), np.uint8)


def near_codes(codes: Codes, owners: Places, apart: int, tables: int = 16, width: int = 24) -> tuple[Places, Places]:
    """Places (n,), (n,) of codes of two owners that differ in at most ``apart`` bits; each pair once."""
    found: list[Places] = [np.empty(0, np.int64)]
    for table in range(tables):
        order = np.argsort(_turned(codes, table * 64 // tables), kind="stable")
        lined, owned = codes[order], owners[order]
        for step in range(1, min(width, len(codes) - 1) + 1):
            near = (bits_apart(lined[step:], lined[:-step]) <= apart) & (owned[step:] != owned[:-step])
            here = np.flatnonzero(near)
            one, two = order[here], order[here + step]
            found.append(np.minimum(one, two) * len(codes) + np.maximum(one, two))
        if sum(map(len, found[1:])) > _MANY:
            found = [np.unique(np.concatenate(found))]
    found = [np.unique(np.concatenate(found))]
    return found[0] // max(len(codes), 1), found[0] % max(len(codes), 1)


def _turned(codes: Codes, bits: int) -> Codes:
    """The codes with their first ``bits`` bits moved to the end."""
    return codes if not bits else (codes << np.uint64(bits)) | (codes >> np.uint64(64 - bits))
