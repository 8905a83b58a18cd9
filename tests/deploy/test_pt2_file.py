"""A bundle's torch file is data: whatever torch's loader would run is refused before torch sees it."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.export.step import flat_step
from deploy.export.torch import float_torch
from deploy.runtimes import Options, load
from tests.deploy.conftest import lively_student
from toolkit.bundle import Artefact
from toolkit.contract import Contract
from toolkit.errors import BundleError
from toolkit.recipe import StudentConfig

ARTEFACT = Artefact(runtime="torch", precision="fp32", entry="model.pt2")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Contract]:
    student = lively_student(StudentConfig(width=0.25, depth=0.5))
    path = tmp_path_factory.mktemp("plain") / "model.pt2"
    float_torch(flat_step(student), student.contract(), path)
    return path, student.contract()


class _Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def _rewritten(
    source: Path, target: Path, change: dict[str, Callable[[bytes], bytes]], extra: dict[str, bytes]
) -> Path:
    """The archive with some entries changed, and others added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            inner = name.partition("/")[2]
            data = old.read(name)
            new.writestr(name, change[inner](data) if inner in change else data)
        for name, data in extra.items():
            new.writestr(f"{root}/{name}", data)
    return target


def _edited(edit: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        value = json.loads(data)
        edit(value)
        return json.dumps(value).encode()

    return apply


def _first_weight(value: dict[str, object], **changes: object) -> None:
    next(iter(value["config"].values())).update(changes)  # type: ignore[attr-defined]


def _evil(kind: str, trap: Path) -> tuple[dict[str, Callable[[bytes], bytes]], dict[str, bytes]]:
    weights, constants = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
    code = f"exec(\"import pathlib; pathlib.Path('{trap}').touch()\")"
    row = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    row_edit = _edited(lambda v: v["config"].update(evil=row))  # type: ignore[attr-defined]
    match kind:
        case "weight called pickled":
            pickled = pickle.dumps(_Touch(trap))
            return {weights: _edited(lambda v: _first_weight(v, use_pickle=True)),
                    "data/weights/weight_0": lambda _: pickled}, {}  # fmt: skip
        case "pickled constant":
            return {constants: row_edit}, {"data/constants/opaque_obj_0": pickle.dumps(_Touch(trap))}
        case "size that is code":
            size = lambda data: data.replace(b"Symbol(", f"({code}) or Symbol(".replace('"', '\\"').encode())  # noqa: E731
            return {"models/model.json": size}, {}
        case "compiled library":
            return {}, {"data/aotinductor/model/model.so": b"\x7fELF"}
        case "check that is code":
            return {"models/model.json": _edited(lambda v: v.update(guards_code=[code]))}, {}
        case _:
            return {"models/model.json": lambda data: data.replace(b'"first"', b"\"first=__import__('os')\"")}, {}


KINDS = ("weight called pickled", "pickled constant", "size that is code", "check that is code", "compiled library",
         "name that is code")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_torch_file_that_would_run_code_is_refused_and_runs_none(
    plain: tuple[Path, Contract], tmp_path: Path, kind: str
) -> None:
    trap = tmp_path / "it ran"
    _rewritten(plain[0], tmp_path / "model.pt2", *_evil(kind, trap))
    with pytest.raises(BundleError) as caught:
        load("torch").open(tmp_path, ARTEFACT, plain[1], Options())
    assert not trap.exists()
    assert str(caught.value).endswith("which could run code")


def test_a_size_may_be_arithmetic_but_no_string_that_would_be_evaluated_again() -> None:
    from deploy.runtimes.pt2_file import _is_size

    good = ("Symbol('s0', positive=True, integer=True)", "Add(Mul(Integer(2), Symbol('s0')), Integer(-1))", "3*s0 + 1")
    bad = ("Integer('__import__(\"os\")')", "Symbol('s0').__class__", "open('x')", "Symbol(open)('x')",
           "[s for s in x]", "lambda: 0", "Symbol('a-b')", "Symbol('s0', name='x')", "")  # fmt: skip
    assert [text for text in good if not _is_size(text)] == []
    assert [text for text in bad if _is_size(text)] == []


def test_what_vidon_exports_is_opened_and_tells_nothing_of_the_machine_that_exported(
    plain: tuple[Path, Contract],
) -> None:
    path, contract = plain
    with zipfile.ZipFile(path) as archive:
        graph = next(archive.read(name) for name in archive.namelist() if name.endswith("models/model.json"))
    assert str(Path(__file__).parents[2]).encode() not in graph
    session = load("torch").open(path.parent, ARTEFACT, contract, Options())
    assert session.step(np.zeros((1, *contract.frame), np.float32)).shape == (1, contract.classes)
    session.close()
