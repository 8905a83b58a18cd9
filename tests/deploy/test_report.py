"""The report: its numbers, its three files, and the promise that the page asks nobody for anything."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pydantic import ValidationError
from rich.console import Console

from deploy.camera import CameraSummary
from deploy.figures import curve_figures
from deploy.ladder import best_values, ladder_table
from deploy.plot import Mark, latency_plot, line_plot, log_ticks, nice_ticks
from deploy.report import (
    Confusion,
    Curve,
    Report,
    Rung,
    best_rung,
    load_report,
    pareto_front,
    preview_of,
    write_comparison,
    write_report,
)
from deploy.stages import StageTiming
from devices.machine import Machine
from tests.deploy.cameras import write_video
from toolkit.errors import UserError

MACHINE = Machine(cpu="Test CPU", architecture="x86_64", cores=2, memory_gib=8, os="Linux", python="3.11")


def _artefact(name: str, accuracy: float, p50_ms: float, **more: object) -> Rung:
    runtime, _, precision = name.partition("-")
    known = {"ci_low": accuracy - 0.04, "ci_high": min(1.0, accuracy + 0.04), "clips": 100, "passed": True}
    return Rung(
        name=name,
        kind="artefact",
        runtime=runtime,
        precision=precision,
        accuracy=accuracy,
        p50_ms=p50_ms,
        p95_ms=p50_ms * 1.5,
        **{**known, **more},
    )


def _report(**changes: object) -> Report:
    rungs = (
        Rung(name="teacher", kind="teacher", accuracy=0.95, p50_ms=60, parameters=5_000_000, per="clip"),
        Rung(name="single frame", kind="control", accuracy=0.35, p50_ms=1.0, size_bytes=10),
        _artefact("onnxruntime-fp32", 0.92, 2.0, size_bytes=2_000_000, agreement=1.0, max_diff=3e-6),
        _artefact("openvino-int8", 0.915, 1.2, size_bytes=700_000, agreement=0.99),
        _artefact("litert-int8", 0.86, 0.9, size_bytes=600_000, passed=False, why="agreement 94 %"),
    )
    known = {
        "title": "A <title> & more",
        "created": "2026-01-02T03:04:05+00:00",
        "machine": MACHINE,
        "task": "what moves",
        "labels": ("left", "right"),
        "rungs": rungs,
        "chance": 0.5,
        "camera": CameraSummary(
            "v.mp4", "openvino-int8", True, 2.0, 60, 3, 20, 1, 30.0, {"infer": StageTiming(1, 2, 1, 20)}, {}, "end"
        ),
        "confusion": Confusion(rung="openvino-int8", counts=((40, 10), (5, 45))),
        "curves": (Curve(panel="loss", name="train", points=((1, 2.0), (2, 1.0))),),
        "notes": ("a note with <b>markup</b>",),
        "reproduce": ("vidon demo --out x && echo 'done'",),
        "environment": {"torch": "2.13.0"},
        "lineage": {"data": {"sha256": "ab"}},
    }
    return Report.model_validate({**known, **changes})


class _Page(HTMLParser):
    """Collects every tag and attribute, and checks that tags are balanced."""

    void = frozenset({"meta", "img", "br", "link", "hr", "input", "circle", "rect", "line", "path", "polyline"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.void:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def _parse(text: str) -> _Page:
    parsed = _Page()
    parsed.feed(text)
    return parsed


def test_a_report_survives_a_round_trip_through_its_folder(tmp_path: Path) -> None:
    report = _report()
    html = write_report(report, tmp_path / "out")
    assert html == tmp_path / "out" / "report.html"
    assert sorted(file.name for file in html.parent.iterdir()) == ["report.html", "report.json", "report.md"]
    assert load_report(tmp_path / "out") == load_report(tmp_path / "out" / "report.json") == report


def test_the_page_is_well_formed_and_requests_nothing(tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.avi")
    text = write_report(_report(preview=preview_of(video)), tmp_path).read_text()
    parsed = _parse(text)
    assert not parsed.wrong
    assert not parsed.open
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "iframe", "object", "embed"}
    sources = [value or "" for _, attrs in parsed.tags for key, value in attrs.items() if key in {"src", "href"}]
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert not re.search(r"url\(|@import|https?://", text)
    policies = [attrs.get("content") for tag, attrs in parsed.tags if tag == "meta" and "http-equiv" in attrs]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_text_from_outside_is_escaped(tmp_path: Path) -> None:
    text = write_report(_report(labels=("<script>x</script>", "b")), tmp_path).read_text()
    assert "<script>" not in text
    assert "<b>markup</b>" not in text
    assert "A &lt;title&gt; &amp; more" in text


def test_every_plot_is_valid_xml_with_hover_texts(tmp_path: Path) -> None:
    text = write_report(_report(), tmp_path).read_text()
    plots = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(plots) == 3  # the latency plot wide and narrow, one training panel
    hovers = [element.text or "" for element in plots[0].iter("title")]
    assert len(hovers) == 5
    assert any(hover.startswith("openvino-int8") and "91.5 %" in hover for hover in hovers)


def test_a_report_with_the_least_that_is_allowed_still_makes_a_page(tmp_path: Path) -> None:
    report = Report(title="t", created="", machine=MACHINE, rungs=(Rung(name="student", kind="student"),))
    parsed = _parse(write_report(report, tmp_path).read_text())
    assert not parsed.wrong
    assert best_rung(report) is None
    empty = Report(title="t", created="", machine=MACHINE, rungs=())
    assert write_report(empty, tmp_path).is_file()
    Console(file=(tmp_path / "t").open("w")).print(ladder_table(empty))


def test_the_fastest_of_the_nearly_most_accurate_artefacts_is_recommended() -> None:
    best = best_rung(_report())
    assert best is not None
    assert best.name == "openvino-int8"
    named = best_rung(_report(best="onnxruntime-fp32"))
    assert named is not None
    assert named.name == "onnxruntime-fp32"


def test_a_failed_artefact_is_never_recommended_nor_on_the_front() -> None:
    report = _report()
    fooled = _artefact("litert-int8", 0.99, 0.1, passed=False)
    rungs = (*report.rungs[:-1], fooled)
    best = best_rung(report.model_copy(update={"rungs": rungs}))
    assert best is not None
    assert best.name == "openvino-int8"
    assert fooled not in pareto_front(rungs)


def test_the_pareto_front_holds_what_nothing_beats_and_no_control() -> None:
    assert [rung.name for rung in pareto_front(_report().rungs)] == ["openvino-int8", "onnxruntime-fp32", "teacher"]


def test_of_two_equally_fast_rungs_only_the_more_accurate_is_on_the_front() -> None:
    rungs = [_artefact("a-fp32", 0.8, 1.0), _artefact("b-fp32", 0.9, 1.0), _artefact("c-fp32", 0.9, 2.0)]
    assert [rung.name for rung in pareto_front(rungs)] == ["b-fp32"]


def test_the_control_and_failed_rungs_hold_no_best_value() -> None:
    best = best_values(_report().rungs)
    assert best["size"] == 0.7
    assert best["p50"] == 1.2
    assert best["accuracy"] == 95.0


def test_the_terminal_table_fits_its_width_and_keeps_accuracy_and_latency(tmp_path: Path) -> None:
    for width in (60, 80, 200):
        console = Console(width=width, record=True, file=(tmp_path / "t").open("w"))
        console.print(ladder_table(_report(), width))
        text = console.export_text()
        assert "91.5 [88, 96]" in text
        assert "1.20" in text
        assert "FAILED" in text
        assert "\u2026" not in text
    assert "max diff" in text


def test_markdown_marks_the_best_and_what_was_not_measured(tmp_path: Path) -> None:
    report = _report()
    guessed = report.rungs[3].model_copy(update={"evidence": "estimated"})
    write_report(report.model_copy(update={"rungs": (*report.rungs[:3], guessed)}), tmp_path)
    text = (tmp_path / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert "**~1.20**" in text
    assert "estimated, not measured" in text
    assert "**openvino-int8** (recommended)" in text


def test_the_control_is_read_off_the_rungs() -> None:
    assert _report().control_accuracy == 0.35
    assert _report(control=0.4).control_accuracy == 0.4


def test_several_reports_become_one_comparison(tmp_path: Path) -> None:
    board = MACHINE.model_copy(update={"board": "Small Board", "cpu": "Cortex"})
    slow = _report(machine=board)
    slow = slow.model_copy(update={"rungs": tuple(r.model_copy(update={"p50_ms": 50.0}) for r in slow.rungs)})
    text = write_comparison([_report(), slow], tmp_path).read_text()
    assert not _parse(text).wrong
    assert "2 machines compared" in text
    assert text.count("Small Board (Cortex)") >= 2
    assert "50.00" in text
    assert (tmp_path / "comparison.md").read_text().count("| rung |") == 2
    with pytest.raises(UserError, match="at least one"):
        write_comparison([], tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("{", "not valid JSON"),
        ("[]", "no vidon report"),
        ('{"title": "x"}', "no vidon report: created"),
        ('{"schema_version": 99}', "schema 99.*upgrade"),
    ],
)
def test_a_damaged_report_is_one_clear_line(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "report.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        load_report(file)
    assert "\n" not in str(caught.value)


def test_unknown_keys_and_impossible_numbers_are_refused() -> None:
    for bad in ({"accuracy": 1.2}, {"accuracy": float("nan")}, {"p50_ms": 0}, {"colour": "red"}):
        with pytest.raises(ValidationError):
            Rung.model_validate({"name": "x", "kind": "student", **bad})


def test_a_report_is_plain_json(tmp_path: Path) -> None:
    write_report(_report(), tmp_path)
    raw = json.loads((tmp_path / "report.json").read_text())
    assert raw["schema_version"] == 1
    assert raw["camera"]["stages"]["infer"]["p95_ms"] == 2


def test_ticks_are_round_numbers_inside_the_range() -> None:
    assert nice_ticks(17, 101) == [20, 40, 60, 80, 100]
    assert log_ticks(0.8, 30) == [1, 2, 5, 10, 20]
    assert log_ticks(0.5, 5000) == [1, 10, 100, 1000]


def test_a_control_far_below_breaks_the_axis_instead_of_flattening_the_rest() -> None:
    def mark(name: str, y: float, far: bool = False) -> Mark:
        return Mark(name=name, x=2.0, y=y, series=1, shape="circle", hover=name, far=far)

    close = [mark("a", 92), mark("b", 95)]
    assert "break" not in latency_plot(close)
    broken = ElementTree.fromstring(latency_plot([*close, mark("control", 30, far=True)], [("chance", 20)]))
    assert any(element.get("class") == "break" for element in broken.iter("path"))
    heights = {circle.findtext("title"): float(circle.get("cy", 0)) for circle in broken.iter("circle")}
    assert heights["a"] > heights["b"] + 50
    assert heights["control"] > heights["a"] + 50


def test_names_of_marks_do_not_cover_each_other() -> None:
    marks = [Mark(name=f"rung {i}", x=2 + i / 100, y=90 + i / 50, series=0, shape="circle", hover="") for i in range(9)]
    svg = ElementTree.fromstring(latency_plot(marks))
    boxes = []
    for text in svg.iter("text"):
        if (text.get("class") or "").startswith("name"):
            x, y, width = float(text.get("x", 0)), float(text.get("y", 0)), 6.3 * len(text.text or "")
            left = x - {"start": 0.0, "end": width, "middle": width / 2}[text.get("text-anchor", "start")]
            boxes.append((left, y, left + width))
    assert len(boxes) >= 3
    for index, a in enumerate(boxes):
        assert not any(a[0] < b[2] and b[0] < a[2] and abs(a[1] - b[1]) < 13 for b in boxes[:index])


def test_curves_of_one_point_or_none_are_drawn() -> None:
    for points in ((), ((1.0, 2.0),), ((1.0, 0.0), (2.0, 0.0))):
        assert ElementTree.fromstring(line_plot([("a", 0, points)], "t")).tag == "svg"


def test_a_curve_has_the_same_colour_in_every_panel_and_axes_have_titles() -> None:
    curves = (
        Curve(panel="loss", name="pretrained", points=((1, 2.0), (2, 1.0))),
        Curve(panel="loss", name="teacher", points=((1, 2.0), (2, 1.0))),
        Curve(panel="accuracy", name="teacher", points=((1, 0.2), (2, 0.4))),
    )
    html = curve_figures(_report().model_copy(update={"curves": curves}))
    assert re.findall(r'class="line (s\d)"[^>]*><title>teacher', html) == ["s1", "s1"]
    assert re.findall(r"dot (s\d)'></i>teacher", html) == ["s1", "s1"]
    assert html.count(">epoch</text>") == 2
    assert ">accuracy</text>" in html


def test_clips_are_not_called_frames_and_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    teacher = Rung(name="teacher", kind="teacher", accuracy=0.9, p50_ms=2.0, fps=500.0, per="clip")
    html = write_report(_report().model_copy(update={"rungs": (teacher,)}), tmp_path).read_text()
    assert "clips/s" in html
    assert "500 clips" in (tmp_path / "report.md").read_text()
    known = Rung(name="litert-int8", kind="artefact", size_bytes=1000, passed=True)
    html = write_report(_report().model_copy(update={"rungs": (known,)}), tmp_path).read_text()
    assert "Accuracy against latency" not in html


@pytest.mark.parametrize(("accuracy", "chosen"), [(0.911, "quick"), (0.909, "sure")])
def test_speed_decides_within_one_point_of_accuracy_and_not_beyond(accuracy: float, chosen: str) -> None:
    rungs = (_artefact("onnxruntime-fp32", 0.92, 2.0), _artefact("litert-int8", accuracy, 1.0))
    best = best_rung(_report(rungs=rungs))
    assert best is not None
    assert best.name == {"quick": "litert-int8", "sure": "onnxruntime-fp32"}[chosen]
