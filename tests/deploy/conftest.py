"""One tiny trained-like student exported to every runtime and precision, shared by the whole folder.

Importing this needs no torch: the conformance suite runs on boards too.
"""

from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from toolkit.recipe import StudentConfig
    from train.models.student import StreamStudent

SIDE = 32
PRECISIONS = ("fp32", "int8")
RUNTIME_NAMES = ("torch", "onnxruntime", "openvino", "litert")
KEYS = ("torch-fp32", *(f"{r}-{p}" for r in RUNTIME_NAMES[1:] for p in PRECISIONS))


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of cases that belong to one runtime alone."""
    config.addinivalue_line("markers", "adapter(name): a case of this runtime, left out where --adapters has others")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With ``--adapters`` only the cases of these runtimes, and those of none, are run."""
    asked = config.getoption("--adapters")
    if asked is None:
        return
    left_out = [item for item in items if _adapter(item) not in (None, *asked.split(","))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _adapter(item: pytest.Item) -> str | None:
    """The runtime whose case this is, by its marker or by the artefact that it is a case of."""
    marker = item.get_closest_marker("adapter")
    key = marker.args[0] if marker else getattr(getattr(item, "callspec", None), "params", {}).get("key")
    return key.partition("-")[0] if isinstance(key, str) else None


def lively_student(config: "StudentConfig | None" = None) -> "StreamStudent":
    """A small student with weights of a trained one's scale (fresh ones answer almost nothing)."""
    import torch

    from toolkit.recipe import StudentConfig
    from train.models.student import build_student

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
