"""The ladder as a table: one definition of its columns for the terminal, Markdown and HTML."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from deploy.report import Report, Rung, best_rung

__all__ = ["COLUMNS", "Column", "best_values", "ladder_table", "markdown", "verdict"]


@dataclass(frozen=True, slots=True)
class Column:
    """One numeric column: ``value`` in the unit shown, ``text`` its formatting, which direction is ``better``."""

    title: str
    unit: str
    value: Callable[[Rung], float | None]
    digits: int = 1
    better: Literal["high", "low", "none"] = "none"
    hint: str = ""

    @property
    def heading(self) -> str:
        """Title with its unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, rung: Rung) -> str:
        """The formatted value; a dash where it is unknown."""
        value = self.value(rung)
        if value is None:
            return "-"
        digits = self.digits if value < 100 or self.unit == "%" else 0
        return f"{value:.1e}" if 0 < value < 10**-digits / 2 else f"{value:.{digits}f}"


def _scaled(name: str, factor: float) -> Callable[[Rung], float | None]:
    def value(rung: Rung) -> float | None:
        number = getattr(rung, name)
        return None if number is None else float(number) * factor

    return value


# Left out of a narrow terminal in this order.
_LEAST_TELLING = ("max diff", "MACs", "p95", "rate", "params", "agreement", "size")

COLUMNS: tuple[Column, ...] = (
    Column("accuracy", "%", _scaled("accuracy", 100), 1, "high", "on the test clips, with its 95 % interval"),
    Column("p50", "ms", _scaled("p50_ms", 1), 2, "low", "median latency of one answer"),
    Column("p95", "ms", _scaled("p95_ms", 1), 2, "low", "95th percentile of the latency"),
    Column("rate", "frames/s", _scaled("fps", 1), 0, "high", "answers a second at the median latency"),
    Column("size", "MB", _scaled("size_bytes", 1e-6), 2, "low", "files of the model on disk"),
    Column("params", "M", _scaled("parameters", 1e-6), 2, "low", "trained weights"),
    Column("MACs", "M", _scaled("macs", 1e-6), 1, "low", "multiply-accumulates for one answer"),
    Column("agreement", "%", _scaled("agreement", 100), 1, "none", "same answer as the float model"),
    Column("max diff", "", _scaled("max_diff", 1), 4, "none", "largest difference of a logit from the float model"),
)


def interval(rung: Rung) -> str:
    """``[lo, hi]`` of the accuracy in percent, or an empty string."""
    if rung.ci_low is None or rung.ci_high is None:
        return ""
    return f"[{100 * rung.ci_low:.0f}, {100 * rung.ci_high:.0f}]"


def verdict(rung: Rung) -> str:
    """The parity check in a word."""
    return {True: "ok", False: "FAILED", None: "-"}[rung.passed]


def best_values(rungs: Sequence[Rung]) -> dict[str, float]:
    """The best shown value of each column that has a direction; controls and failed rungs do not compete."""
    found: dict[str, float] = {}
    for column in COLUMNS:
        fit = [column.value(r) for r in rungs if r.kind != "control" and r.passed is not False]
        values = [round(value, column.digits) for value in fit if value is not None]
        if values and column.better != "none":
            found[column.title] = max(values) if column.better == "high" else min(values)
    return found


def is_best(column: Column, rung: Rung, best: dict[str, float]) -> bool:
    """Whether this rung holds (or shares) the best shown value of the column."""
    value = column.value(rung)
    if value is None or rung.kind == "control" or rung.passed is False:
        return False
    return best.get(column.title) == round(value, column.digits)


def used_columns(rungs: Sequence[Rung]) -> list[Column]:
    """Columns for which at least one rung has a value."""
    return [column for column in COLUMNS if any(column.value(rung) is not None for rung in rungs)]


def ladder_table(report: Report, width: int | None = None) -> Table:
    """The ladder for the terminal; the recommended artefact is marked, the best values are bold.

    Columns that do not fit into ``width`` characters (default: the terminal's) are left out, the least telling first.
    """
    columns = _fitting(report, width or shutil.get_terminal_size().columns)
    table = Table(title=report.title, title_style="bold", box=SIMPLE_HEAD, caption=report.machine.title, pad_edge=False)
    table.add_column("rung\n", no_wrap=True)
    for column in columns:
        table.add_column(f"{column.title}\n{column.unit}", justify="right", no_wrap=True)
    table.add_column("check\n", justify="center", no_wrap=True)
    chosen, best = best_rung(report), best_values(report.rungs)
    last_kind = None
    for rung in report.rungs:
        if rung.kind == "artefact" != last_kind and last_kind is not None:
            table.add_section()
        last_kind = rung.kind
        cells = [Text(_cell(column, rung), "bold" if is_best(column, rung, best) else "") for column in columns]
        check = Text(verdict(rung), {True: "green", False: "bold red", None: "dim"}[rung.passed])
        style = "green" if chosen is rung else "dim" if rung.kind == "control" else ""
        mark = "> " if chosen is rung else "  "
        table.add_row(Text(mark + rung.name, style), *cells, check)
    return table


def _fitting(report: Report, width: int) -> list[Column]:
    """Columns that fit beside the names and the check; each costs its widest text and three spaces."""
    columns = used_columns(report.rungs)
    names = max((len(rung.name) for rung in report.rungs), default=0)

    def needed() -> int:
        widths = (
            max(len(column.title), len(column.unit), *(len(_cell(column, rung)) for rung in report.rungs))
            for column in columns
        )
        return names + 5 + sum(w + 3 for w in widths) + 9

    for title in _LEAST_TELLING:
        if not report.rungs or needed() <= width:
            break
        columns = [column for column in columns if column.title != title]
    return columns


def _cell(column: Column, rung: Rung) -> str:
    text = column.text(rung)
    if text == "-":
        return text
    if column.title == "accuracy":
        return f"{text} {interval(rung)}".rstrip()
    if column.title == "rate" and rung.per == "clip":
        text += " clips"
    guessed = column.title in {"p50", "p95", "rate"} and rung.evidence != "measured"
    return f"~{text}" if guessed else text


def markdown(reports: Sequence[Report]) -> str:
    """The reports as Markdown: one table each, notes and commands below."""
    return "\n".join(part for report in reports for part in _markdown(report))


def _markdown(report: Report) -> list[str]:
    columns, best, chosen = used_columns(report.rungs), best_values(report.rungs), best_rung(report)
    lines = [f"# {_plain(report.title)}", "", _plain(report.task), ""] if report.task else [f"# {report.title}", ""]
    lines += [f"{report.machine.title}; {report.created}", ""]
    lines.append("| rung | " + " | ".join(column.heading for column in columns) + " | check |")
    lines.append("|---|" + "---:|" * len(columns) + ":---:|")
    for rung in report.rungs:
        cells = []
        for column in columns:
            text = _cell(column, rung)
            cells.append(f"**{text}**" if is_best(column, rung, best) else text)
        name = f"**{_plain(rung.name)}** (recommended)" if rung is chosen else _plain(rung.name)
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {verdict(rung)} |")
    lines.append("")
    guesses = sorted({rung.evidence for rung in report.rungs if rung.evidence != "measured"})
    if guesses:
        lines += [f"`~` marks latencies that are {' or '.join(guesses)}, not measured on the device.", ""]
    if report.chance is not None:
        lines += [f"Chance is {100 * report.chance:.1f} %.", ""]
    lines += [f"- {note}" for note in report.notes]
    if report.reproduce:
        lines += ["", "```sh", *report.reproduce, "```"]
    return [*lines, ""]


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
