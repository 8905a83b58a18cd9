"""The report as one self-contained HTML page: inline style and SVG, no script, not a single outside request.

A strict Content-Security-Policy in the page itself keeps that promise even if a label holds markup. One report
gives the full page; several give a comparison with one colour per machine.
"""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from deploy.figures import camera_figure, confusion_figure, curve_figures, latency_figure
from deploy.ladder import Column, best_values, interval, is_best, used_columns, verdict
from deploy.report import Report, Rung, best_rung

__all__ = ["page"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_KINDS = {
    "teacher": "teacher",
    "control": "single-frame control",
    "student": "student",
    "pruned": "pruned student",
    "artefact": "exported file",
}


def page(reports: Sequence[Report]) -> str:
    """The whole document for one report, or a comparison of several."""
    title = reports[0].title if len(reports) == 1 else f"{len(reports)} machines compared"
    body = _single(reports[0]) if len(reports) == 1 else _comparison(reports, title)
    style = (files("deploy") / "assets" / "report.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{escape(title)}</title>
<style>
{style}
</style>
</head>
<body>
<main>
{body}
<footer>Made by vidon. Every accuracy is that of the file named in its row, run by its own runtime; every latency is
of one answer on the machine named above unless marked otherwise. This page loads nothing from elsewhere.</footer>
</main>
</body>
</html>
"""


def _single(report: Report) -> str:
    parts = [
        _header(report.title, report.task, [report.machine.title, _date(report.created)]),
        _cards(report),
        _section("Accuracy against latency", latency_figure([report])) if _judged(report) else "",
        _section("The ladder", _ladder(report)),
    ]
    if report.confusion is not None:
        intro = f"<p>Test clips of each true label (row) by the answer of <b>{escape(report.confusion.rung)}</b>.</p>"
        parts.append(_section("Where it is right and wrong", intro + confusion_figure(report)))
    if report.camera is not None:
        parts.append(_section("On live video" if report.camera.live else "On video", camera_figure(report)))
    if report.curves:
        parts.append(_section("How training went", curve_figures(report)))
    if report.notes:
        parts.append(_section("Notes", _list(report.notes)))
    parts += [_reproduce(report), _environment(report)]
    return "\n".join(part for part in parts if part)


def _judged(report: Report) -> bool:
    """Whether there is anything to draw: a bundle alone knows neither accuracy nor latency."""
    return any(rung.accuracy is not None and rung.p50_ms is not None for rung in report.rungs)


def _comparison(reports: Sequence[Report], title: str) -> str:
    tasks = sorted({report.task or report.title for report in reports})
    parts = [
        _header(title, "; ".join(tasks), [report.machine.title for report in reports]),
        _section("Accuracy against latency", latency_figure(reports)),
        _section("Median latency by machine", _matrix(reports)),
    ]
    for report in reports:
        heading = f"{report.title}: {report.machine.title}" if report.title else report.machine.title
        parts.append(_section(heading, _ladder(report)))
    return "\n".join(parts)


def _header(title: str, task: str, facts: Sequence[str]) -> str:
    lines = "".join(f"<li>{escape(fact)}</li>" for fact in facts if fact)
    lead = f"<p class='lead'>{escape(task)}</p>" if task else ""
    return f"<header><h1>{escape(title)}</h1>{lead}<ul class='facts'>{lines}</ul></header>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>"


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def _date(created: str) -> str:
    """``2026-11-23T20:14:05+00:00`` -> ``2026-11-23 20:14``."""
    return created[:16].replace("T", " ")


def _cards(report: Report) -> str:
    """The few numbers a reader came for."""
    best, teacher = best_rung(report), report.rung("teacher") or report.rung("student")
    if best is None:
        return ""
    cards = [_accuracy_card(report, best)]
    if best.p50_ms is not None:
        digits = 2 if best.p50_ms < 10 else 1
        rate = f"{best.fps:.0f} {best.per}s/s" if best.fps else f"p95 {best.p95_ms:.1f} ms" if best.p95_ms else ""
        cards.append(
            _card(
                "latency",
                f"{best.p50_ms:.{digits}f} ms",
                f"median of one {best.per}; {rate}".rstrip("; "),
            )
        )
    if best.size_bytes is not None:
        weights = f"{best.parameters / 1e6:.2f} M parameters" if best.parameters else "on disk"
        cards.append(_card("size", f"{best.size_bytes / 1e6:.1f} MB", weights))
    if teacher is not None and teacher is not best:
        cards.append(_against(best, teacher))
    return f"<section class='cards' aria-label='Summary'>{''.join(cards)}</section>"


def _accuracy_card(report: Report, best: Rung) -> str:
    against = []
    if report.control_accuracy is not None:
        against.append(f"single frame {100 * report.control_accuracy:.0f} %")
    if report.chance is not None:
        against.append(f"chance {100 * report.chance:.0f} %")
    value = "-" if best.accuracy is None else f"{100 * best.accuracy:.1f} %"
    return _card(best.name, value, f"accuracy {interval(best)}; {', '.join(against)}".rstrip("; "), lead=True)


def _against(best: Rung, other: Rung) -> str:
    facts = []
    if best.accuracy is not None and other.accuracy is not None:
        facts.append(f"{100 * (best.accuracy - other.accuracy):+.1f} points".replace("-", "\u2212"))
    if best.parameters and other.parameters:
        facts.append(f"{_times(other.parameters / best.parameters)} fewer parameters")
    head = f"against the {other.kind}"
    if best.p50_ms and other.p50_ms:
        ratio = other.p50_ms / best.p50_ms
        text = f"{_times(ratio)} faster" if ratio >= 1 else f"{_times(1 / ratio)} slower"
        return _card(head, text, ", ".join(facts))
    return _card(head, facts[0] if facts else "-", ", ".join(facts[1:]))


def _times(ratio: float) -> str:
    return f"{ratio:.{1 if ratio < 10 else 0}f}\u00d7"


def _card(title: str, value: str, detail: str, lead: bool = False) -> str:
    css = "card lead-card" if lead else "card"
    return (
        f"<div class='{css}'><div class='card-title'>{escape(title)}</div>"
        f"<div class='card-value'>{escape(value)}</div><div class='card-detail'>{escape(detail)}</div></div>"
    )


def _ladder(report: Report) -> str:
    columns, best, chosen = used_columns(report.rungs), best_values(report.rungs), best_rung(report)
    heads = "".join(
        f"<th scope='col' title='{escape(column.hint, quote=True)}'>{escape(column.title)}"
        f"<span class='unit'>{escape(column.unit) or '&nbsp;'}</span></th>"
        for column in columns
    )
    rows = []
    for rung in report.rungs:
        cells = "".join(_cell(column, rung, best, report.rungs) for column in columns)
        css = " class='chosen'" if rung is chosen else f" class='{rung.kind}'"
        name = escape(rung.name)
        badge = "<span class='badge'>recommended</span>" if rung is chosen else ""
        kind = f"{_KINDS[rung.kind]}, {rung.runtime} {rung.precision}"
        rows.append(
            f"<tr{css}><th scope='row'>{name}<span class='unit'>{escape(kind)}</span>{badge}</th>"
            f"{cells}{_check(rung)}</tr>"
        )
    return (
        f"<div class='scroll'><table class='ladder'><thead><tr><th scope='col'>rung</th>{heads}"
        f"<th scope='col' title='answers compared with the float model'>check</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{_legend(report)}"
    )


def _cell(column: Column, rung: Rung, best: dict[str, float], rungs: Sequence[Rung]) -> str:
    text = escape(column.text(rung))
    if text == "-":
        return "<td class='none'>\u2013</td>"
    if is_best(column, rung, best):
        text = f"<b>{text}</b>"
    if column.title == "accuracy":
        text += f"<span class='unit'>{interval(rung)}</span>{_bar(rung.accuracy)}"
    elif column.title == "p50" and rung.per == "clip":
        text += "<span class='unit'>a clip</span>"
    elif column.title == "rate" and rung.per == "clip":
        text += "<span class='unit'>clips/s</span>"
    if column.title in {"p50", "p95", "rate"} and rung.evidence != "measured":
        text = f"~{text}<span class='unit'>{rung.evidence}</span>"
    return f"<td>{text}</td>"


def _bar(share: float | None) -> str:
    return "" if share is None else f"<span class='bar'><i style='width:{100 * share:.1f}%'></i></span>"


def _check(rung: Rung) -> str:
    css = {True: "ok", False: "bad", None: "none"}[rung.passed]
    text = {True: "\u2713 ok", False: "\u2717 failed", None: "\u2013"}[rung.passed]
    return f"<td class='{css}' title='{escape(rung.why or verdict(rung), quote=True)}'>{text}</td>"


def _legend(report: Report) -> str:
    facts = ["Bold: best value of its column (the single-frame control does not compete)."]
    clips = {rung.clips for rung in report.rungs if rung.clips}
    if clips:
        counts = " or ".join(str(count) for count in sorted(clips))
        facts.append(f"Accuracy on {counts} test clips; brackets hold its 95 % interval.")
    if report.chance is not None:
        facts.append(f"Guessing gives {100 * report.chance:.1f} %.")
    if any(rung.evidence != "measured" for rung in report.rungs):
        facts.append("~ marks latencies that were not measured on the device.")
    failed = [f"{rung.name}: {rung.why}" for rung in report.rungs if rung.passed is False]
    facts += [f"Failed its check: {fact}." for fact in failed]
    return f"<p class='caption'>{escape(' '.join(facts))}</p>"


def _matrix(reports: Sequence[Report]) -> str:
    """Rungs down, machines across: median latency in ms, the fastest per row bold."""
    names = list(dict.fromkeys(rung.name for report in reports for rung in report.rungs if rung.p50_ms is not None))
    heads = "".join(
        f"<th scope='col'><i class='dot s{index % 8}'></i> {escape(report.machine.board or report.machine.cpu)}"
        "<span class='unit'>ms</span></th>"
        for index, report in enumerate(reports)
    )
    rows = []
    for name in names:
        found = [next((r for r in report.rungs if r.name == name), None) for report in reports]
        low = min(rung.p50_ms for rung in found if rung is not None and rung.p50_ms is not None)
        cells = "".join(_latency_cell(rung, low) for rung in found)
        rows.append(f"<tr><th scope='row'>{escape(name)}</th>{cells}</tr>")
    table = f"<table class='ladder'><thead><tr><th scope='col'>rung</th>{heads}</tr></thead>"
    return f"<div class='scroll'>{table}<tbody>{''.join(rows)}</tbody></table></div>"


def _latency_cell(rung: Rung | None, low: float) -> str:
    if rung is None or rung.p50_ms is None:
        return "<td class='none'>\u2013</td>"
    text = f"<b>{rung.p50_ms:.2f}</b>" if rung.p50_ms == low else f"{rung.p50_ms:.2f}"
    evidence = "" if rung.evidence == "measured" else f"<span class='unit'>{rung.evidence}</span>"
    return f"<td>{'~' if evidence else ''}{text}{evidence}</td>"


def _reproduce(report: Report) -> str:
    if not report.reproduce:
        return ""
    commands = escape("\n".join(report.reproduce))
    return _section("Do it again", f"<pre>{commands}</pre>")


def _environment(report: Report) -> str:
    machine = report.machine
    facts = {
        "machine": machine.title,
        "instructions": ", ".join(machine.features),
        "clock governor": machine.governor or "",
        "temperature": "" if machine.temperature_c is None else f"{machine.temperature_c:.0f} \u00b0C",
        "virtual machine": "yes: latencies may vary with its neighbours" if machine.virtual else "",
        "python": machine.python,
        **report.environment,
    }
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items() if value)
    lineage = ""
    if report.lineage:
        text = escape(json.dumps(report.lineage, indent=2, default=str, ensure_ascii=False))
        lineage = f"<details><summary>Lineage: data, recipe, versions</summary><pre>{text}</pre></details>"
    return _section("Environment", f"<dl>{rows}</dl>{lineage}")
