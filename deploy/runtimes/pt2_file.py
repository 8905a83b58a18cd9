"""Whether a .pt2 archive holds a graph and numbers only, for torch's own loader would run what else it may hold.

torch 2.13 unpickles what the archive's tables call pickled (``weights_only=False``), loads compiled libraries that lie
in it, evaluates the expressions of free sizes as Python, and builds source text from checks and names. What vidon
writes needs none of it, so an archive is read as data first and refused if it has more.
"""

import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import BundleError

__all__ = ["check_plain"]

_ENTRY = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_NAME = re.compile(r"[\w.]*")
_NAMED = ("name", "names", "target", "fqn")
# What torch compares when a program is called: ``L['frame'].size()[0] == L['states'][0].size()[0]``.
_GUARD = re.compile(r"(L(\['\w+'\]|\[\d+\])+\.size\(\)\[\d+\]|\d+|[ =<>!+*%-])*")
#: What may be called in an expression of a size.
_CALLS = frozenset({"Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "FloorDiv",
                    "CeilDiv", "CleanDiv", "IntTrueDiv", "PythonMod", "ModularIndexing"})  # fmt: skip
_PARTS = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.operator,
          ast.unaryop)  # fmt: skip


def check_plain(path: Path) -> None:
    """Read the archive's lists and tables without torch.

    Raises:
        BundleError: it is damaged, or holds something that could run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = next(_faults(archive), None)
    except (zipfile.BadZipFile, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise BundleError(f"torch cannot read {path}: it is damaged; copy the bundle again") from error
    if found is not None:
        raise BundleError(f"torch does not read {path}: {found}, which could run code")


def _faults(archive: zipfile.ZipFile) -> Iterator[str]:
    """What does not belong into an archive of a graph and numbers."""
    names = archive.namelist()
    if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
        yield "it holds a file twice"
    for info in archive.infolist():
        inner = info.filename.partition("/")[2]
        # torch 2.13 leaves one empty entry for the sample inputs that were not saved.
        if info.filename.endswith((".pt", ".pkl")) and info.file_size:
            yield f"{info.filename} holds pickled data"
        if not _ENTRY.fullmatch(inner):
            yield f"it holds {info.filename}"
        if inner.endswith("_config.json"):
            rows = json.loads(archive.read(info))["config"].values()
            yield from (f"{row['path_name']} is pickled data" for row in rows if _pickled(row))
        elif inner.endswith(".json"):
            yield from _odd_strings(json.loads(archive.read(info)))


def _pickled(row: dict[str, Any]) -> bool:
    return row["use_pickle"] is not False or re.fullmatch(r"(weight|tensor)_\d+", row["path_name"]) is None


def _odd_strings(value: Any, key: str = "") -> Iterator[str]:
    """Expressions and names of the graph that are more than that; ``key`` is where ``value`` stands."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _odd_strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _odd_strings(inner, key)
    elif isinstance(value, str):
        if key == "expr_str" and not _is_size(value):
            yield f"a size of its graph is {value[:60]!r}"
        if key == "guards_code" and not _GUARD.fullmatch(value):
            yield f"a check of its graph is {value[:60]!r}"
        if key.endswith(_NAMED) and not _NAME.fullmatch(value):
            yield f"a name in its graph is {value[:60]!r}"


def _is_size(text: str) -> bool:
    """Whether it is arithmetic on numbers and symbols, such as ``Add(Symbol('s0', integer=True), Integer(1))``."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        return False
    symbols: set[ast.expr] = set()
    strings = []
    for node in ast.walk(tree):
        if not isinstance(node, _PARTS) or (isinstance(node, ast.Call) and not _known(node)):
            return False
        if isinstance(node, ast.Call) and node.func.id == "Symbol":  # type: ignore[attr-defined]  # _known() looked
            symbols |= set(node.args[:1])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            strings.append(node)
    # Sympy would evaluate a string once more, but not the name of a symbol.
    return all(node in symbols and str(node.value).isidentifier() for node in strings)


def _known(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id in _CALLS
