"""The figures of the report page: latency plot, confusion matrix, camera timings, training curves."""

from collections.abc import Sequence
from html import escape

from deploy.ladder import interval
from deploy.plot import Line, Mark, Shape, latency_plot, line_plot
from deploy.report import Report, Rung, pareto_front

__all__ = ["camera_figure", "confusion_figure", "curve_figures", "latency_figure"]

_RUNTIMES = ("torch", "onnxruntime", "openvino", "litert")
_SHAPES: dict[str, Shape] = {"teacher": "square", "control": "diamond", "student": "triangle", "pruned": "triangle"}


def latency_figure(reports: Sequence[Report]) -> str:
    """Accuracy over latency in a wide and a narrow form (CSS shows one), with a legend."""
    many = len(reports) > 1
    series = _series(reports)
    marks, fronts = [], []
    for index, report in enumerate(reports):
        front = pareto_front(report.rungs)
        marks += [
            _mark(rung, index if many else series[rung.runtime], rung in front, report if many else None)
            for rung in report.rungs
            if rung.accuracy is not None and rung.p50_ms is not None
        ]
        stairs = [(rung.p50_ms or 0.0, 100 * (rung.accuracy or 0.0)) for rung in front]
        fronts.append((index if many else 7, stairs))
    if not marks:
        return "<p>No rung has both an accuracy and a latency.</p>"
    levels = _levels(reports[0])
    wide = latency_plot(marks, levels, fronts, (860, 440))
    narrow = latency_plot(marks, levels, fronts, (400, 420))
    return (
        f"<figure><div class='wide'>{wide}</div><div class='narrow'>{narrow}</div>"
        f"<figcaption>{_keys(reports, series)}<p class='caption'>Up and left is better. Upright bars: 95 % interval "
        "of the accuracy; flat bars: from the median to the 95th percentile of the latency. A dotted line "
        "across is a break of the axis. Haloed points and the "
        "stair line: the Pareto front, which nothing beats in both. Point at a mark for its numbers.</p>"
        "</figcaption></figure>"
    )


def _series(reports: Sequence[Report]) -> dict[str, int]:
    used = dict.fromkeys(rung.runtime for report in reports for rung in report.rungs)
    order = [*_RUNTIMES, *(name for name in used if name not in _RUNTIMES)]
    return {name: index for index, name in enumerate(order)}


def _levels(report: Report) -> list[tuple[str, float]]:
    levels = []
    if report.chance is not None:
        levels.append((f"chance {100 * report.chance:.0f} %", 100 * report.chance))
    control = report.control_accuracy
    if control is not None:
        levels.append((f"single frame {100 * control:.0f} %", 100 * control))
    return levels


def _mark(rung: Rung, series: int, front: bool, report: Report | None) -> Mark:
    accuracy, latency = 100 * (rung.accuracy or 0.0), rung.p50_ms or 1.0
    where = f" on {report.machine.title}" if report is not None else ""
    rate = f", {rung.fps:.0f} {rung.per}s/s" if rung.fps else ""
    p95 = f", p95 {rung.p95_ms:.2f} ms" if rung.p95_ms else ""
    hover = f"{rung.name}{where}\n{accuracy:.1f} % {interval(rung)}\np50 {latency:.2f} ms a {rung.per}{p95}{rate}" + (
        f"\n{rung.evidence}, not measured" if rung.evidence != "measured" else ""
    )
    shape: Shape = _SHAPES.get(rung.kind, "ring" if rung.precision == "fp32" else "circle")
    return Mark(
        name=rung.name if report is None or front else "",  # two machines' names would cover each other
        x=latency,
        y=accuracy,
        series=series,
        shape=shape,
        hover=hover,
        x_high=rung.p95_ms,
        y_low=None if rung.ci_low is None else 100 * rung.ci_low,
        y_high=None if rung.ci_high is None else 100 * rung.ci_high,
        front=front,
        far=rung.kind == "control",
    )


def _keys(reports: Sequence[Report], series: dict[str, int]) -> str:
    """Legend chips: one colour per runtime (or machine), one shape per kind of rung."""
    rungs = [rung for report in reports for rung in report.rungs if rung.p50_ms and rung.accuracy is not None]
    if len(reports) > 1:
        colours = [(report.machine.title, index) for index, report in enumerate(reports)]
    else:
        colours = [(name, index) for name, index in series.items() if any(rung.runtime == name for rung in rungs)]
    chips = [f"<span class='key'><i class='dot s{index % 8}'></i>{escape(name)}</span>" for name, index in colours]
    kinds = {rung.kind for rung in rungs}
    precisions = {rung.precision for rung in rungs if rung.kind == "artefact"}
    signs = [("\u25a0", "teacher", "teacher" in kinds), ("\u25b2", "student", bool(kinds & {"student", "pruned"}))]
    signs += [("\u25c6", "single-frame control", "control" in kinds), ("\u25cb", "fp32 file", "fp32" in precisions)]
    signs += [("\u25cf", " / ".join(sorted(precisions - {"fp32"})) + " file", bool(precisions - {"fp32"}))]
    chips += [
        f"<span class='key'><i class='sign'>{sign}</i>{escape(name)}</span>" for sign, name, used in signs if used
    ]
    return f"<div class='keys'>{''.join(chips)}</div>"


