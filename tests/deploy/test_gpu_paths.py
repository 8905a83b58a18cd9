"""What can be said of the GPU's code paths without a GPU: the captured body, moved programs, options, names."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.runtimes import Options, open_session
from deploy.runtimes.onnxruntime_runtime import _providers
from deploy.runtimes.tensorrt_runtime import _cuda_libraries, _gpu_name
from deploy.runtimes.torch_runtime import _load, advance
from deploy.verify import replay
from tests.deploy.conftest import streams
from toolkit.bundle import Bundle


def test_the_body_that_is_captured_writes_its_states_where_they_stand(bundle: Bundle) -> None:
    artefact, contract = bundle.artefact("torch-fp32"), bundle.manifest.contract
    program = _load(torch, bundle.root / artefact.folder / artefact.entry)
    buffers = [torch.zeros(1, *state.shape) for state in contract.states]
    places = [buffer.data_ptr() for buffer in buffers]
    got = []
    with torch.inference_mode():
        for frame in streams(1)[0]:
            got.append(advance(program, torch.from_numpy(frame[None]), buffers).numpy().copy())
    want = replay(open_session(bundle, "torch-fp32"), streams(1)[0])
    np.testing.assert_allclose(np.concatenate(got), want, atol=1e-6)
    assert [buffer.data_ptr() for buffer in buffers] == places


class Rotating(torch.nn.Module):
    """Its next states are the old ones in turn: written one by one they would overwrite each other."""

    def forward(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x + a, b, a + torch.arange(3.0)


def test_states_that_change_places_are_all_read_before_any_is_written() -> None:
    a, b = torch.ones(1, 3), torch.full((1, 3), 5.0)
    advance(Rotating(), torch.zeros(1, 3), [a, b])
    assert a.tolist() == [[5.0, 5.0, 5.0]]
    assert b.tolist() == [[1.0, 2.0, 3.0]]


def test_a_program_moves_to_its_device_with_all_that_it_makes_itself(tmp_path: Path) -> None:
    inputs = tuple(torch.zeros(1, 3) for _ in range(3))
    program = torch.export.export(Rotating(), inputs)
    program.example_inputs = None  # they would be stored with pickle
    torch.export.save(program, tmp_path / "m.pt2")
    away = [value.to("meta") for value in inputs]
    with pytest.raises(RuntimeError, match=r"device|meta"):
        _load(torch, tmp_path / "m.pt2").to("meta")(*away)
    assert {value.device.type for value in _load(torch, tmp_path / "m.pt2", "meta")(*away)} == {"meta"}


def test_the_student_moves_to_another_device(bundle: Bundle) -> None:
    artefact, contract = bundle.artefact("torch-fp32"), bundle.manifest.contract
    program = _load(torch, bundle.root / artefact.folder / artefact.entry, "meta")
    shapes = [contract.input_shape, *(state.shape for state in contract.states)]
    found = program(*(torch.zeros(2, *shape, device="meta") for shape in shapes))
    assert {value.device.type for value in found} == {"meta"}
    assert found[0].shape == (2, contract.answer_width)


def test_fp32_on_cuda_is_not_tf32() -> None:
    assert _providers("cuda", Options(), "fp32") == [("CUDAExecutionProvider", {"use_tf32": "0"})]
    assert _providers("cuda", Options(), "int8") == ["CUDAExecutionProvider"]
    assert _providers("cuda", Options(allow_fallback=True), "int8")[1] == "CPUExecutionProvider"


def test_a_kept_engine_outlives_a_restart_of_the_machine(tmp_path: Path) -> None:
    card = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information"
    card.parent.mkdir(parents=True)
    names = []
    for interrupt in (42, 77):
        card.write_text(f"Model: \t\t NVIDIA GeForce RTX 4070\nIRQ:   \t\t {interrupt}\nGPU UUID: \t GPU-1\n")
        names.append(_gpu_name(tmp_path))
    assert names == ["NVIDIA GeForce RTX 4070"] * 2
    assert _gpu_name(tmp_path / "nothing") == "?"


def test_cuda_libraries_that_came_as_python_packages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.13"
    library.parent.mkdir(parents=True)
    library.touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert str(library) in _cuda_libraries()
