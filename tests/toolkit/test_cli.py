"""The command line: every mistake is one line on stderr and exit code 2; what it can do is golden."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from tests.train.synthetic import write_data, write_video
from toolkit.bundle import Bundle
from toolkit.cli import app
from train.data.index import index_clips

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "pretrain", "finetune", "distill", "probe", "prune", "compress", "score", "embed", "search", "export", "quantize",
    "evaluate", "bench", "verify", "sign", "camera", "report", "demo", "data check", "data shard", "train recipes",
    "train recipe", "train plan", "devices", "devices conformance", "devices doctor", "devices setup",
)  # fmt: skip
TINY = """
name = "tiny"
[data]
root = "data"
frames = 4
flips = { left = "right", right = "left" }
[preprocess]
size = [32, 32]
[teacher]
dim = 32
depth = 1
heads = 2
tubelet = [2, 8, 8]
[finetune]
epochs = 1
batch = 8
[student]
width = 0.25
depth = 0.4
look_back = true
[distill]
epochs = 2
batch = 8
[prune]
epochs = 1
[quantize]
rollouts = 4
runtimes = ["torch", "onnxruntime", "openvino", "litert"]
"""


def vidon(*arguments: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)"""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def refused(*arguments: str | Path) -> str:
    """The one line of a refused command."""
    code, _, errors = vidon(*arguments)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2, errors
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    code, out, _ = vidon(*command.split(), "--help")
    assert code == 0
    assert f"Usage: vidon {command} " in out.replace("root", "vidon")
    assert "Example" in out
    assert f"vidon {command}" in " ".join(out.replace("\u2502", " ").split())


def _commands(group: Any, path: tuple[str, ...] = ()) -> set[str]:
    """Everything that can be called: commands, and groups that do something without a command."""
    if not isinstance(group, TyperGroup):
        return {" ".join(path)}
    own = {" ".join(path)} if path and group.invoke_without_command else set()
    return own.union(*(_commands(member, (*path, name)) for name, member in group.commands.items()))


def test_the_list_of_commands_is_whole() -> None:
    assert _commands(get_command(app)) == set(COMMANDS)


