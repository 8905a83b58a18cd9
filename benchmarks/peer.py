"""The peer of the surv_fight benchmark: MoViNet-A0 stream (Kondratyuk et al. 2021, arXiv:2103.11511) as TFLite files.

Its features are those of all its layers: every convolution's output, averaged over the picture and then over the
clip's frames. A logistic regression on them, fitted as the student's is, gives its accuracy.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.files import write_bytes
from toolkit.preprocess import Preprocess
from toolkit.progress import track
from toolkit.video import read_pictures

__all__ = ["peer_calls", "peer_features"]

FILE = "movinet_a0_stream_{}.tflite"
VIEW = Preprocess(size=(172, 172), fit="stretch", fps=10)


def peer_calls(peer: Path) -> dict[str, Any]:
    """One step of the peer's files, state fed back, one thread."""
    from ai_edge_litert.interpreter import Interpreter

    calls = {}
    for name in ("dynamic", "int8"):
        runner = Interpreter(model_path=str(peer / FILE.format(name)), num_threads=1).get_signature_runner()
        state = _zeros(runner)

        def call(runner: Any = runner, state: dict[str, Any] = state) -> None:
            outputs = runner(**state)
            state.update({key: value for key, value in outputs.items() if key in state})

        calls[f"MoViNet-A0 stream {name}"] = call
    return calls


def _zeros(runner: Any) -> dict[str, Any]:
    return {key: np.zeros(d["shape"], d["dtype"]) for key, d in runner.get_input_details().items()}


def peer_features(rows: list[dict[str, str]], data: Path, peer: Path, work: Path) -> list[npt.NDArray[np.float64]]:
    """Mean features of every clip, one array (N, C) a layer, cached."""
    file = work / "features-peer.npz"
    if not file.is_file():
        backbone = _Layers(peer / FILE.format("dynamic"))
        clips = [
            backbone(read_pictures(data / row["path"], VIEW).astype(np.float32) / 255)
            for row in track(rows, "features of the peer")
        ]
        np.savez(work / "partial.npz", *(np.stack(layer) for layer in zip(*clips, strict=True)))
        write_bytes(file, (work / "partial.npz").read_bytes())
    with np.load(file) as found:
        return [found[name] for name in found.files]


class _Layers:
    """The peer with every layer's output readable, which needs the interpreter's own kernels: slow but the same."""

    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self.interpreter = Interpreter(
            model_path=str(path),
            num_threads=2,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        self.runner = self.interpreter.get_signature_runner()
        convolutions = [op for op in self.interpreter._get_ops_details() if op["op_name"].endswith("CONV_2D")]
        self.layers = [op["outputs"][0] for op in convolutions]

    def __call__(self, pictures: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float64]]:
        """(T, H, W, 3) in [0, 1] -> one mean vector a layer."""
        state = _zeros(self.runner)
        image = next(key for key, value in state.items() if value.shape[-3:] == pictures.shape[1:])
        sums: list[Any] = [0.0] * len(self.layers)
        for picture in pictures:
            state[image] = picture.reshape(state[image].shape)
            outputs = self.runner(**state)
            state.update({key: value for key, value in outputs.items() if key in state})
            for index, tensor in enumerate(self.layers):
                value = self.interpreter.get_tensor(tensor)
                sums[index] = sums[index] + value.reshape(-1, value.shape[-1]).mean(0, dtype=np.float64)
        return [total / len(pictures) for total in sums]
