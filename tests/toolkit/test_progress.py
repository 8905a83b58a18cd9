"""Where there is no terminal a long work still says from time to time how far it is."""

import pytest
from rich.console import Console

from toolkit import progress


def test_a_log_file_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", -1.0)
    monkeypatch.setattr(progress, "console", Console(stderr=True, highlight=False))
    with progress.bar("train", 10) as running:
        running.advance(4, "loss 0.5")
    errors = capsys.readouterr().err
    assert "train: 4 of 10  loss 0.5" in errors
    assert "train: done" in errors
    with progress.quiet(), progress.bar("train", 10) as running:
        running.advance(4, "loss 0.5")
    assert capsys.readouterr().err == ""


def test_news_are_printed_as_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "console", Console(stderr=True, highlight=False, width=40))
    text = "left out [red] clips/[/bold]/cam[1]:smile:.mp4: " + "a long reason " * 9 + "end"
    progress.note(text)
    with progress.bar("evaluate [/x]", 1):
        pass
    assert capsys.readouterr().err == f"{text}\n  evaluate [/x]: done\n"