def _options(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    """(command and name, parameter) of every option of every command."""
    own = [(" ".join((*path, each.opts[0])), each) for each in group.params if each.opts[0].startswith("-")]
    members = getattr(group, "commands", {}).items()
    return [*own, *(option for name, member in members for option in _options(member, (*path, name)))]


_UNITS = (
    "steps",
    "Steps",
    "threads",
    "Threads",
    "processes",
    "Frames",
    "frames",
    "seconds",
    "clips",
    "streams",
    "split",
)


@pytest.mark.parametrize(("name", "option"), [pytest.param(*each, id=each[0]) for each in _options(get_command(app))])
def test_every_option_says_what_it_takes_and_what_is_so_without_it(name: str, option: Any) -> None:
    text = option.help or ""
    assert len(text) > 15
    assert text.endswith(".")
    if option.default is None and not option.required:
        assert "Default: " in text
    if option.default is not None and not option.is_flag:
        assert option.show_default
    if option.type_descriptor.annotation in (int, float, list[int]):
        assert any(unit in text for unit in _UNITS)


def test_the_help_loads_no_torch_and_no_runtime() -> None:
    code = """
import runpy, sys
sys.argv = ["vidon", "--help"]
try:
    runpy.run_module("toolkit", run_name="__main__")
except SystemExit:
    pass
print([name for name in ("torch", "cv2", "onnxruntime", "openvino") if name in sys.modules])
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip().endswith("[]")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(TINY)
    return tmp_path / "recipe.toml"


def test_missing_data_is_refused(recipe: Path, tmp_path: Path) -> None:
    assert "data does not exist" in refused("distill", recipe, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_an_empty_folder_is_refused(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "holds no video" in refused("distill", recipe, "--out", tmp_path / "out")


def test_one_class_only_is_refused(recipe: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "data" / "train" / "left" / "a.avi", 2, 0)
    assert "only one class (left)" in refused("finetune", recipe, "--out", tmp_path / "out")


def test_broken_videos_are_refused(recipe: Path, tmp_path: Path) -> None:
    for label in ("left", "right"):
        write_video(tmp_path / "data" / "train" / label / "a.avi", 2, 0)
        (tmp_path / "data" / "train" / label / "b.mp4").write_bytes(b"")
    assert "2 of 4 videos are broken" in refused("distill", recipe, "--out", tmp_path / "out")
    code, out, _ = vidon("data", "check", tmp_path / "data")
    assert code == 2
    assert out.count("broken:") == 2


def test_an_unknown_recipe_key_names_the_nearest(recipe: Path, tmp_path: Path) -> None:
    assert "did you mean 'epochs'" in refused("distill", recipe, "--set", "distill.epoch=3", "--out", tmp_path / "out")
    assert "does not exist" in refused("distill", tmp_path / "no.toml", "--out", tmp_path / "out")


@pytest.mark.parametrize("command", ["verify", "bench", "camera"])
def test_a_missing_bundle_is_refused(command: str, tmp_path: Path) -> None:
    assert "does not exist" in refused(command, tmp_path / "no.vidon")


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(bundle.root, tmp_path / "copy.vidon")
    return tmp_path / "copy.vidon"


def test_a_changed_byte_is_refused(copy: Path) -> None:
    file = next(copy.glob("models/litert-int8/*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert "checksum differs" in refused("verify", copy)
    assert "checksum differs" in refused("camera", copy, "--headless")


def test_a_newer_schema_is_refused(copy: Path) -> None:
    raw = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**raw, "schema_version": 99}))
    assert "upgrade vidon" in refused("bench", copy)


def test_unknown_artefacts_and_devices_are_refused(copy: Path) -> None:
    assert "did you mean 'openvino-int8'" in refused("bench", copy, "--artefact", "openvin-int8")
    assert "no device 'npu'" in refused("camera", copy, "--device", "npu", "--headless", "--source", "x.mp4")
    assert "did you mean 'raspberry-pi-5'" in refused("devices", "--profile", "rasberry-pi-5")


def test_a_camera_that_does_not_open_is_refused(copy: Path, tmp_path: Path) -> None:
    assert "nothing.mp4" in refused("camera", copy, "--source", tmp_path / "nothing.mp4", "--headless")
    assert "7" in refused("camera", copy, "--source", "7", "--headless")


def test_a_missing_extra_names_the_command(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "pip install 'vidon[openvino]'" in refused("verify", copy, "--artefact", "openvino-int8")


def test_an_output_below_a_file_is_refused(recipe: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=2, val=1)
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused("distill", recipe, "--out", tmp_path / "file" / "out")


def test_an_unknown_runtime_is_refused_before_any_work(recipe: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=2, val=1)
    assert vidon("distill", recipe, "--out", tmp_path / "s", "--set", "distill.epochs=1")[0] == 0
    line = refused("export", tmp_path / "s", recipe, "--out", tmp_path / "b.vidon", "--runtimes", "onnxruntme")
    assert "did you mean 'onnxruntime'" in line
    assert not (tmp_path / "b.vidon").exists()


@pytest.mark.parametrize(("command", "options", "line"), [
    ("export", ("--target", "u55-12"), "did you mean 'u55-128'"),
    ("export", ("--runtimes", "onnxruntme"), "did you mean 'onnxruntime'"),
    ("export", ("--precisions", "int4"), "did you mean 'int8'"),
    ("export", ("--runtimes", "torch", "--precisions", "int8"), "nothing to export: torch in int8"),
    ("quantize", ("--runtimes", "torch"), "nothing to export: torch in int8"),
    ("export", ("--runtimes", "onnxruntime", "--batch", "4"), "--batch makes files of LiteRT"),
    ("export", ("--target", "u55-128", "--precisions", "fp32"), "chips are compiled in int8"),
    ("export", ("--runtimes", "rknn", "--precisions", "fp32"), "chips are compiled in int8"),
    ("quantize", ("--set", "quantize.precisions=['fp32']"), "--set quantize.precisions is for vidon compress"),
    ("export", ("--runtimes", "litert", "--set", "quantize.runtimes=['torch']"), "leave one out"),
    ("export", ("--memory-mode", "Sram_Only"), "give it with --vela-config"),
])  # fmt: skip
def test_what_cannot_be_exported_is_told_before_the_model_is_looked_for(
    command: str, options: tuple[str, ...], line: str, recipe: Path, tmp_path: Path
) -> None:
    assert line in refused(command, tmp_path / "no-model", recipe, "--out", tmp_path / "sub" / "b.vidon", *options)
    assert not (tmp_path / "sub").exists()


@pytest.mark.parametrize("module", [None, "nncf", "onnx", "litert_torch", "ai_edge_quantizer"])
def test_what_a_road_cannot_export_is_told_before_it_trains(
    module: str | None, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "road"
    if module is None:
        unknown = ("--set", 'quantize.runtimes=["onnxruntme"]')
        assert "did you mean 'onnxruntime'" in refused("compress", recipe, "--out", out, *unknown)
    else:
        monkeypatch.setitem(sys.modules, module, None)
        line = f"{module.replace('_', '-')} is not installed: run  pip install"
        assert line in refused("compress", recipe, "--out", out)
        assert line in refused("demo", "--out", out)
        assert [path for path in out.rglob("*") if path.is_file()] == []
    assert not (out / "student").exists()


@pytest.mark.parametrize(("words", "line"), [
    ("search none.safetensors --clip none.avi --sheet F", "this path is a folder"),
    ("report none.json --out F/file/x", "cannot write"),
    ("camera none.vidon --out x.txt", "unknown kind of video"),
    ("score none --data none --split vall", "unknown split 'vall' (did you mean 'val'?)"),
    ("score none --data none --out F/file/x", "cannot write"),
    ("embed none --data none --out F", "this path is a folder"),
    ("evaluate none.vidon --data none --split tets", "unknown split 'tets' (did you mean 'test'?)"),
    ("evaluate none.vidon --data none --save F", "this path is a folder"),
    ("data shard none --out F/file/x", "cannot write"),
    ("finetune --set data.root=none --out F/file/x", "cannot write"),
    ("prune none --teacher none --set task=detection", "a detector's teacher is a file named in the recipe"),
    ("distill --teacher none --set task=detection", "a detector's teacher is a file named in the recipe"),
    ("bench none.vidon --all -a litert-int8", "--all and --artefact exclude each other"),
    ("evaluate none.vidon --data none --all -a litert-int8", "--all and --artefact exclude each other"),
    ("data check none --mirrored --distance 0", "leave one out"),
    ("devices --json doctor", "write  vidon devices doctor --json"),
    ("devices --profile x86-cpu setup rockchip", "options before setup say nothing to it"),
])  # fmt: skip
def test_a_wrong_argument_is_told_before_what_the_others_name_is_looked_for(
    words: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "F").mkdir()
    (tmp_path / "F" / "file").write_text("")
    assert line in refused(*words.split())


def test_an_unknown_artefact_is_refused_before_the_data_are_looked_for(copy: Path, tmp_path: Path) -> None:
    line = refused("evaluate", copy, "--data", tmp_path / "no-data", "-a", "openvino-int8", "-a", "openvin-int8")
    assert "did you mean 'openvino-int8'" in line


@pytest.mark.parametrize("command", ["bench", "verify", "camera", "devices conformance"])
def test_a_wrong_artefact_is_told_before_anything_is_read(command: str, copy: Path) -> None:
    for file in copy.glob("models/*/*"):
        file.write_bytes(b"damaged")  # whoever reads it says so first
    line = refused(*command.split(), copy, "-a", "openvin-int8")
    assert "has no artefact 'openvin-int8' (did you mean 'openvino-int8'?)" in line


def test_a_wrong_artefact_behind_a_right_one_is_told_before_a_session_opens(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # opening it would fail
    assert "did you mean 'litert-int8'" in refused("bench", copy, "-a", "openvino-int8", "-a", "litert-int")
    assert "did you mean 'litert-int8'" in refused("verify", copy, "-a", "openvino-int8", "-a", "litert-int")


@pytest.mark.parametrize(("options", "line"), [
    (("--videos", "."), "format folders has no list whose videos could lie elsewhere"),
    (("--fold", "2"), "format folders has no folds, UCF101 and HMDB51 have"),
])  # fmt: skip
def test_what_means_nothing_to_a_format_is_refused(options: tuple[str, ...], line: str, tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=2, val=1)
    assert line in refused("data", "check", tmp_path / "data", *options)


def test_a_camera_is_not_told_to_play_at_its_own_speed(copy: Path) -> None:
    assert "--realtime is for files" in refused("camera", copy, "--source", "0", "--realtime", "--headless")


def test_torch_that_was_named_for_int8_is_told_as_left_out(recipe: Path, tmp_path: Path) -> None:
    code, _, errors = vidon("quantize", tmp_path / "none", recipe, "--runtimes", "torch,litert")
    assert code == 2  # there is no model
    assert "left out: torch in int8" in errors


def test_a_plan_reads_the_data_as_training_does(recipe: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=2, val=1)
    command = ("train", "plan", recipe, "--stage", "finetune")
    assert "data: 4 training clips of 2 classes" in vidon(*command)[1]
    assert "no folds" in vidon(*command, "--set", "data.fold=2")[1]


def test_an_unlabelled_folder_cannot_be_evaluated(copy: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=1, val=1)
    assert "label 'left' was not in training" in refused("evaluate", copy, "--data", tmp_path / "data")


def test_evaluation_reads_published_lists_as_training_does(bundle: Bundle, tmp_path: Path) -> None:
    lists, videos = tmp_path / "lists", tmp_path / "videos"
    lists.mkdir()
    for label in ("a", "b"):
        for index in range(3):
            write_video(videos / label / f"film{index}_{label}_x{index}.avi", -3, seed=index)
        for fold, marks in ((1, (2, 1, 1)), (2, (1, 2, 2))):  # 1 trains, 2 tests
            lines = [f"film{index}_{label}_x{index}.avi {mark}" for index, mark in enumerate(marks)]
            (lists / f"{label}_test_split{fold}.txt").write_text("\n".join(lines))
    common = ("evaluate", bundle.root, "--data", lists, "--videos", videos, "-a", "onnxruntime-fp32", "--json")
    for options, count in (((), 2), (("--fold", "2"), 4), (("--format", "hmdb51", "--fold", "2", "--split", "all"), 6)):
        code, text, errors = vidon(*common, *options)
        assert (code, json.loads(text)["onnxruntime-fp32"]["clips"]) == (0, count), errors
    assert "folds there: 1, 2" in refused(*common, "--fold", "3")
    assert "unknown format 'hmdb5' (did you mean 'hmdb51'?)" in refused(*common, "--format", "hmdb5")
    assert "none of the 2 videos can be read" in refused("evaluate", bundle.root, "--data", lists, "-a", "torch-fp32")


def test_pretraining_says_its_loss_and_claims_no_accuracy(recipe: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=2, val=1)
    out = tmp_path / "pretrained"
    command = ("pretrain", recipe, "--out", out, "--set", "pretrain.epochs=1", "--set", "pretrain.batch=4")
    code, text, errors = vidon(*command, "--json")
    assert code == 0, errors
    loss = json.loads((out / "summary.json").read_text())["loss"]
    want = {"model": str(out), "stage": "pretrain", "metric": "training loss", "validation": None, "loss": loss}
    assert json.loads(text) == want
    assert f"{out}: training loss {loss:.3f}" in vidon(*command)[1]


def test_the_whole_road_by_commands(recipe: Path, tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=8, val=2)
    out = tmp_path / "road"
    assert vidon("finetune", recipe, "--out", tmp_path / "teacher")[0] == 0
    code, text, _ = vidon("compress", recipe, "--teacher", tmp_path / "teacher", "--out", out, "--json")
    assert code == 0
    made = json.loads(text)
    assert "litert-int8" in made["artefacts"]
    bundle_path = made["bundle"]
    assert vidon("verify", bundle_path)[0] == 0
    code, text, _ = vidon("evaluate", bundle_path, "--data", tmp_path / "data", "--all", "--json")
    rows = json.loads(text)
    assert {row["clips"] for row in rows.values()} == {4}
    assert rows["onnxruntime-fp32"]["frame_answers"] == rows["torch-fp32"]["frame_answers"]
    code, text, _ = vidon("bench", bundle_path, "--all", "--steps", "10", "--json")
    assert all(row["p50_ms"] > 0 for row in json.loads(text).values())
    video = next((tmp_path / "data" / "test" / "left").iterdir())
    code, text, _ = vidon("camera", bundle_path, "--source", video, "--out", tmp_path / "seen.mp4", "--json")
    assert code == 0
    assert json.loads(text)["frames"] == 8
    assert (tmp_path / "seen.mp4").stat().st_size > 0


def test_a_folder_with_a_broken_clip_is_exported_and_judged_on_its_unseen_clips_alone(
    recipe: Path, tmp_path: Path
) -> None:
    data, student, bundle = tmp_path / "data", tmp_path / "student", tmp_path / "s.vidon"
    for label, step in (("left", -3), ("right", 3)):
        for index in range(16):
            write_video(data / label / f"{index}.avi", step, seed=index)
    clips = index_clips(data)
    broken = clips.split("train")[0]
    broken.path.write_bytes(b"no video")
    assert vidon("distill", recipe, "--out", student, "--set", "distill.epochs=1")[0] == 0
    code, _, errors = vidon("export", student, recipe, "--out", bundle, "--runtimes", "onnxruntime,torch",
                            "--set", "quantize.rollouts=32")  # fmt: skip
    assert code == 0, errors
    assert f"left out a broken video: video {broken.path} cannot be read" in errors
    moved = Path(shutil.copytree(data, tmp_path / "elsewhere"))
    for root, options, count in ((data, (), len(clips.split("test"))), (moved, (), len(clips.split("test"))),
                                 (data, ("--split", "all"), 31)):  # fmt: skip
        code, text, errors = vidon("evaluate", bundle, "--data", root, "--json", *options)
        assert (code, json.loads(text)["onnxruntime-fp32"]["clips"]) == (0, count), errors
        assert ("the model was trained on it" in errors) == (not options)
    code, text, errors = vidon("evaluate", bundle, "--data", data, "--split", "all", "--all", "--json")
    assert (code, len(json.loads(text))) == (0, 2), errors
    assert errors.count("left out 1 broken of 32 videos") == errors.count(str(broken.path)) == 1
    new = Path(shutil.copytree(data / "left", tmp_path / "new" / "left")).parent
    assert json.loads(vidon("evaluate", bundle, "--data", new, "--json")[1])["onnxruntime-fp32"]["clips"] >= 15


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_a_stopped_service_ends_with_130_and_the_next_run_goes_on(
    sent: signal.Signals, recipe: Path, tmp_path: Path
) -> None:
    write_data(tmp_path / "data", train=8, val=2)
    command = [sys.executable, "-P", "-m", "toolkit", "distill", str(recipe), "--out", str(tmp_path / "s"),
               "--set", "distill.epochs=500", "--set", "distill.batch=4"]  # fmt: skip
    # A suite that runs in a shell's background is deaf to Ctrl-C, and so would be its children.
    hearing = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=hearing,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    checkpoint = tmp_path / "s" / "checkpoint.safetensors"
    try:
        while child.poll() is None and not checkpoint.exists():
            time.sleep(0.02)
        child.send_signal(sent)
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130, errors
    assert "interrupted: run the same command again to go on" in errors
    assert "Traceback" not in errors
    assert checkpoint.exists()
    assert not (tmp_path / "s" / "model.safetensors").exists()


def test_standard_streams_may_be_closed_or_full(tmp_path: Path) -> None:
    def run(redirected: str) -> "subprocess.CompletedProcess[str]":
        command = f"{shlex.quote(sys.executable)} -P -m toolkit train recipes {redirected}"
        return subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip

    assert (run(">&-").returncode, run("| head -c 1 >/dev/null").stderr) == (0, "")
    if Path("/dev/full").exists():
        full = run(">/dev/full")
        assert full.returncode == 2
        assert full.stderr.startswith("error: cannot write to standard output: no space left on the disk")


def test_the_demos_report_shows_the_video_and_where_the_cameras_time_went(bundle: Bundle, tmp_path: Path) -> None:
    from toolkit.cli.demo import Demo

    demo = Demo(tmp_path)
    demo.bundle = bundle.root
    for name in ("pretrained", "teacher", "control", "student", "pruned"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"epoch": 1, "loss": 1.0, "clips_per_s": 1.0}\n')
    rungs = [
        {"name": kind, "kind": kind, "accuracy": 0.5, "parameters": 1, "macs": 1} for kind in ("control", "pruned")
    ]
    keys = [artefact.key for artefact in bundle.manifest.artefacts]
    latency = {"p50_ms": 1.0, "p95_ms": 2.0, "fps": 1000.0}
    tested = {"accuracy": 0.5, "interval": [0.4, 0.6], "clips": 10, "agreement": 1.0, "confusion": [[1, 0], [0, 1]]}
    timing = {"p50_ms": 3.25, "p95_ms": 4.0, "mean_ms": 3.5, "count": 9}
    summary = {
        "source": "camera.mp4", "artefact": keys[0], "live": False, "seconds": 1.0, "frames": 9, "dropped": 0,
        "steps": 9, "skipped_steps": 0, "fps": 9.0, "stages": {"infer": timing}, "shares": {"a": 1.0},
        "ended": "end", "out": None,
    }  # fmt: skip
    demo._report(rungs, {"best": keys[0], "latency": dict.fromkeys(keys, latency)}, dict.fromkeys(keys, tested),
                 {"summary": summary, "preview": "AAAA"})  # fmt: skip
    html = (tmp_path / "report" / "report.html").read_text()
    assert "data:image/jpeg;base64,AAAA" in html
    assert "<td>3.25</td>" in html
