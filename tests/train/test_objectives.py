"""Objectives: which there are, that each one teaches every encoder it applies to, and that a run of them resumes."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from tests.train.synthetic import tiny_recipe, write_data
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import PretrainConfig, TeacherConfig
from train.data.batch import Batch
from train.data.clips import Augment, Pictures
from train.loop import Plan, fit
from train.models.vit import TubeletViT
from train.objectives import OBJECTIVES, Mixture, applying, resolve
from train.objectives.features import Encoder
from train.outlook import outlook
from train.stages import pretrain
from train.stages.pretrain import view_clips

CLIP = (3, 4, 16, 16)


class Cnn(nn.Module):
    """A 3-D CNN without tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 6, 3, (1, 4, 4), 1)
        self.norm = nn.BatchNorm3d(6)

    def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(clip_BCTHW)).relu()
        return out

    def embed(self, clip_BCTHW: Tensor) -> Tensor:
        return self.forward_features(clip_BCTHW).mean((2, 3, 4))


def vit() -> TubeletViT:
    return TubeletViT(TeacherConfig(dim=16, depth=1, heads=2, tubelet=(2, 4, 4)), 2, (3, 16, 16), 4)


def batch_of(clips_BVCTHW: Tensor, **meta: Tensor) -> Batch:
    count = len(clips_BVCTHW)
    pictures = torch.zeros(count, 1, 1, 1, 1, 3, dtype=torch.uint8)
    return Batch(pictures, torch.zeros(count, dtype=torch.int64), torch.arange(count), meta)


def some_clips(count: int = 4, views: int = 2) -> Tensor:
    return torch.rand(count, views, *CLIP, generator=torch.Generator().manual_seed(0)) * 2 - 1


def mixture(encoder: Encoder, weights: dict[str, float], settings: dict[str, dict[str, object]]) -> Mixture:
    return Mixture(encoder, weights, resolve(weights, settings), CLIP)


def test_every_objective_keeps_the_registrys_convention() -> None:
    for name, path in OBJECTIVES.items():
        module = importlib.import_module(path)
        assert module.Config.model_config["frozen"], name
        assert "arXiv" in (module.__doc__ or "") or "Science" in (module.__doc__ or ""), f"{name} cites no paper"
        assert module.unfit(vit()) is None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_teaches_every_encoder_it_applies_to(name: str) -> None:
    for encoder in (vit(), Cnn()):
        if name not in applying(encoder):
            continue
        torch.manual_seed(0)
        small: dict[str, dict[str, object]] = {
            "adversarial": {"decoder": "convolutions", "width": 8, "critic_width": 4},
            "autoencoder": {},
        }
        model = mixture(encoder, {name: 1.0}, {key: value for key, value in small.items() if key == name})
        clips, optimizer = some_clips(), torch.optim.AdamW(model.parameters(), 3e-3)
        losses = []
        for _ in range(25):
            parts = model(clips, torch.Generator().manual_seed(0), batch_of(clips))
            optimizer.zero_grad()
            parts["loss"].backward()
            assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
            optimizer.step()
            losses.append(parts["loss"].item())
        assert losses[-1] < 0.97 * losses[0], f"{name} does not learn one batch by heart: {losses}"


def test_tubes_cannot_be_hidden_from_a_cnn_and_the_message_names_what_applies() -> None:
    with pytest.raises(UserError) as caught:
        mixture(Cnn(), {"masked": 1.0}, {})
    assert str(caught.value) == (
        "objective 'masked' does not apply to Cnn: tubes can only be hidden from an encoder of tokens (a tubelet ViT); "
        "use adversarial, attributes, autoencoder, contrastive"
    )


