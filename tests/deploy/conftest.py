"""One tiny trained-like student exported to every runtime and precision, shared by the whole folder."""

import numpy as np
import torch

from toolkit.recipe import StudentConfig
from train.models.student import StreamStudent, build_student

SIDE = 32
PRECISIONS = ("fp32", "int8")
RUNTIME_NAMES = ("torch", "onnxruntime", "openvino", "litert")
KEYS = ("torch-fp32", *(f"{r}-{p}" for r in RUNTIME_NAMES[1:] for p in PRECISIONS))


def lively_student(config: StudentConfig | None = None) -> StreamStudent:
    """A small student with weights of a trained one's scale (fresh ones answer almost nothing)."""
    torch.manual_seed(0)
    model = build_student(config or StudentConfig(width=0.25, depth=0.5, look_back=True), 4, (3, SIDE, SIDE), 8)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.7, 1.3)
            torch.nn.init.normal_(module.bias, std=0.3)
        elif isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.5)
    return model.eval()


def streams(count: int, frames: int = 12) -> list[np.ndarray]:
    """Smooth random streams (T, 3, H, W): noise that moves, as video does."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(count):
        base = rng.standard_normal((3, SIDE // 4, SIDE // 4)).repeat(4, 1).repeat(4, 2)
        found.append(np.stack([np.roll(base, t, axis=2) for t in range(frames)]).astype(np.float32) * 0.6)
    return found
