"""X3D: the published checkpoint layout, the same answers computed from its weights alone, and every way to train it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.train.synthetic import tiny_recipe, write_data
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import FinetuneConfig, TeacherConfig
from train.loop.blocks import blocks_of, recompute
from train.models.pretrained import start_from
from train.models.registry import make_encoder
from train.models.x3d import X3D, published_name
from train.objectives import resolve
from train.stages import pretrain
from train.stages.finetune import layer_rates

#: A net of a quarter of the width and gamma_d = 1, as it is written in the published layout: (channels, inner, blocks).
STAGES = ((8, 18, 1), (16, 36, 2), (24, 54, 5), (48, 108, 3))
NARROW: dict[str, Any] = {"width": 0.25, "depth_factor": 1.0}
HIDDEN, SQUEEZED = 512, 8
FRAMES, SIZE = 5, (47, 64)


def _net(classes: int = 3, encoder: str = "x3d-s", **settings: Any) -> X3D:
    torch.manual_seed(0)
    config = TeacherConfig.model_validate({"encoder": encoder, **NARROW, **settings})
    model = make_encoder(config, classes, Preprocess(size=SIZE), FRAMES).eval()
    assert isinstance(model, X3D)
    return model


def _published(classes: int = 3) -> dict[str, Tensor]:
    """Random weights in pytorchvideo's layout, batch norms with statistics of their own."""
    generator, weights = torch.Generator().manual_seed(1), {}

    def convolution(name: str, wide: int, channels: int, *kernel: int) -> None:
        shape = (wide, channels, *kernel)
        noise = torch.randn(shape, generator=generator)
        weights[f"{name}.weight"] = noise / math.sqrt(channels * math.prod(kernel))

    def norm(name: str, channels: int) -> None:
        for part, low, high in (("weight", 0.5, 1.5), ("bias", -0.5, 0.5), ("running_mean", -0.5, 0.5),
                                ("running_var", 0.5, 2.0)):  # fmt: skip
            weights[f"{name}.{part}"] = low + (high - low) * torch.rand(channels, generator=generator)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("blocks.0.conv.conv_t", 8, 3, 1, 3, 3)
    convolution("blocks.0.conv.conv_xy", 8, 1, 5, 1, 1)
    norm("blocks.0.norm", 8)
    channels = 8
    for stage, (wide, inner, blocks) in enumerate(STAGES, 1):
        for index in range(blocks):
            name = f"blocks.{stage}.res_blocks.{index}"
            if index == 0:
                convolution(f"{name}.branch1_conv", wide, channels, 1, 1, 1)
                if wide != channels:
                    norm(f"{name}.branch1_norm", wide)
            convolution(f"{name}.branch2.conv_a", inner, channels, 1, 1, 1)
            norm(f"{name}.branch2.norm_a", inner)
            convolution(f"{name}.branch2.conv_b", inner, 1, 3, 3, 3)
            norm(f"{name}.branch2.norm_b.0", inner)
            if index % 2 == 0:
                for place, (out, into) in ((0, (SQUEEZED, inner)), (2, (inner, SQUEEZED))):
                    convolution(f"{name}.branch2.norm_b.1.block.{place}", out, into, 1, 1, 1)
                    weights[f"{name}.branch2.norm_b.1.block.{place}.bias"] = torch.randn(out, generator=generator)
            convolution(f"{name}.branch2.conv_c", wide, inner, 1, 1, 1)
            norm(f"{name}.branch2.norm_c", wide)
            channels = wide
    convolution("blocks.5.pool.pre_conv", 108, 48, 1, 1, 1)
    norm("blocks.5.pool.pre_norm", 108)
    convolution("blocks.5.pool.post_conv", HIDDEN, 108, 1, 1, 1)
    convolution("blocks.5.proj", classes, HIDDEN)
    weights["blocks.5.proj.bias"] = torch.randn(classes, generator=generator)
    return weights


