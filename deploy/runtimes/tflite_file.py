"""Whether a .tflite file is whole: tflite-runtime 2.14 reads beyond the end of one that is cut off, and may crash.

The file is a FlatBuffer. A table begins with the way back to its vtable (its size, the table's size, then where in the
table each field stands); a field leads on to another table or to a vector, which begins with its length. The schema
below names what leads on, by the number of the field in TensorFlow Lite's ``schema.fbs``.
"""

import struct
from pathlib import Path
from typing import Any

from toolkit.errors import BundleError

__all__ = ["check_whole"]

# What a field leads to: a vector of numbers or characters of so many bytes, a table {...}, a vector of tables [{...}].
_QUANTISATION = {0: 4, 1: 4, 2: 4, 3: 8}
_TENSOR = {0: 4, 3: 1, 4: _QUANTISATION, 7: 4}
_OPERATOR: dict[int, Any] = {1: 4, 2: 4, 4: {}, 5: 1, 7: 1, 8: 4}
_GRAPH = {0: [_TENSOR], 1: 4, 2: 4, 3: [_OPERATOR], 4: 1}
_SIGNATURE = {0: [{0: 1}], 1: [{0: 1}], 2: 1}
_MODEL = {1: [{1: 1}], 2: [_GRAPH], 3: 1, 4: [{0: 1}], 5: 4, 6: [{0: 1}], 7: [_SIGNATURE]}


def check_whole(path: Path, runtime: str = "litert") -> None:
    """Walk through everything that the file says it has.

    Raises:
        BundleError: some of it lies beyond the end, or it is no LiteRT model at all.
    """
    data = path.read_bytes()
    try:
        if data[4:8] != b"TFL3":
            raise ValueError("it is no LiteRT model")
        _walk(data, _number(data, 0), _MODEL)
    except (struct.error, ValueError) as error:
        raise BundleError(f"{runtime} cannot read {path}: it is damaged ({error}); copy the bundle again") from error


def _number(data: bytes, at: int, kind: str = "<I") -> int:
    return int(struct.unpack_from(kind, data, at)[0])


def _ends(data: bytes, end: int) -> None:
    if end > len(data):
        raise ValueError(f"{end - len(data)} bytes are missing at its end")


def _walk(data: bytes, table: int, schema: dict[int, Any]) -> None:
    fields = table - _number(data, table, "<i")
    size = _number(data, fields, "<H")
    _ends(data, table + _number(data, fields + 2, "<H"))
    for index, kind in schema.items():
        entry = 4 + 2 * index
        place = _number(data, fields + entry, "<H") if entry < size else 0
        if place:
            _follow(data, table + place + _number(data, table + place), kind)


def _follow(data: bytes, target: int, kind: Any) -> None:
    """Check the vector or the table at ``target``."""
    if isinstance(kind, dict):
        _walk(data, target, kind)
        return
    count = _number(data, target)
    _ends(data, target + 4 + count * (kind if isinstance(kind, int) else 4))
    if isinstance(kind, list):
        for place in range(target + 4, target + 4 + 4 * count, 4):
            _walk(data, place + _number(data, place), kind[0])