def test_an_encoder_whose_tokens_have_no_place_is_reconstructed_from_one_vector() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = vit()

        def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
            return self.vit.forward_features(clip_BCTHW)

        def embed(self, clip_BCTHW: Tensor) -> Tensor:
            return self.vit.embed(clip_BCTHW)

    clips = some_clips()
    for name in ("autoencoder", "adversarial"):
        with pytest.raises(UserError, match=r"Bag does not say where its tokens lie in the clip: .*whole = true"):
            mixture(Bag(), {name: 1.0}, {})
        model = mixture(Bag(), {name: 1.0}, {name: {"whole": True}})
        assert model(clips, torch.Generator(), batch_of(clips))["loss"].isfinite()


@pytest.mark.parametrize(
    ("weights", "settings", "message"),
    [
        ({}, {}, "pretrain.objectives is empty"),
        ({"contrastiv": 1.0}, {}, r"unknown objective 'contrastiv' \(did you mean 'contrastive'\?\)"),
        ({"masked": 0.0}, {}, r"pretrain.objectives.masked = 0.0: a weight is above 0"),
        ({"masked": float("nan")}, {}, "a weight is above 0"),
        ({"masked": 1.0}, {"contrastive": {}}, "pretrain.settings.contrastive: this objective has no weight"),
        ({"masked": 1.0}, {"masked": {"mask_rate": 0.9}}, r"masked.mask_rate: unknown key \(did you mean 'mask_ratio'"),
        ({"masked": 1.0}, {"masked": {"mask_ratio": 1.5}}, "masked.mask_ratio: Input should be less than 1"),
        ({"contrastive": 1.0}, {"contrastive": {"queue": 8}}, "a queue holds the keys of a momentum encoder"),
        ({"contrastive": 1.0}, {"contrastive": {"augment": {"area": 2}}}, r"contrastive.augment.area: Input should be"),
        ({"autoencoder": 1.0}, {"autoencoder": {"width": 8}}, 'set decoder = "convolutions", or leave width out'),
        ({"attributes": 1.0}, {"attributes": {"asks": []}}, "nothing is asked"),
        ({"attributes": 1.0}, {"attributes": {"bounds": [0.5, 0.1]}}, "must rise"),
    ],
)
def test_a_mistake_in_the_recipe_is_one_clear_line(
    weights: dict[str, float], settings: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve(weights, settings)
    assert "\n" not in str(caught.value)


def test_a_mixture_is_the_weighted_sum_and_holds_the_encoder_once() -> None:
    encoder = vit()
    weights = {"masked": 0.5, "contrastive": 2.0, "autoencoder": 1.0}
    model = mixture(encoder, weights, {"contrastive": {"momentum": 0.9, "queue": 4}})
    clips = some_clips()
    parts = model(clips, torch.Generator().manual_seed(0), batch_of(clips))
    assert parts["loss"].item() == pytest.approx(sum(w * parts[n].item() for n, w in weights.items()), rel=1e-6)
    assert model.views == 2
    state = model.state_dict()
    count = sum(name.endswith("blocks.0.qkv.weight") and "follower" not in name for name in state)
    assert count == 1
    save(state)  # refuses tensors that are there twice
    assert {id(p) for p in encoder.parameters()} <= {id(p) for p in model.parameters()}


SOURCE = Pictures(
    np.random.default_rng(0).integers(0, 256, (12, 4, 16, 16, 3), dtype=np.uint8), np.zeros(12, np.int64), ("",) * 12
)


def _run(out: Path, stop_at: int | None = None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    weights = {"contrastive": 1.0, "adversarial": 1.0}
    settings: dict[str, dict[str, object]] = {
        "contrastive": {"momentum": 0.9, "queue": 12},
        "adversarial": {"decoder": "convolutions", "width": 8, "critic_width": 4},
    }
    model = mixture(vit(), weights, settings)
    augment = Augment(Preprocess(size=(16, 16)), ("a",), True, {})
    calls = [0]

    def loss(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if calls[0] == stop_at:
            raise KeyboardInterrupt
        calls[0] += 1
        parts: dict[str, Tensor] = model(view_clips(batch, augment, generator), generator, batch)
        return parts

    config = PretrainConfig(epochs=2, batch=4, lr=1e-3)
    fit(Plan("toy", model, loss, config, every_s=0.0, views=model.views, after_step=model.after_step), SOURCE, out)
    return model.state_dict()


@pytest.mark.parametrize("stop", [1, 4])
def test_momentum_queue_and_discriminator_resume_bit_for_bit(stop: int, tmp_path: Path) -> None:
    whole = _run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "cut", stop_at=stop)
    resumed = _run(tmp_path / "cut")
    assert any("follower" in name for name in whole)
    assert any(name.endswith("queue") for name in whole)
    assert any(name.endswith("_u") for name in whole), "the spectral norm's vectors are state too"
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_views_of_one_video_share_the_mirror() -> None:
    ramp = np.broadcast_to(np.arange(0, 256, 16, dtype=np.uint8)[None, :, None], (16, 16, 3))
    data = Pictures(np.broadcast_to(ramp, (16, 4, 16, 16, 3)), np.zeros(16, np.int64), ("",) * 16)
    augment = Augment(Preprocess(size=(16, 16)), ("a",), True, {})
    clips = view_clips(data.batch(range(16), 0, views=2), augment, torch.Generator().manual_seed(0))
    assert clips.shape == (16, 2, 3, 4, 16, 16)
    rises = (clips[..., -1] > clips[..., 0]).float().mean((2, 3, 4))
    assert torch.equal(rises[:, 0], rises[:, 1])
    assert 0 < rises.mean() < 1, "some are mirrored, some are not"


def test_the_stage_trains_a_mixture_and_saves_the_settings_it_used(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", train=4, val=1)
    recipe = tiny_recipe(
        root,
        pretrain={
            "epochs": 1,
            "batch": 4,
            "objectives": {"masked": 1.0, "attributes": 0.5},
            "settings": {"masked": {"decoder_dim": 32, "decoder_depth": 1}},
        },
    )
    out = pretrain(recipe, tmp_path / "out")
    saved = json.loads((out / "recipe.json").read_text())["pretrain"]
    assert saved["objectives"] == {"masked": 1.0, "attributes": 0.5}
    assert saved["settings"]["masked"]["mask_ratio"] == 0.75
    assert saved["settings"]["attributes"]["sectors"] == 8
    weights = load_file(out / "model.safetensors")
    assert set(weights) == set(TubeletViT(recipe.teacher, 2, (3, 32, 32), 4).state_dict())
    with pytest.raises(UserError, match="unknown objective"):
        pretrain(tiny_recipe(root, pretrain={"objectives": {"rotation": 1.0}}), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_plan_counts_the_passes_of_the_objectives(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    plain, contrastive, both = (
        outlook(
            recipe.model_copy(update={"pretrain": PretrainConfig(objectives=weights)}), "pretrain", ("a", "b"), None
        ).forward_gflops
        for weights in ({"attributes": 1.0}, {"contrastive": 1.0}, {"attributes": 1.0, "masked": 1.0})
    )
    assert contrastive == pytest.approx(3 * plain, rel=1e-3)
    assert both > plain


def test_the_stage_trains_a_cnn_with_what_applies_to_it(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", train=4, val=1)
    cnn: dict[str, object] = {"encoder": "r2plus1d", "width": 0.0625}
    with pytest.raises(UserError, match="objective 'masked' does not apply to R2Plus1D"):
        pretrain(tiny_recipe(root, teacher=cnn), tmp_path / "masked")
    settings = {"contrastive": {"momentum": 0.9, "queue": 8}}
    optim = {"epochs": 1, "batch": 4, "objectives": {"contrastive": 1.0}, "settings": settings}
    out = pretrain(tiny_recipe(root, teacher=cnn, pretrain=optim), tmp_path / "out")
    assert json.loads((out / "done.json").read_text())["stage"] == "pretrain"
    assert not any("follower" in name for name in load_file(out / "model.safetensors"))
