"""What libraries say unasked stays off, with LiteRT as in an export; every other line arrives."""

import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from deploy.chatter import hushed, without_news
from tests.deploy.test_conformance import HAS_COMPILED
from toolkit.bundle import Bundle

#: A real file that comes with the package.
MODEL = Path(__file__).parents[2] / "toolkit" / "assets" / "weights" / "mobilenet_v2_imagenet_int8.tflite"
NEWS = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"

_OPEN = """
import sys
from pathlib import Path
from deploy.runtimes.base import Options
from deploy.runtimes.litert_runtime import _interpreter, _library
_interpreter(_library()[1], Path(sys.argv[1]), Options(threads=1))[0].invoke()
"""
_PLAIN = """
import sys
from ai_edge_litert.interpreter import Interpreter
Interpreter(model_path=sys.argv[1], num_threads=1).allocate_tensors()
"""
_COMPILE = """
import sys
from pathlib import Path
from deploy.runtimes.litert_compiled import _compile
from toolkit.errors import BundleError
try:
    _compile(Path(sys.argv[1]), "cpu", 1)
except BundleError as error:
    print(error)
"""
_COMPILED = """
import sys
from pathlib import Path
from deploy.runtimes import Options, open_session
from toolkit.bundle import open_bundle
from toolkit.errors import UserError
bundle = open_bundle(Path(sys.argv[1]))
open_session(bundle, "litert-fp32", options=Options(form="compiled")).close()
try:
    open_session(bundle, "litert-int8", options=Options(form="compiled")).close()
except UserError as error:  # statically quantised: LiteRT does not find the names
    print(error)
print("the end", file=sys.stderr)
"""
_DIE = """
import os
from deploy.chatter import hushed, without_news
with without_news():
    os.write(2, b"the library's last words\\n")
    os.abort()
"""
_HALF = """
import io, os, sys
from deploy.chatter import hushed, without_news
sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False))  # buffered whole, as in a file
sys.stderr.write("half a line")
with without_news():
    os.write(2, b", the library's")
    sys.stderr.write(", the rest\\n")
"""
_CLOSED = """
import os
from deploy.chatter import hushed, without_news
os.close(2)
with without_news():
    print("ran")
"""

_CRASH = """
import os, sys
from pathlib import Path
import torch
from deploy.chatter import hushed
from deploy.export.litert import float_litert
from tests.deploy.conftest import lively_student

class Broken(torch.nn.Module):
    def forward(self, frame, *states):
        os.write(2, b"the converter's last words\\n")
        os.abort()

with hushed():
    print("before the crash", flush=True)
    float_litert(Broken(), lively_student().contract(), Path(sys.argv[1]))
"""
_EXPORT = """
import logging, os, sys, threading, warnings
from pathlib import Path
from deploy.export import export_bundle
from tests.deploy.conftest import lively_student, streams
from toolkit.preprocess import Preprocess
from toolkit.progress import quiet
logging.basicConfig(format="logged %(message)s")
over = threading.Event()

def talk():
    turn = 0
    while not over.wait(0.25):
        turn += 1
        print(f"printed {turn}", flush=True)
        print(f"told {turn}", file=sys.stderr, flush=True)
        os.write(1, f"C out {turn}\\n".encode())
        os.write(2, f"C err {turn}\\n".encode())
        logging.warning(f"{turn}")
        warnings.warn_explicit(f"warned {turn}", UserWarning, "there.py", turn)
    os.write(1, f"turns {turn}\\n".encode())

talker = threading.Thread(target=talk)
talker.start()
with quiet():
    export_bundle(
        lively_student(), path=Path(sys.argv[1]), name="b", labels=("a", "b", "c", "d"),
        preprocess=Preprocess(size=(32, 32)), rollouts=streams(1, 4), golden_frames=streams(1, 4)[0],
        runtimes=sys.argv[2].split(","), precisions=("fp32", "int8"), lineage={},
    )
over.set()
talker.join()
"""


def _child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_opening_a_model_leaves_the_error_stream_empty() -> None:
    pytest.importorskip("ai_edge_litert")
    assert NEWS.decode() in _child("-c", _PLAIN, str(MODEL)).stderr  # else this test shows nothing
    done = _child("-c", _OPEN, str(MODEL))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not HAS_COMPILED, reason="this LiteRT has no compiled form")
def test_compiled_models_say_nothing_until_the_process_ends(bundle: Bundle) -> None:
    done = _child("-c", _COMPILED, str(bundle.root))
    before, end, _ = done.stderr.partition("the end\n")  # behind it the library's own destructors speak
    assert (done.returncode, before, end) == (0, "", "the end\n")
    assert "litert-int8/model.tflite has no compiled form" in done.stdout


@pytest.mark.skipif(not HAS_COMPILED, reason="this LiteRT has no compiled form")
def test_what_litert_says_of_a_bad_file_arrives_without_its_news(tmp_path: Path) -> None:
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"nonsense" * 10)
    done = _child("-c", _COMPILE, str(bad))
    assert f"litert cannot read {bad}" in done.stdout
    assert done.stderr.strip() == "ERROR: Model provided has model identifier 'ense', should be 'TFL3'"


