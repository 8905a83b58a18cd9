"""Tools in environments of their own: the protocol holds against everything that can go wrong at the other end."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from devices.tools import PROTOCOL, TOOLS, Tool, Worker, environment, place_of, python_of, setup, tool_called
from devices.tools.client import SCRIPT
from toolkit.errors import MissingTool, ToolError, UserError

HERE = Path(sys.executable)
# A tool that answers hello properly and whatever LINE says to every other request.
SPEAKER = """
import json, os, sys
print("noise of the tool", file=sys.stderr, flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["op"] == "hello":
        print(json.dumps({"protocol": 1, "id": request["id"], "ok": True, "result": {"package": "p", "version": "1"}}),
              flush=True)
        continue
    LINE
"""


def speaker(folder: Path, line: str) -> Path:
    script = folder / "speaker.py"
    script.write_text(SPEAKER.replace("LINE", line))
    return script


def ask(folder: Path, line: str, timeout_s: float = 20) -> str:
    """What is said when the tool behaves as ``line``."""
    worker = Worker("odd", HERE, speaker(folder, line))
    try:
        with pytest.raises(ToolError) as caught:
            worker.call("step", timeout_s=timeout_s)
        with pytest.raises(ToolError):
            worker.call("step", timeout_s=timeout_s)
    finally:
        worker.close()
        worker.close()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("os._exit(3)", r"odd stopped during step \(exit code 3\); its last words: noise of the tool"),
        ("os.kill(os.getpid(), 11)", r"odd stopped during step \(signal 11\)"),
        ("print('hello, I am chatty', flush=True)", "not of the protocol: b'hello, I am chatty'"),
        ("print('{}', flush=True)", "not of the protocol"),
        ("print('[1]', flush=True)", "not of the protocol"),
        ("print(json.dumps({'protocol': 1, 'id': 99, 'ok': True}), flush=True)", "answered request 99 instead of 2"),
        (
            "print(json.dumps({'protocol': 2, 'id': 2, 'ok': True}), flush=True)",
            "speaks protocol 2, this vidon speaks 1",
        ),
        (
            "print(json.dumps({'protocol': 1, 'id': 2, 'ok': True, 'arrays': '/nowhere.npz'}), flush=True)",
            "arrays that cannot be read",
        ),
        (
            "sys.stdout.write('x' * (1 << 23)); sys.stdout.flush(); __import__('time').sleep(60)",
            "answered step with an endless line",
        ),
    ],
)
def test_a_tool_that_misbehaves_is_ended_and_named(tmp_path: Path, line: str, message: str) -> None:
    import re

    assert re.search(message, ask(tmp_path, line))


def test_a_tool_that_hangs_is_ended_at_its_deadline(tmp_path: Path) -> None:
    assert "odd did not answer step within 0.3 s" in ask(tmp_path, "__import__('time').sleep(60)", timeout_s=0.3)


def test_a_refusal_is_one_line_and_the_tool_lives_on(tmp_path: Path) -> None:
    line = "print(json.dumps({'protocol': 1, 'id': request['id'], 'ok': False, 'error': 'no such op'}), flush=True)"
    with Worker("odd", HERE, speaker(tmp_path, line)) as worker:
        for _ in range(2):
            with pytest.raises(ToolError, match=r"^odd: no such op$"):
                worker.call("step")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object), allow_pickle=True)
    reply = {"protocol": 1, "id": 2, "ok": True, "arrays": str(tmp_path / "evil.npz")}
    assert "arrays that cannot be read" in ask(tmp_path, f"print({json.dumps(reply)!r}, flush=True)")


def test_an_interpreter_that_is_gone_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="run  vidon devices setup rockchip"):
        Worker("rockchip", tmp_path / "no-python")


def test_scratch_files_are_gone_afterwards(tmp_path: Path) -> None:
    worker = Worker("odd", HERE, speaker(tmp_path, "pass"))
    scratch = worker._scratch
    assert scratch.is_dir()
    worker.close()
    assert not scratch.exists()


def test_the_real_worker_refuses_another_protocol_and_an_unknown_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    from devices.tools.worker import answer, main

    class Plain:
        package = "numpy"

        def start(self) -> None:
            pass

        def step(
            self, params: dict[str, object], arrays: dict[str, object]
        ) -> tuple[dict[str, object], dict[str, object]]:
            raise RuntimeError("Traceback (most recent call last):\n  File x\nValueError: the real reason")

    asked = {"protocol": PROTOCOL, "id": 4, "op": "hello", "params": {}, "arrays": None}
    assert answer(Plain(), asked)["result"]["version"] == np.__version__
    assert "it speaks 1" in answer(Plain(), {**asked, "protocol": 7})["error"]
    assert "no operation 'start'" in answer(Plain(), {**asked, "op": "start"})["error"]
    assert answer(Plain(), {**asked, "op": "step"})["error"] == "RuntimeError: ValueError: the real reason"
    assert callable(main)


def test_the_worker_needs_nothing_of_vidon() -> None:
    """It runs in the tool's environment: standard library, numpy and the tool only."""
    import ast

    tree = ast.parse(SCRIPT.read_text())
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add((node.module or "").split(".")[0])
    tools = {"ethosu", "rknn", "onnxruntime", "onnxruntime_qnn", "tflite_runtime"}
    assert roots <= set(sys.stdlib_module_names) | {"numpy"} | tools


def test_every_missing_tool_names_the_command_that_makes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDON_HOME", str(tmp_path))
    monkeypatch.setattr(environment, "_importable", lambda module: False)
    for name, tool in TOOLS.items():
        assert place_of(tool) == tmp_path / "tools" / f"{name}-{tool.version}"
        with pytest.raises(MissingTool, match=f"run  vidon devices setup {name}$"):
            python_of(tool)


def test_an_unknown_tool_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'rockchip'"):
        tool_called("rockship")


def test_a_python_without_packages_for_the_tool_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDON_HOME", str(tmp_path))
    old = Tool("old", "1", "old-tool", "old", (), (6, 9))
    with pytest.raises(UserError, match=r"old-tool 1 has packages for Python 3\.6 to 3\.9"):
        setup(old)
    assert not place_of(old).exists()


def _wheel(folder: Path) -> None:
    """The smallest real package."""
    with zipfile.ZipFile(folder / "tinytool-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("tinytool.py", "ANSWER = 42\n")
        archive.writestr("tinytool-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinytool\nVersion: 1.0\n")
        archive.writestr(
            "tinytool-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tinytool-1.0.dist-info/RECORD", "")


def test_a_half_made_environment_is_never_used_and_setup_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VIDON_HOME", str(tmp_path / "home"))
    script = tmp_path / "tiny.py"
    script.write_text(SPEAKER.replace("LINE", "pass").replace("import json", "import tinytool, json"))
    monkeypatch.setattr(environment, "SCRIPT", script)
    packages = ("--no-index", "--find-links", str(tmp_path), "tinytool==1.0")
    tool = Tool("tiny", "1.0", "tinytool", "tinytool", (packages,), (11, 99))
    with pytest.raises(ToolError, match=r"No matching distribution found for tinytool==1\.0.*goes on where it stopped"):
        setup(tool)
    with pytest.raises(MissingTool):
        python_of(tool)
    made = (place_of(tool) / "env" / "pyvenv.cfg").stat().st_mtime_ns
    _wheel(tmp_path)
    python = setup(tool)
    assert python_of(tool) == python
    assert (place_of(tool) / "env" / "pyvenv.cfg").stat().st_mtime_ns == made
    ready = place_of(tool) / "ready.json"
    assert json.loads(ready.read_text())["version"] == "1"
    # Another recipe is another environment; a damaged marker is none.
    with pytest.raises(MissingTool):
        python_of(Tool("tiny", "1.0", "tinytool", "tinytool", (("tinytool==2.0",),), (11, 99)))
    ready.write_text("{")
    with pytest.raises(MissingTool):
        python_of(tool)
    assert setup(tool) == python


def test_only_one_setup_runs_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setenv("VIDON_HOME", str(tmp_path))
    tool = TOOLS["ethos-u"]
    place_of(tool).mkdir(parents=True)
    with (place_of(tool) / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another vidon is setting up ethos-u"):
            setup(tool)
