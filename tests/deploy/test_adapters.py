"""What one runtime alone owes: its own forms, caches and delegates. Runs on a board, as the conformance suite does."""

import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from deploy.runtimes import Options, available, load, open_session, pick
from deploy.verify import replay
from tests.deploy.conftest import streams
from tests.deploy.test_conformance import HAS_COMPILED, assert_close_enough
from toolkit.bundle import Bundle
from toolkit.errors import BundleError, UnavailableDevice


@pytest.mark.adapter("litert")
@pytest.mark.skipif(HAS_COMPILED, reason="this LiteRT has the compiled form")
def test_a_form_that_this_version_lacks_is_one_clear_line(bundle: Bundle) -> None:
    with pytest.raises(UnavailableDevice, match="has no compiled form; run  pip install --upgrade ai-edge-litert"):
        open_session(bundle, "litert-fp32", options=Options(form="compiled"))


@pytest.mark.slow
@pytest.mark.adapter("torch")
def test_the_compiled_form_of_torch_answers_alike(bundle: Bundle) -> None:
    plain = open_session(bundle, "torch-fp32", threads=1)
    compiled = open_session(bundle, "torch-fp32", options=Options(threads=1, form="compiled"))
    assert_close_enough("torch-fp32", replay(compiled, streams(1)[0]), replay(plain, streams(1)[0]))


@pytest.mark.slow
@pytest.mark.adapter("torch")
def test_the_compiled_form_compiles_when_it_is_opened_and_never_again(bundle: Bundle) -> None:
    from torch._dynamo.utils import counters

    session = open_session(bundle, "torch-fp32", options=Options(threads=1, form="compiled", batch=2))
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    first, second = streams(2)
    for _ in range(2):
        for a, b in zip(first, second, strict=True):
            session.step(np.stack([a, b]))
        session.reset(1)
        session.step(np.stack([first[0], second[0]]))
        session.reset()
    assert counters["stats"]["unique_graphs"] == compiled


@pytest.mark.adapter("torch")
def test_cuda_graphs_without_a_gpu_are_refused(bundle: Bundle) -> None:
    with pytest.raises(UnavailableDevice, match="CUDA graphs run on the device cuda, not on cpu"):
        open_session(bundle, "torch-fp32", options=Options(form="graphs"))


@pytest.mark.adapter("openvino")
def test_openvino_keeps_compiled_models_in_the_cache(bundle: Bundle, tmp_path: Path) -> None:
    frames = streams(1)[0]
    want = replay(open_session(bundle, "openvino-fp32", threads=1), frames)
    options = Options(threads=1, cache=tmp_path)
    replay(open_session(bundle, "openvino-fp32", options=options), frames)
    blobs = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.blob")}
    assert blobs
    np.testing.assert_array_equal(replay(open_session(bundle, "openvino-fp32", options=options), frames), want)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.blob")} == blobs


@pytest.mark.adapter("openvino")
def test_the_auto_device_says_where_it_runs(bundle: Bundle) -> None:
    session = open_session(bundle, "openvino-fp32", device="auto", threads=1)
    frames = streams(1)[0]
    np.testing.assert_allclose(
        replay(session, frames), replay(open_session(bundle, "openvino-fp32", threads=1), frames), atol=1e-4
    )
    assert "cpu" in session.placement().detail["execution_devices"]


IDLE_DELEGATE = """
#include <stdint.h>
#include <stdlib.h>
typedef struct { void* data; int (*prepare)(void*, void*); void *to, *from, *release; int64_t flags; void* builder; } D;
static int prepare(void* context, void* delegate) { return 0; }
D* tflite_plugin_create_delegate(char** keys, char** values, size_t count, void (*report)(const char*)) {
    D* delegate = calloc(1, sizeof(D));
    delegate->prepare = prepare;
    return delegate;
}
void tflite_plugin_destroy_delegate(D* delegate) { free(delegate); }
"""


@pytest.mark.adapter("litert")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="the delegate is compiled from C")
def test_a_delegate_that_takes_nothing_is_no_silent_fallback(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "idle.c").write_text(IDLE_DELEGATE)
    library = tmp_path / "libidle.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "idle.c"], check=True, capture_output=True)
    with pytest.raises(UnavailableDevice, match="took no operator"):
        open_session(bundle, "litert-fp32", options=Options(delegate=library))
    session = open_session(bundle, "litert-fp32", options=Options(delegate=library, allow_fallback=True))
    assert "took no operator" in session.placement().detail["fallback"]
    frames = streams(1)[0]
    np.testing.assert_array_equal(replay(session, frames), replay(open_session(bundle, "litert-fp32"), frames))


@pytest.mark.adapter("litert")
def test_a_delegate_that_does_not_load_is_one_clear_line(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "no.so").write_text("no library")
    with pytest.raises(UnavailableDevice, match=r"cannot load the delegate .*no\.so"):
        open_session(bundle, "litert-fp32", options=Options(delegate=tmp_path / "no.so"))
    with pytest.raises(UnavailableDevice, match="does not exist"):
        open_session(bundle, "litert-fp32", options=Options(delegate=tmp_path / "none.so"))


@pytest.mark.adapter("litert")
def test_litert_names_what_its_delegate_left(bundle: Bundle) -> None:
    detail = open_session(bundle, "litert-fp32").placement().detail
    assert (detail["delegated"], detail["left"]) == (("1 parts", "none") if HAS_COMPILED else ("2 parts", "SUM"))


@pytest.mark.adapter("litert")
@pytest.mark.skipif(HAS_COMPILED, reason="this LiteRT's XNNPACK takes int8")
def test_tflite_runtimes_int8_is_left_to_slow_kernels_and_not_chosen(bundle: Bundle) -> None:
    assert "23 CONV_2D, 11 DEPTHWISE_CONV_2D" in open_session(bundle, "litert-int8").placement().detail["left"]
    assert available("litert").slow == ("int8",)
    int8_first = bundle.manifest.model_copy(update={"best": "litert-int8"})
    assert pick(Bundle(bundle.root, int8_first), None).key == "litert-fp32"


@pytest.mark.adapter("onnxruntime")
def test_onnxruntime_counts_the_nodes_of_each_provider(bundle: Bundle) -> None:
    assert open_session(bundle, "onnxruntime-fp32").placement().detail["nodes"].startswith("CPUExecutionProvider ")


@pytest.mark.adapter("torch")
def test_pickled_data_in_a_torch_archive_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    artefact = bundle.artefact("torch-fp32")
    shutil.copytree(bundle.root / artefact.folder, tmp_path / "m")
    with zipfile.ZipFile(tmp_path / "m" / artefact.entry, "a") as archive:
        archive.writestr("model/data/evil.pkl", b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(BundleError, match="holds pickled data"):
        load("torch").open(tmp_path / "m", artefact, bundle.manifest.contract, Options())


@pytest.mark.adapter("litert")
def test_states_that_only_move_on_are_copied_oldest_first() -> None:
    from deploy.runtimes.litert_runtime import _in_order

    moved = _in_order([(9, 1), (1, 2), (2, 3)])  # state 1 <- new map, 2 <- old 1, 3 <- old 2
    memory = {1: "a", 2: "b", 3: "c", 9: "new"}
    for source, target in moved:
        memory[target] = memory[source]
    assert memory == {1: "new", 2: "a", 3: "b", 9: "new"}
    with pytest.raises(BundleError, match="circle"):
        _in_order([(1, 2), (2, 1)])
