"""ImageNet MobileNetV2 weights for the student, read from the int8 TFLite file.

The file's 53 convolutions are int8 with one scale per output channel; dequantised they are a network whose
batch norms are already folded. Each pair (weight, bias) goes into the student's convolution and batch norm,
with the batch norm set so that it only adds the bias. The input is RGB as ``(pixel - 127) / 127.5``.

Sandler et al. 2018, arXiv:1801.04381.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from toolkit.errors import MissingDependency, UserError
from train.models.readout import AverageReadout
from train.models.student import StreamStudent

__all__ = ["IMAGENET", "MEAN", "STD", "load_imagenet", "read_convolutions"]

#: The file that comes with the package.
IMAGENET = Path(__file__).resolve().parents[2] / "toolkit" / "assets" / "weights" / "mobilenet_v2_imagenet_int8.tflite"
#: Preprocess.mean and .std that these weights expect.
MEAN = (127 / 255,) * 3
STD = (0.5,) * 3


@dataclass(frozen=True, slots=True)
class FoldedConv:
    """weight: float32 (out, in / groups, kh, kw); bias: float32 (out,)."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


def read_convolutions(path: Path) -> list[FoldedConv]:
    """Dequantise every convolution of a TFLite file, in graph order.

    Raises:
        UserError: the file is missing or is not a TFLite model.
        MissingDependency: LiteRT is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise MissingDependency("ai-edge-litert", "litert") from error
    if not path.is_file():
        raise UserError(f"weights {path} do not exist: check student.pretrained")
    try:
        # Without a delegate the operators stay those of the file.
        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        interpreter = Interpreter(model_path=str(path), experimental_op_resolver_type=plain)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"weights {path} are not a readable TFLite file: {str(error).splitlines()[0]}") from error
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}

    def dequantised(index: int) -> npt.NDArray[np.float32]:
        params = details[index]["quantization_parameters"]
        values = interpreter.get_tensor(index).astype(np.float64)
        shape = [1] * values.ndim
        if params["scales"].size > 1:
            shape[params["quantized_dimension"]] = params["scales"].size
        zero, scale = params["zero_points"].reshape(shape), params["scales"].astype(np.float64).reshape(shape)
        return np.asarray((values - zero) * scale, np.float32)

    found = []
    for op in interpreter._get_ops_details():  # LiteRT 2.3 has no public view of the graph's operators
        if op["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            weight, bias = dequantised(int(op["inputs"][1])), dequantised(int(op["inputs"][2]))
            # TFLite keeps OHWI, and 1HWC for depthwise.
            order = (0, 3, 1, 2) if op["op_name"] == "CONV_2D" else (3, 0, 1, 2)
            found.append(FoldedConv(np.ascontiguousarray(weight.transpose(order)), bias))
    return found


def _targets(model: StreamStudent) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each convolution of the backbone with its batch norm, in graph order; temporal taps are left out."""
    units: list[nn.Module] = [model.stem]
    for block in model.blocks:
        branch = block.branch
        assert isinstance(branch, nn.Sequential)
        units += list(branch)
    if isinstance(model.readout, AverageReadout):
        units.append(model.readout.last)
    for unit in units:
        assert isinstance(unit, nn.Sequential)
        convolution, norm = unit[0], unit[1]
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        yield convolution, norm


def _seen(convolution: nn.Conv2d) -> tuple[int, ...]:
    """Shape of the weight without the channels that a look-back stem adds."""
    outputs, inputs, *kernel = convolution.weight.shape
    return (outputs, 3 if inputs == 6 and convolution.groups == 1 else inputs, *kernel)


def load_imagenet(model: StreamStudent, path: Path = IMAGENET) -> None:
    """Fill the student's backbone with ImageNet weights, as far as it goes; a 1,001-class head is filled too.

    Raises:
        UserError: the student's width or depth differ from the file's.
    """
    source = read_convolutions(path)
    targets = list(_targets(model))
    fits = len(targets) <= len(source) and all(
        _seen(convolution) == folded.weight.shape for (convolution, _), folded in zip(targets, source, strict=False)
    )
    if not fits:
        raise UserError(f"weights {path} do not fit this student: use student.width=1.0 and student.depth=1.0")
    with torch.no_grad():
        for (convolution, norm), folded in zip(targets, source, strict=False):
            convolution.weight.zero_()  # a look-back stem starts blind to change
            convolution.weight[:, : folded.weight.shape[1]].copy_(torch.from_numpy(folded.weight))
            norm.running_mean.zero_()  # type: ignore[union-attr]
            norm.running_var.fill_(1.0)  # type: ignore[union-attr]
            norm.weight.fill_((1.0 + norm.eps) ** 0.5)
            norm.bias.copy_(torch.from_numpy(folded.bias))
        head = getattr(model.readout, "head", None)
        last = source[-1]
        if isinstance(head, nn.Linear) and head.weight.shape == last.weight.shape[:2]:
            head.weight.copy_(torch.from_numpy(last.weight[:, :, 0, 0]))
            head.bias.copy_(torch.from_numpy(last.bias))
