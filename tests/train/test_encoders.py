"""Every encoder of the registry: published sizes, one protocol, inflation, divided attention, one epoch of training."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tests.train.synthetic import tiny_recipe, write_data
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import Recipe, TeacherConfig, load_recipe
from train.macs import measure
from train.models import Card, load_model, save_model
from train.models.attention import DividedBlock, attention
from train.models.i3d import I3D, inflate
from train.models.pretrained import start_from
from train.models.registry import ENCODERS, Encoder, make_encoder
from train.models.store import ClipModel
from train.objectives.masked import tube_mask
from train.stages import distill, finetune, pretrain

NAMES = sorted(set(ENCODERS) - {"hf"})
PICTURES = Preprocess(size=(32, 32))
#: Small enough for a test; the presets of the ViTs are overridden.
SMALL: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 2, "tubelet": (2, 8, 8), "width": 0.0625}


def _small(name: str, frames: int = 4, **settings: Any) -> ClipModel:
    torch.manual_seed(0)
    return make_encoder(TeacherConfig(encoder=name, **{**SMALL, **settings}), 3, PICTURES, frames).eval()


def layer_of(parameter: str, layers: list[str]) -> int:
    """The one layer that a parameter belongs to."""
    (found,) = [index for index, prefix in enumerate(layers) if f"{parameter}.".startswith(f"{prefix}.")]
    return found


@pytest.mark.parametrize(
    ("name", "frames", "side", "classes", "millions", "gmacs"),
    [
        ("c3d", 16, 112, 101, (78.0, 78.5), (38.4, 38.6)),
        ("i3d", 64, 224, 400, (12.0, 13.0), (105.0, 112.0)),  # 108 in the literature, 111.2 counted
        ("r2plus1d", 16, 112, 400, (31.5, 31.51), (40.4, 40.6)),
        ("vit-s", 16, 224, 400, (22.0, 22.1), (56.0, 58.0)),
        ("vit-b", 16, 224, 400, (86.0, 87.0), (179.0, 181.0)),
        ("vit-l", 16, 224, 400, (304.0, 305.0), (596.0, 598.0)),
        ("x3d-xs", 4, 160, 400, (3.76, 3.80), (0.595, 0.61)),
        ("x3d-s", 13, 160, 400, (3.76, 3.80), (1.955, 1.965)),
        ("x3d-m", 16, 224, 400, (3.76, 3.80), (4.725, 4.735)),
        ("x3d-l", 16, 312, 400, (6.08, 6.16), (18.36, 18.38)),
    ],
)
def test_sizes_are_the_published_ones(
    name: str, frames: int, side: int, classes: int, millions: tuple[float, float], gmacs: tuple[float, float]
) -> None:
    with torch.device("meta"):
        model = make_encoder(TeacherConfig(encoder=name), classes, Preprocess(size=(side, side)), frames)
    size = measure(model)
    assert millions[0] <= size.parameters / 1e6 <= millions[1]
    assert gmacs[0] <= size.macs / 1e9 <= gmacs[1]


def test_c3d_has_eight_convolutions_of_3x3x3() -> None:
    convolutions = [module for module in _small("c3d").modules() if isinstance(module, nn.Conv3d)]
    assert [convolution.kernel_size for convolution in convolutions] == [(3, 3, 3)] * 8


@pytest.mark.parametrize("settings", [{}, {"attention": "divided"}, {"merge": 3}])
@pytest.mark.parametrize("name", NAMES)
def test_macs_are_those_of_torchs_own_counter(name: str, settings: dict[str, Any]) -> None:
    with torch.device("meta"):  # on the CPU that counter does not know the fused attention kernel (torch 2.13)
        model = _small(name, 8, **settings)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 8, 32, 32, device="meta"))
    assert measure(model).macs * 2 == counter.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
def test_every_encoder_keeps_the_protocol(name: str) -> None:
    model, clip = _small(name), torch.randn(2, 3, 4, 32, 32)
    assert isinstance(model, Encoder)
    with torch.no_grad():
        features, embedding, logits = model.forward_features(clip), model.embed(clip), model(clip)
    assert features.shape[0] == 2
    assert features.shape[1 if features.ndim == 5 else 2] == model.channels
    assert embedding.shape == (2, model.width)
    torch.testing.assert_close(model.head(embedding), logits)
    assert model.contract().input_shape == (3, 4, 32, 32)
    assert model.contract().classes == logits.shape[1] == 3


@pytest.mark.parametrize("name", NAMES)
def test_one_clip_answers_as_in_a_batch(name: str) -> None:
    model, clips = _small(name), torch.randn(3, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(clips)[1:2], model(clips[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_layers_cover_all_parameters_from_input_to_head(name: str) -> None:
    model = _small(name)
    layers = model.layers()
    found = [layer_of(parameter, layers) for parameter, _ in model.named_parameters()]
    assert sorted(set(found)) == list(range(len(layers)))
    assert layers[-1] == "head"
    order: list[str] = []  # the layers in the order in which they really run
    for prefix in layers:
        model.get_submodule(prefix).register_forward_hook(lambda *_, prefix=prefix: order.append(prefix))
    model(torch.zeros(1, 3, 4, 32, 32))
    assert order == layers


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_encoder_is_the_same_when_loaded(name: str, tmp_path: Path) -> None:
    model = _small(name)
    card = Card(kind="teacher", config=model.config.model_dump(mode="json"), labels=("a", "b", "c"),
                preprocess=PICTURES, frames=4)  # fmt: skip
    save_model(tmp_path, model, card)
    loaded = load_model(tmp_path).model
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(clip), model(clip))
    fresh = _small(name)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    start_from(fresh, str(tmp_path))
    with torch.no_grad():
        assert torch.equal(fresh(clip), model(clip))


def test_an_unknown_encoder_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"unknown teacher\.encoder 'vit-x' \(did you mean 'vit-[sbl]'\?\); encoders: c3d,"
    ):
        _small("vit-x")


def test_listing_the_encoders_imports_no_torch() -> None:
    code = "import sys; from train.models.registry import ENCODERS; print(len(ENCODERS), 'torch' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert out.stdout.split() == [str(len(ENCODERS)), "False"]


def test_what_the_recipe_gives_wins_over_a_preset() -> None:
    assert TeacherConfig(encoder="vit-b").dim == 768
    assert TeacherConfig(encoder="vit-b", depth=3).depth == 3
    saved = TeacherConfig(encoder="vit-b", depth=3).model_dump(mode="json")
    assert TeacherConfig.model_validate(saved).depth == 3
    assert Recipe().teacher == TeacherConfig(encoder="vit", dim=192, depth=6, heads=3)


def test_a_recipe_finds_weights_beside_itself_and_leaves_hub_names_alone(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    (tmp_path / "vit").mkdir()
    recipe = tmp_path / "recipe.toml"

    def teacher(text: str, *overrides: str) -> TeacherConfig:
        recipe.write_text(f"[teacher]\n{text}\n")
        return load_recipe(recipe, overrides).teacher

    assert teacher('pretrained = "weights.pth"').pretrained == str(tmp_path / "weights.pth")
    assert teacher('pretrained = "owner/model"').pretrained == "owner/model"
    assert teacher("", "teacher.pretrained=weights.pth").pretrained == "weights.pth"
    assert teacher('encoder = "hf:vit"').encoder == f"hf:{tmp_path / 'vit'}"
    assert teacher('encoder = "vit"').encoder == "vit"


def _picture_net(blocks: Iterable[str], x_BCHW: Tensor) -> Tensor:
    """GoogLeNet with batch norm, written from torchvision's names: logits (B, K) of pictures."""

    def conv(name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = WEIGHTS[f"{name}.conv.weight"]
        x = functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, variance, gain, bias = (
            WEIGHTS[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, variance, gain, bias, eps=0.001).relu()

    def block(name: str, x: Tensor) -> Tensor:
        pooled = functional.max_pool2d(x, 3, 1, 1)
        return torch.cat(
            [
                conv(f"{name}.branch1", x),
                conv(f"{name}.branch2.1", conv(f"{name}.branch2.0", x)),
                conv(f"{name}.branch3.1", conv(f"{name}.branch3.0", x)),
                conv(f"{name}.branch4.1", pooled),
            ],
            1,
        )

    x = functional.max_pool2d(conv("conv1", x_BCHW, 2), 3, 2, ceil_mode=True)
    x = functional.max_pool2d(conv("conv3", conv("conv2", x)), 3, 2, ceil_mode=True)
    for name in blocks:
        x = block(name, x)
        if name == "inception3b":
            x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        if name == "inception4e":
            x = functional.max_pool2d(x, 2, 2, ceil_mode=True)
    return functional.linear(x.mean((2, 3)), WEIGHTS["fc.weight"], WEIGHTS["fc.bias"])


WEIGHTS: dict[str, Tensor] = {}


def _picture_weights(model: I3D) -> dict[str, Tensor]:
    """Random 2-D weights with the shapes of the 3-D net."""
    generator = torch.Generator().manual_seed(1)
    weights = {}
    for name, tensor in model.state_dict().items():
        shape = tensor.shape[:2] + tensor.shape[3:] if tensor.ndim == 5 else tensor.shape
        fan = max(1, shape[1:].numel())
        noise = torch.randn(shape, generator=generator)
        name = name.replace("head.", "fc.")
        weights[name] = (
            noise.abs() + 0.5 if "var" in name else noise * (2 / fan) ** 0.5 if fan > 1 else 0.1 * noise + 0.9
        )
    return weights


def test_an_inflated_net_answers_a_still_video_as_the_2d_net_answers_its_picture(tmp_path: Path) -> None:
    from train.models.i3d import INCEPTION

    model = make_encoder(TeacherConfig(encoder="i3d", width=0.25), 3, Preprocess(size=(76, 60)), 11).eval()
    assert isinstance(model, I3D)
    WEIGHTS.update(_picture_weights(model))
    picture = torch.randn(2, 3, 76, 60)
    with torch.no_grad():
        want = _picture_net(INCEPTION, picture)
        still = picture[:, :, None].expand(-1, -1, 11, -1, -1)
        assert (model(still) - want).abs().max() > 0.01
        inflate(model, WEIGHTS)
        assert want.std() > 0.01
        torch.testing.assert_close(model(still), want, atol=1e-4, rtol=1e-4)
        moving = still + 0.5 * torch.randn(2, 3, 11, 76, 60)
        assert (model(moving) - want).abs().max() > 0.01
    save_file({name: tensor.contiguous() for name, tensor in WEIGHTS.items()}, tmp_path / "googlenet.safetensors")
    again = make_encoder(TeacherConfig(encoder="i3d", width=0.25), 3, Preprocess(size=(76, 60)), 11).eval()
    start_from(again, str(tmp_path / "googlenet.safetensors"))
    with torch.no_grad():
        assert torch.equal(again(still), model(still))


def test_weights_of_another_net_do_not_inflate() -> None:
    model = _small("i3d")
    assert isinstance(model, I3D)
    with pytest.raises(UserError, match=r"no GoogLeNet of this width: conv1\.conv\.weight is absent"):
        inflate(model, {"features.0.weight": torch.zeros(4, 3, 3, 3)})
    weights = _picture_weights(model)
    weights["conv2.conv.weight"] = torch.zeros(9, 9, 1, 1)
    with pytest.raises(UserError, match=r"conv2\.conv\.weight has shape \(9, 9, 1, 1\)"):
        inflate(model, weights)


def _masked(block: DividedBlock, qkv: Tensor, may_BNN: Tensor) -> Tensor:
    """Joint attention in which a token sees only where ``may`` is true."""
    mask = torch.where(may_BNN, 0.0, float("-inf"))[None, None]
    return attention(qkv, block.heads, mask)[0]


def test_divided_attention_is_joint_attention_with_the_rest_hidden() -> None:
    torch.manual_seed(0)
    times, places, dim = 3, 5, 16
    block = DividedBlock(dim, 2, 2.0, times).eval()
    nn.init.normal_(block.time_out.weight, std=0.2)
    x = torch.randn(2, times * places, dim)
    time, place = torch.arange(times * places) // places, torch.arange(times * places) % places
    over_time = _masked(block, block.time_qkv(x), place[:, None] == place[None])
    torch.testing.assert_close(block.attend_time(x), block.time_out(block.time_proj(over_time)))
    over_space = _masked(block, block.qkv(x), time[:, None] == time[None])
    torch.testing.assert_close(block.attend(x), block.proj(over_space))


def test_divided_attention_starts_as_attention_in_space_only() -> None:
    model, clip = _small("vit", attention="divided"), torch.randn(1, 3, 4, 32, 32)
    changed = clip.clone()
    changed[:, :, 2:] += 1
    with torch.no_grad():
        a, b = model.forward_features(clip), model.forward_features(changed)
    assert torch.equal(a[:, :16], b[:, :16])
    assert not torch.allclose(a[:, 16:], b[:, 16:])


@pytest.mark.parametrize("name", ["c3d", "i3d", "r2plus1d", "vit-s", "x3d-s"])
def test_any_encoder_is_fine_tuned_and_teaches(name: str, tmp_path: Path) -> None:
    teacher = {"encoder": name, **SMALL, "dropout": 0.1}
    one: dict[str, object] = {"epochs": 1, "batch": 4}
    recipe = tiny_recipe(
        write_data(tmp_path / "data", train=4, val=2), teacher=teacher, finetune={**one, "freeze": 1}, distill=one
    )
    folder = finetune(recipe, tmp_path / "teacher")
    torch.manual_seed(recipe.finetune.seed)
    fresh = make_encoder(recipe.teacher, 2, recipe.preprocess, recipe.data.frames)
    trained = load_model(folder).model
    layers = fresh.layers()
    changed = {
        layer_of(parameter, layers)
        for (parameter, before), after in zip(fresh.named_parameters(), trained.parameters(), strict=True)
        if not torch.equal(before, after)
    }
    assert changed == set(range(2, len(layers)))  # the input layer and one block were frozen
    assert (distill(recipe, tmp_path / "student", folder) / "model.safetensors").is_file()


def test_fine_tuning_starts_from_the_recipes_weights_and_notices_when_they_change(tmp_path: Path) -> None:
    root, weights = write_data(tmp_path / "data", train=4, val=1), tmp_path / "weights.safetensors"
    save_file(_small("r2plus1d").state_dict(), weights)
    tuning: dict[str, object] = {"epochs": 1, "batch": 4, "lr": 1e-9, "weight_decay": 0.0}
    teacher = {"encoder": "r2plus1d", **SMALL, "pretrained": str(weights)}
    recipe = tiny_recipe(root, teacher=teacher, finetune=tuning)
    out = finetune(recipe, tmp_path / "teacher")
    state, before = load_file(out / "model.safetensors"), load_file(weights)
    torch.testing.assert_close(state["layer3.1.conv2.0.0.weight"], before["layer3.1.conv2.0.0.weight"])
    done = (out / "done.json").read_text()
    finetune(recipe, out)
    assert (out / "done.json").read_text() == done
    save_file({name: tensor + 1 for name, tensor in before.items()}, weights)
    finetune(recipe, out)
    assert (out / "done.json").read_text() != done
    weights.unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors do not exist"):
        finetune(recipe, out)


def test_divided_attention_needs_no_token_that_a_tube_mask_hides() -> None:
    torch.manual_seed(0)
    block = DividedBlock(32, 2, 2.0, 2).eval()
    nn.init.normal_(block.time_out.weight, std=0.2)
    visible = ~tube_mask(1, (2, 4, 4), 0.75, torch.Generator().manual_seed(0))[0]
    tokens = torch.randn(1, 32, 32)
    torch.testing.assert_close(block.attend_time(tokens[:, visible]), block.attend_time(tokens)[:, visible])


def test_masked_pretraining_takes_divided_attention_and_refuses_a_cnn(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", train=4, val=1)
    one: dict[str, object] = {"epochs": 1, "batch": 4}
    recipe = tiny_recipe(root, teacher={"attention": "divided"}, pretrain=one)
    assert (pretrain(recipe, tmp_path / "divided") / "done.json").is_file()
    with pytest.raises(UserError, match=r"objective 'masked' does not apply to C3D"):
        pretrain(tiny_recipe(root, teacher={"encoder": "c3d", "width": 0.0625}, pretrain=one), tmp_path / "cnn")
