"""What was measured fastest here is used when nothing else is asked for, and only on this machine and bundle."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import deploy.choice as choice_module
from deploy.choice import Choice, choice_file, load_choice, save_choice
from deploy.runtimes import Options, load, open_session, pick
from deploy.runtimes.base import Availability
from deploy.sweep import sweep, table, winner
from deploy.trial import try_alone
from devices import describe_machine
from tests.deploy.conftest import KEYS
from toolkit.bundle import Bundle, open_bundle, seal
from toolkit.errors import UnavailableDevice, UserError

CHOICE = Choice(machine="m", measured="2026-01-01", artefact="openvino-int8", threads=2, form="explicit", p50_ms=1.0)


def test_a_kept_choice_is_opened_as_it_was_measured(bundle: Bundle) -> None:
    assert load_choice(bundle) is None
    save_choice(bundle, CHOICE)
    assert load_choice(bundle) == CHOICE
    assert pick(bundle, None).key == "openvino-int8"
    placement = open_session(bundle).placement()
    assert (placement.runtime, placement.precision, placement.threads) == ("openvino", "int8", 2)
    assert open_session(bundle, threads=1).placement().threads == 1
    assert open_session(bundle, "litert-fp32").placement().threads is None


def test_another_machine_or_a_changed_bundle_has_no_choice(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_choice(bundle, CHOICE)
    shutil.copytree(bundle.root, tmp_path / "copy.vidon")
    copy = open_bundle(tmp_path / "copy.vidon")
    assert load_choice(copy) == CHOICE
    seal(copy.root, copy.manifest.model_copy(update={"best": "torch-fp32"}))
    assert load_choice(open_bundle(copy.root)) is None
    here = describe_machine()
    changes: dict[str, object] = {"cpu": "another", "cores": 99, "board": "another", "features": ("i8mm",)}
    for change in changes.items():
        other = here.model_copy(update=dict([change]))
        monkeypatch.setattr(choice_module, "describe_machine", lambda machine=other: machine)
        assert load_choice(bundle) is None, change
    warmer = here.model_copy(update={"temperature_c": 80.0, "python": "9.9"})  # as every day
    monkeypatch.setattr(choice_module, "describe_machine", lambda: warmer)
    assert load_choice(bundle) == CHOICE


def test_a_damaged_choice_is_not_used(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_choice(bundle, CHOICE)
    assert file == choice_file(bundle)
    file.write_text("{")
    assert load_choice(bundle) is None
    file.write_text(json.dumps({**CHOICE.model_dump(), "artefact": "rknn-int8"}))
    assert load_choice(bundle) is None


def test_a_choice_whose_runtime_is_gone_gives_way(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    save_choice(bundle, CHOICE)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert pick(bundle, None).runtime != "openvino"


def test_a_precision_that_a_runtime_runs_badly_is_not_the_first_choice(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = bundle.manifest.model_copy(update={
        "best": "litert-int8", "artefacts": tuple(a for a in bundle.manifest.artefacts if a.runtime == "litert"),
    })  # fmt: skip
    old = Bundle(bundle.root, manifest)
    assert pick(old, None).key == "litert-int8"
    monkeypatch.setattr(type(load("litert")), "available", lambda self: Availability(True, "", slow=("int8",)))
    assert pick(old, None).key == "litert-fp32"


def test_a_device_is_served_by_a_runtime_that_has_it(bundle: Bundle) -> None:
    """What is fastest on the processor says nothing about another device."""
    assert "auto" in load("openvino").available().devices
    save_choice(bundle, Choice(machine="m", measured="2026-01-01", artefact="litert-fp32", threads=1, p50_ms=1.0))
    assert pick(bundle, None).key == "litert-fp32"
    assert pick(bundle, None, "auto").runtime == "openvino"
    assert open_session(bundle, device="auto").placement().runtime == "openvino"
    with pytest.raises(UnavailableDevice, match="has no device 'npu9' here"):
        open_session(bundle, device="npu9")


def test_a_target_tried_alone_tells_memory_load_time_and_parity(bundle: Bundle) -> None:
    row = try_alone(bundle, "onnxruntime-fp32", Options(threads=1))
    assert row["max_diff"] < 1e-4
    assert row["load_ms"] > 0
    assert 10 < row["peak_rss_mib"] < 1000


def test_what_fails_alone_is_an_error_in_its_row(bundle: Bundle) -> None:
    row = try_alone(bundle, "onnxruntime-fp32", Options(form="quick"))
    assert "has no form 'quick'" in row["error"]
    with pytest.raises(UserError, match="nothing here agrees"):
        winner(bundle, [{"artefact": "litert-int8", "threads": 1, "form": None, "agreement": 0.5, "p50_ms": 1.0}])


def test_the_winner_is_the_fastest_that_agrees(bundle: Bundle) -> None:
    common: dict[str, Any] = {"threads": 1, "form": None}
    rows: list[dict[str, Any]] = [
        {**common, "artefact": "litert-int8", "p50_ms": 1.0, "agreement": 0.9, "max_diff": 0.1},
        {**common, "artefact": "openvino-fp32", "p50_ms": 2.0, "agreement": 1.0, "max_diff": 1e-2},
        {**common, "artefact": "onnxruntime-int8", "p50_ms": 3.0, "agreement": 0.97, "max_diff": 0.1},
        {**common, "artefact": "torch-fp32", "p50_ms": 4.0, "agreement": 1.0, "max_diff": 0.0},
        {**common, "artefact": "litert-fp32", "error": "broken"},
    ]
    assert winner(bundle, rows).artefact == "onnxruntime-int8"
    loaded = load_choice(bundle)
    assert loaded is not None
    assert "onnxruntime-int8 (1 thread): measured fastest here" in loaded.line


@pytest.mark.slow
def test_the_sweep_measures_every_target_with_every_number_of_threads(bundle: Bundle) -> None:
    rows = sweep(bundle, steps=20, threads=(1, 2))
    done = {(row["artefact"], row["threads"]) for row in rows if row["form"] is None and "error" not in row}
    assert done == {(key, count) for key in KEYS for count in (1, 2)}
    assert all(row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in rows if "error" not in row)
    assert len(table(rows).splitlines()) == len(rows) + 1