@pytest.mark.parametrize("command", [("bench", "--steps", "10"), ("verify",)])
def test_the_command_line_shows_no_news_of_litert(bundle: Bundle, command: tuple[str, ...]) -> None:
    name, *options = command
    done = _child("-m", "toolkit", name, str(bundle.root), "--artefact", "litert-fp32", "--json", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.lstrip()[0] in "{["
    assert "INFO" not in done.stderr


def test_all_but_the_news_arrives_in_its_order_to_the_last_byte(capfd: pytest.CaptureFixture[str]) -> None:
    with without_news():
        os.write(2, b"ERROR: one\n" + NEWS + b"INFORMATION: two\n")
        os.write(2, b"WARNING: [npu_registry.cc:34] none\n\xe2\x94\x94 since it is not there\nWARNING: three\n")
        os.write(2, "ERROR: four\n└ for this reason\nfive without an end".encode())
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == (
        "ERROR: one\nINFORMATION: two\nWARNING: three\nERROR: four\n└ for this reason\nfive without an end"
    )


def test_a_line_arrives_though_the_block_raises(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no model"), without_news():
        os.write(2, NEWS + b"ERROR: why\n")
        raise ValueError("no model")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "ERROR: why\nafter\n"


def test_lines_of_other_threads_arrive_while_several_make_models(capfd: pytest.CaptureFixture[str]) -> None:
    before = os.fstat(2)

    def make(name: int) -> None:
        for turn in range(50):
            with without_news(), without_news():
                os.write(2, NEWS + f"made {name} {turn}\n".encode())
            os.write(2, f"between {name} {turn}\n".encode())

    makers = [threading.Thread(target=make, args=(name,)) for name in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    want = [f"{what} {name} {turn}" for what in ("made", "between") for name in range(4) for turn in range(50)]
    assert sorted(capfd.readouterr().err.splitlines()) == sorted(want)
    assert os.path.samestat(os.fstat(2), before)


def test_no_descriptor_is_left_behind() -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("descriptors cannot be counted here")
    before = len(list(folder.iterdir()))
    for _ in range(5):
        with without_news():
            pass
    assert len(list(folder.iterdir())) == before


def test_the_last_words_of_a_crash_arrive_when_a_crash_is_hunted() -> None:
    done = _child("-c", _DIE, PYTHONFAULTHANDLER="1")
    assert done.returncode != 0
    assert done.stderr.startswith("the library's last words\n")


def test_without_an_error_stream_the_block_runs() -> None:
    done = _child("-c", _CLOSED)
    assert (done.returncode, done.stdout) == (0, "ran\n")


def test_half_a_line_of_python_stays_before_what_the_library_writes() -> None:
    done = _child("-c", _HALF)
    assert done.stderr == "half a line, the library's, the rest\n"


def test_the_last_words_of_a_crash_arrive_though_nobody_hunts_it() -> None:
    if sys.platform != "linux":
        pytest.skip("nothing waits beside the block on this system")
    done = _child("-c", _DIE, PYTHONFAULTHANDLER="")
    assert done.returncode == -signal.SIGABRT
    assert done.stderr == "the library's last words\n"


def test_a_process_killed_inside_the_block_leaves_its_lines() -> None:
    if sys.platform != "linux":
        pytest.skip("nothing waits beside the block on this system")
    done = _child("-c", _DIE.replace("os.abort()", "os.kill(os.getpid(), 9)"), PYTHONFAULTHANDLER="")
    assert (done.returncode, done.stderr) == (-signal.SIGKILL, "the library's last words\n")


def test_without_a_shell_the_block_holds_all_the_same() -> None:
    """A board may have none."""
    code = "import deploy.chatter as c; c._SHELL = '/no/such/shell'" + _DIE.replace("os.abort()", "")
    done = _child("-c", code.replace("the library's last words", "INFO: news"))
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_crash_in_a_converter_says_last_arrives(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    done = _child("-c", _CRASH, str(tmp_path / "a.tflite"), PYTHONFAULTHANDLER="")
    assert done.returncode == -signal.SIGABRT
    assert "the converter's last words\n" in done.stderr
    assert done.stdout == "before the crash\n" or done.stdout.startswith("before the crash\n(")


@pytest.mark.parametrize(
    "runtimes", ["onnxruntime,openvino", pytest.param("torch,onnxruntime,openvino,litert", marks=pytest.mark.slow)]
)
def test_an_export_says_nothing_and_loses_no_line_of_another_thread(runtimes: str, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    done = _child("-c", _EXPORT, str(tmp_path / "b.vidon"), runtimes)
    assert done.returncode == 0, done.stderr
    turns = int(done.stdout.partition("turns ")[2])
    assert turns > 10
    numbers = range(1, turns + 1)
    said = sorted(line for line in done.stdout.splitlines() if not line.startswith("turns "))
    assert said == sorted(f"{how} {turn}" for how in ("printed", "C out") for turn in numbers)
    heard = [f"{how} {turn}" for how in ("told", "C err", "logged") for turn in numbers]
    heard += [f"there.py:{turn}: UserWarning: warned {turn}" for turn in numbers]
    assert sorted(done.stderr.splitlines()) == sorted(heard)


def test_a_warning_a_record_and_a_line_of_others_pass_while_exporters_are_hushed(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        _speak()
    assert [str(each.message) for each in warned] == ["the batch will not be used"]
    assert caplog.messages == ["something else"]
    assert capsys.readouterr().out == "(00:01) it started\n\n"


def _speak() -> None:
    with hushed():
        warnings.warn("# The axis name: t will not be used, since it shares the same shape constraints", stacklevel=1)
        warnings.warn("the batch will not be used", stacklevel=1)
        logging.getLogger("torchao").warning("Failed to load a library")
        logging.getLogger("torchao").warning("something else")
        print("\x1b[36m(00:01)\x1b[0m [START] Convert > and\nmore")
        sys.stdout.write("Statistics collection ---- 100%")
        sys.stdout.write("\n")
        print("(00:01) it started")
        print()
