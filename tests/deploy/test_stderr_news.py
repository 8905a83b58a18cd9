"""The error stream while LiteRT makes an interpreter: its news stay off, every other line arrives."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.runtimes.stderr_news import without_news
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
from deploy.runtimes.stderr_news import without_news
with without_news():
    os.write(2, b"the library's last words\\n")
    os.abort()
"""
_HALF = """
import io, os, sys
from deploy.runtimes.stderr_news import without_news
sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False))  # buffered whole, as in a file
sys.stderr.write("half a line")
with without_news():
    os.write(2, b", the library's")
    sys.stderr.write(", the rest\\n")
"""
_CLOSED = """
import os
from deploy.runtimes.stderr_news import without_news
os.close(2)
with without_news():
    print("ran")
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
