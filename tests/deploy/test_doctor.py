"""The doctor names what works, what does not, and the one command that would mend it."""

import json
import sys

import pytest
from typer.testing import CliRunner

from deploy.doctor import diagnose, prescription
from deploy.runtimes import RUNTIMES, available
from tests.deploy.conftest import RUNTIME_NAMES
from toolkit.cli import app


def test_every_runtime_is_diagnosed_with_its_version() -> None:
    findings = diagnose()
    assert {finding.runtime for finding in findings} >= set(RUNTIMES)
    working = [finding for finding in findings if finding.ok and finding.runtime in RUNTIME_NAMES]
    assert {finding.device for finding in working} >= {"cpu"}
    assert all(finding.version for finding in working)
    assert all(finding.why for finding in findings if not finding.ok)


def test_a_missing_library_comes_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    found = [finding for finding in diagnose() if finding.runtime == "openvino"]
    assert len(found) == 1
    assert found[0].fix == "pip install 'vidon[openvino]'"
    assert "missing  openvino" in prescription(found)
    assert "to fix it:  pip install 'vidon[openvino]'" in prescription(found)


def test_a_provider_that_another_package_brings_is_named() -> None:
    gaps = {gap.device: gap for gap in available("onnxruntime").missing}
    if "openvino" in available("onnxruntime").devices:
        assert "openvino" not in gaps
    else:
        assert "onnxruntime-openvino" in gaps["openvino"].fix


def test_the_command_prints_json_and_the_group_still_lists() -> None:
    runner = CliRunner()
    told = json.loads(runner.invoke(app, ["devices", "doctor", "--json"]).stdout)
    assert {row["runtime"] for row in told["findings"]} >= set(RUNTIMES)
    listed = json.loads(runner.invoke(app, ["devices", "--json"]).stdout)
    assert set(listed["runtimes"]) == set(RUNTIMES)
    assert runner.invoke(app, ["devices", "--profile", "raspberry-pi-5"]).exit_code == 0
