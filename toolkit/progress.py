"""Progress bars for people, on stderr; silent when stderr is not a terminal or ``--json`` is asked for.

Library code calls :func:`track` around a loop and :func:`note` for one line of news; the CLI decides
whether anything is shown.
"""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Bar", "bar", "console", "note", "quiet", "track"]

console = Console(stderr=True, highlight=False)
T = TypeVar("T")
_state = {"quiet": False}
_LINE_EVERY_S = 30.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Show neither bars nor notes inside the block."""
    before = _state["quiet"]
    _state["quiet"] = True
    try:
        yield
    finally:
        _state["quiet"] = before


def note(text: str, style: str = "") -> None:
    """Print one line of news on stderr, as it is: names of files may hold brackets, and a long line is not broken."""
    if not _state["quiet"]:
        console.print(Text(text, style), soft_wrap=True)


class Bar:
    """A running bar: ``advance`` it and change its ``news`` (loss, throughput...).

    Without a terminal (``progress`` None) but with a ``label``, a line is printed every half minute: for log files.
    """

    def __init__(self, progress: Progress | None, task: int, label: str = "", total: int | None = None) -> None:
        self._progress, self._task = progress, task
        self._label, self._total = label, total
        self._done, self._said_s = 0, time.monotonic()

    def advance(self, steps: int = 1, news: str | None = None) -> None:
        """Move on by ``steps`` and show ``news`` at the end of the bar."""
        if self._progress is not None:
            from rich.progress import TaskID

            fields = {} if news is None else {"news": news}
            self._progress.update(TaskID(self._task), advance=steps, **fields)  # type: ignore[arg-type]
            return
        self._done += steps
        if self._label and time.monotonic() - self._said_s > _LINE_EVERY_S:
            self._said_s = time.monotonic()
            note(f"  {self._label}: {self._done} of {self._total or '?'}  {news or ''}")


@contextlib.contextmanager
def bar(label: str, total: int | None) -> Iterator[Bar]:
    """Open a bar of ``total`` steps; without a terminal one line is printed at the end instead."""
    if _state["quiet"]:
        yield Bar(None, 0)
        return
    if not sys.stderr.isatty():
        yield Bar(None, 0, label, total)
        note(f"  {label}: done")
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[news]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress, progress.add_task(label, total=total, news=""))


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a bar."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(label, total) as running:
        for item in items:
            yield item
            running.advance()
