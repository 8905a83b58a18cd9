"""Malformed inputs of the benchmark, in this process: the exit code and the line that each must give."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.malformed import CASES, Case, arguments
from toolkit.cli import app

QUICK = [case for case in CASES if case.command == "check"]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name.replace(" ", "_"))
def test_each_malformed_input_gets_its_line(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("train.data.remote._WAIT_S", 0.0)
    words = arguments(case, case.make(tmp_path), tmp_path, None)
    result = CliRunner().invoke(app, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == case.code, result.output
    assert re.search(case.says, result.output), result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) <= 1


def test_there_are_at_least_fifty_malformed_inputs() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 50