def _computed(weights: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Maps (B, C, T, h, w) and logits (B, K) by the paper's table, from the weights alone."""

    def conv(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        around = [size // 2 for size in kernel.shape[2:]]
        return functional.conv3d(x, kernel, weights.get(f"{name}.bias"), (1, stride, stride), around, 1, groups)

    def norm(name: str, x: Tensor) -> Tensor:
        mean, variance, gain, bias = (
            weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, gain, bias)

    def block(name: str, x: Tensor, first: bool, gated: bool) -> Tensor:
        way = x
        if first:
            way = conv(f"{name}.branch1_conv", x, 2)
            if f"{name}.branch1_norm.weight" in weights:
                way = norm(f"{name}.branch1_norm", way)
        x = norm(f"{name}.branch2.norm_a", conv(f"{name}.branch2.conv_a", x)).clamp(min=0)
        x = conv(f"{name}.branch2.conv_b", x, 2 if first else 1, x.shape[1])
        x = norm(f"{name}.branch2.norm_b.0", x)
        if gated:
            seen = conv(f"{name}.branch2.norm_b.1.block.0", functional.adaptive_avg_pool3d(x, 1)).clamp(min=0)
            x = x * torch.sigmoid(conv(f"{name}.branch2.norm_b.1.block.2", seen))
        x = norm(f"{name}.branch2.norm_c", conv(f"{name}.branch2.conv_c", x * torch.sigmoid(x)))
        return (way + x).clamp(min=0)

    x = conv("blocks.0.conv.conv_t", x, 2)
    x = norm("blocks.0.norm", conv("blocks.0.conv.conv_xy", x, 1, 8)).clamp(min=0)
    for stage, (_, _, blocks) in enumerate(STAGES, 1):
        for index in range(blocks):
            x = block(f"blocks.{stage}.res_blocks.{index}", x, index == 0, index % 2 == 0)
    maps = norm("blocks.5.pool.pre_norm", conv("blocks.5.pool.pre_conv", x)).clamp(min=0)
    wide = conv("blocks.5.pool.post_conv", functional.adaptive_avg_pool3d(maps, 1)).clamp(min=0).flatten(1)
    return maps, functional.linear(wide, weights["blocks.5.proj.weight"], weights["blocks.5.proj.bias"])


def test_a_published_checkpoint_gives_what_its_weights_compute(tmp_path: Path) -> None:
    weights = _published()
    torch.save({"model_state": weights, "epoch": 3, "cfg": "TRAIN: {}"}, tmp_path / "X3D_S.pyth")
    model, clip = _net(), torch.randn(2, 3, FRAMES, *SIZE)
    with torch.no_grad():
        maps, logits = _computed(weights, clip)
        assert (model(clip) - logits).abs().max() > 0.1
        start_from(model, str(tmp_path / "X3D_S.pyth"))
        assert logits.std() > 0.1
        torch.testing.assert_close(model.forward_features(clip), maps, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(clip), logits, atol=1e-5, rtol=1e-5)


def test_every_weight_has_one_published_name() -> None:
    torch.manual_seed(0)
    with torch.device("meta"):
        model = make_encoder(TeacherConfig(encoder="x3d-s"), 400, Preprocess(size=(160, 160)), 13)
    names = {published_name(name): tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert len(names) == len(model.state_dict())
    assert names["blocks.0.conv.conv_t.weight"] == (24, 3, 1, 3, 3)
    assert names["blocks.0.conv.conv_xy.weight"] == (24, 1, 5, 1, 1)
    assert names["blocks.1.res_blocks.0.branch2.norm_b.1.block.0.weight"] == (8, 54, 1, 1, 1)
    assert "blocks.1.res_blocks.1.branch2.norm_b.1.block.0.weight" not in names
    assert names["blocks.4.res_blocks.6.branch2.norm_b.1.block.2.weight"] == (432, 32, 1, 1, 1)
    assert "blocks.4.res_blocks.7.branch2.conv_a.weight" not in names
    assert names["blocks.5.pool.post_conv.weight"] == (2048, 432, 1, 1, 1)
    assert names["blocks.5.proj.weight"] == (400, 2048)


def test_the_head_is_left_out_when_there_are_other_classes(tmp_path: Path) -> None:
    weights, model = _published(classes=7), _net()
    torch.save({"model_state": weights}, tmp_path / "seven.pyth")
    before = model.head.weight.clone()
    start_from(model, str(tmp_path / "seven.pyth"))
    assert torch.equal(model.head.weight, before)
    for name, tensor in model.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(tensor, weights[published_name(name)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth_factor": 2.0}, r"x3d-s: blocks\.1\.res_blocks\.1\.branch2\.conv_a\.weight is absent \(and \d+ more"),
        ({"depth_factor": 0.5}, r"x3d-s: blocks\.2\.res_blocks\.1\.branch2\.conv_a\.weight has no place in it \(and"),
        ({"width": 0.5}, r"conv_t\.weight has shape \(8, 3, 1, 3, 3\), expected \(16, 3, 1, 3, 3\) \(and \d+ more"),
        ({"encoder": "r2plus1d"}, r"do not fit r2plus1d: stem\.0\.weight is absent \(and \d+ more"),
    ],
)
def test_weights_of_another_net_are_one_line_that_names_the_first(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    torch.save({"model_state": _published()}, tmp_path / "x.pyth")
    config = TeacherConfig.model_validate({"encoder": "x3d-s", **NARROW, **settings})
    model = make_encoder(config, 3, Preprocess(size=SIZE), FRAMES)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=message) as refused:
        start_from(model, str(tmp_path / "x.pyth"))
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith("; check [teacher]")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_missing_and_a_foreign_weight_are_named(tmp_path: Path) -> None:
    weights = _published()
    del weights["blocks.5.pool.pre_norm.running_var"]
    torch.save({"model_state": weights}, tmp_path / "missing.pyth")
    with pytest.raises(UserError, match=r"x3d-s: blocks\.5\.pool\.pre_norm\.running_var is absent; check"):
        start_from(_net(), str(tmp_path / "missing.pyth"))
    torch.save({"model_state": {**_published(), "blocks.6.norm.weight": torch.zeros(3)}}, tmp_path / "extra.pyth")
    with pytest.raises(UserError, match=r"x3d-s: blocks\.6\.norm\.weight has no place in it; check"):
        start_from(_net(), str(tmp_path / "extra.pyth"))
    torch.save({"model_state": _published(), "folder": Path("runs")}, tmp_path / "pickle.pyth")
    with pytest.raises(UserError, match="hold more than tensors, which is not loaded for safety"):
        start_from(_net(), str(tmp_path / "pickle.pyth"))


def test_deeper_weights_of_our_own_names_are_not_cut_off_silently(tmp_path: Path) -> None:
    torch.save(_net(depth_factor=2.0).state_dict(), tmp_path / "deep.pth")
    with pytest.raises(UserError, match=r"x3d-s: stage1\.1\.\S+ has no place in it \(and \d+ more"):
        start_from(_net(), str(tmp_path / "deep.pth"))


def test_the_sizes_differ_in_depth_and_in_nothing_that_the_recipe_gives() -> None:
    assert TeacherConfig(encoder="x3d-m") == TeacherConfig(encoder="x3d-s").model_copy(update={"encoder": "x3d-m"})
    assert TeacherConfig(encoder="x3d-l").depth_factor == 5.0
    assert TeacherConfig(encoder="x3d-l", depth_factor=3.0).depth_factor == 3.0
    with torch.device("meta"):
        deep = [_net(encoder=name, depth_factor=factor).depths for name, factor in (("x3d-s", 2.2), ("x3d-l", 5.0))]
    assert deep == [[3, 5, 11, 7], [5, 10, 25, 15]]


def test_an_unknown_size_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown teacher\.encoder 'x3d' \(did you mean 'x3d-.'\?\); .*x3d-xs, x3d-s,"):
        _net(encoder="x3d")


def test_fresh_branches_pass_what_comes_in() -> None:
    model, x = _net(), torch.randn(1, 24, FRAMES, 4, 4).relu()
    block = model.get_submodule("stage3.1")
    assert torch.equal(block(x), x)
    nn.init.ones_(block.get_submodule("reduce.1").weight)  # type: ignore[arg-type]
    assert not torch.equal(block(x), x)


def test_blocks_freeze_and_slow_down_from_the_input_on() -> None:
    layers = _net().layers()
    assert layers == ["stem", "stage1.0", "stage2.0", "stage2.1", *(f"stage3.{i}" for i in range(5)),
                      *(f"stage4.{i}" for i in range(3)), "conv5", "fc1", "head"]  # fmt: skip
    rate = layer_rates(layers, FinetuneConfig(freeze=2, layer_decay=0.5))
    assert [rate(f"{name}.weight") for name in layers[:3]] == [0.0, 0.0, 0.0]
    assert rate("stage2.1.expand.0.weight") == 0.5**11
    assert [rate(f"{name}.weight") for name in ("conv5.0", "fc1", "head")] == [0.25, 0.5, 1.0]


def test_recomputed_blocks_give_the_same_gradients_and_statistics() -> None:
    torch.manual_seed(3)
    clip, found = torch.randn(2, 3, FRAMES, *SIZE), []
    for lean in (False, True):
        model = _net()
        start = {published: tensor.clone() for published, tensor in _published().items()}
        model.load_state_dict({name: start[published_name(name)] for name in model.state_dict()})
        blocks = blocks_of(model.train())
        assert len(blocks) == 10  # a stage of one block has nothing repeated
        undos = [recompute(block) for block in blocks] if lean else []
        model(clip).square().mean().backward()
        for undo in undos:
            undo()
        gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        found.append((gradients, dict(model.named_buffers())))
    (plain, buffers), (lean_gradients, lean_buffers) = found
    assert plain.keys() == lean_gradients.keys() == dict(_net().named_parameters()).keys()
    assert all(torch.equal(plain[name], lean_gradients[name]) for name in plain)
    assert all(torch.equal(buffers[name], lean_buffers[name]) for name in buffers)


def test_it_pretrains_with_each_objective_but_the_masked_one(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", train=2, val=1)
    teacher: dict[str, object] = {"encoder": "x3d-s", **NARROW}
    for name in ("contrastive", "autoencoder", "adversarial", "attributes"):
        assert resolve({name: 1.0}, {}).keys() == {name}
        optim: dict[str, object] = {"epochs": 1, "batch": 4, "objectives": {name: 1.0}, "settings": {}}
        out = pretrain(tiny_recipe(root, teacher=teacher, pretrain=optim), tmp_path / name)
        assert (out / "done.json").is_file()
    with pytest.raises(UserError, match="objective 'masked' does not apply to X3D"):
        pretrain(tiny_recipe(root, teacher=teacher), tmp_path / "masked")
