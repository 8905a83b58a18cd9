"""Every encoder leaves for the runtimes and answers there as in torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.export import export_bundle
from deploy.verify import verify
from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig
from train.models.registry import make_encoder

SIDE, FRAMES = 32, 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "runtimes"),
    [
        ("c3d", {}, ("onnxruntime", "openvino", "litert")),
        ("i3d", {}, ("onnxruntime", "openvino", "litert")),
        ("r2plus1d", {}, ("onnxruntime", "openvino", "litert")),
        ("x3d-s", {}, ("onnxruntime", "openvino")),  # LiteRT's CONV_3D has no groups
        ("vit-s", {"attention": "divided"}, ("onnxruntime", "openvino", "litert")),
        ("vit-s", {"merge": 4}, ("onnxruntime", "openvino")),  # litert-torch 0.10 cannot convert the sort
    ],
)
def test_every_encoder_answers_in_the_runtimes_as_in_torch(
    name: str, settings: dict[str, Any], runtimes: tuple[str, ...], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = TeacherConfig(encoder=name, dim=32, depth=2, heads=2, tubelet=(2, 8, 8), width=0.0625, **settings)
    pictures = Preprocess(size=(SIDE, SIDE))
    model = make_encoder(config, 3, pictures, FRAMES).eval()
    torch.nn.init.normal_(model.head.weight, std=0.5)
    frames = np.random.default_rng(0).standard_normal((8, 3, SIDE, SIDE)).astype(np.float32)
    made = export_bundle(
        model, path=tmp_path / "t.vidon", name="t", labels=("a", "b", "c"), preprocess=pictures, rollouts=[],
        golden_frames=frames, runtimes=runtimes, precisions=("fp32",), lineage={},
    )  # fmt: skip
    results = verify(made)
    assert len(results) == len(runtimes)
    assert max(result.max_diff for result in results) < 1e-4