def confusion_figure(report: Report) -> str:
    """Counts with the share of their row as shade; correct answers in one hue, mistakes in another."""
    confusion = report.confusion
    if confusion is None:
        return ""
    heads = "".join(f"<th scope='col'><span>{escape(label)}</span></th>" for label in report.labels)
    rows = []
    for index, counts in enumerate(confusion.counts):
        total = sum(counts)
        label = report.labels[index] if index < len(report.labels) else str(index)
        cells = []
        for column, count in enumerate(counts):
            share = count / total if total else 0.0
            css = "hit" if column == index else "miss"
            answer = report.labels[column] if column < len(report.labels) else str(column)
            hover = escape(f"{label} answered as {answer}: {count} of {total} ({100 * share:.0f} %)", quote=True)
            cells.append(f"<td class='{css}' style='--share:{share:.3f}' title='{hover}'>{count or ''}</td>")
        recall = f"{100 * counts[index] / total:.0f} %" if total and index < len(counts) else "\u2013"
        rows.append(f"<tr><th scope='row'>{escape(label)}</th>{''.join(cells)}<td class='recall'>{recall}</td></tr>")
    return (
        "<div class='scroll'><table class='confusion'><thead><tr><th></th>"
        f"{heads}<th scope='col'>recall</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def camera_figure(report: Report) -> str:
    """A preview picture, what the loop did, and where its time went."""
    camera = report.camera
    if camera is None:
        return ""
    picture = ""
    if report.preview:
        source = f"data:image/jpeg;base64,{escape(report.preview, quote=True)}"
        picture = f"<img src='{source}' alt='A frame of the annotated video'>"
    facts = [
        f"{camera.frames} frames of {escape(camera.source.rsplit('/', 1)[-1])} through {escape(camera.artefact)}",
        f"{camera.fps:.0f} frames/s over the whole loop",
        f"{camera.steps} model steps",
    ]
    if camera.live:
        facts.append(f"{camera.dropped} frames dropped to stay current")
    if camera.losses:
        facts.append(f"lost {camera.losses} times, {camera.lost_s:.0f} s in all, and found again")
    if camera.skipped_steps:
        facts.append(f"{camera.skipped_steps} steps skipped: this device is too slow for the model's frame rate")
    if camera.out:
        facts.append(f"annotated video: {escape(camera.out.rsplit('/', 1)[-1])}")
    items = "".join(f"<li>{fact}</li>" for fact in facts)
    return f"<div class='camera'>{picture}<div><ul>{items}</ul>{_stages(report)}</div></div>"


def _stages(report: Report) -> str:
    """One bar per stage: solid to the median, pale to the 95th percentile."""
    assert report.camera is not None
    stages = report.camera.stages
    top = max((timing.p95_ms for timing in stages.values()), default=0.0) or 1.0
    rows = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td class='track'><i class='p95' style='width:"
        f"{100 * timing.p95_ms / top:.1f}%'></i><i class='p50' style='width:{100 * timing.p50_ms / top:.1f}%'></i></td>"
        f"<td>{timing.p50_ms:.2f}</td><td>{timing.p95_ms:.2f}</td></tr>"
        for name, timing in stages.items()
    )
    head = "<th></th><th></th><th scope='col'>p50 ms</th><th scope='col'>p95 ms</th>"
    return f"<table class='stages'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def curve_figures(report: Report) -> str:
    """Small multiples: one plot per panel, in the order in which panels first appear; a name has one colour in all."""
    series = {name: index for index, name in enumerate(dict.fromkeys(curve.name for curve in report.curves))}
    panels: dict[str, list[Line]] = {}
    for curve in report.curves:
        panels.setdefault(curve.panel, []).append((curve.name, series[curve.name], curve.points))
    plots = (
        f"<figure><figcaption>{escape(panel)}{_line_keys(lines)}</figcaption>{line_plot(lines, panel)}</figure>"
        for panel, lines in panels.items()
    )
    return f"<div class='curves'>{''.join(plots)}</div>"


def _line_keys(lines: Sequence[Line]) -> str:
    """Name and last value of each curve."""
    chips = (
        f"<span class='key'><i class='dot s{series % 8}'></i>{escape(name)} {points[-1][1]:.3g}</span>"
        for name, series, points in lines
        if points
    )
    return f"<div class='keys'>{''.join(chips)}</div>"
