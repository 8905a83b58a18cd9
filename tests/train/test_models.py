"""Teacher, masked pretraining, distillation, pruning, counting and saving, each against an independent answer."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.train.test_student import _awake, _roll
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import PruneConfig, StudentConfig, TeacherConfig
from train.compress.distill import distillation_loss
from train.compress.prune import prune_student
from train.macs import measure
from train.models import Card, load_model, save_model
from train.models.student import build_student
from train.models.vit import Block, TubeletViT
from train.objectives.masked import MaskedAutoencoder, parted, picked, tube_mask

FRAME = (3, 32, 32)
TINY = TeacherConfig(dim=32, depth=2, heads=4, tubelet=(2, 8, 8))


def test_attention_equals_the_textbook_formula() -> None:
    torch.manual_seed(0)
    block = Block(32, 4, 2.0).eval()
    x = torch.randn(2, 5, 32)
    q, k, v = block.qkv(x).reshape(2, 5, 3, 4, 8).unbind(2)
    score = torch.einsum("bnhd,bmhd->bhnm", q, k) / 8**0.5
    want = block.proj(torch.einsum("bhnm,bmhd->bnhd", score.softmax(-1), v).reshape(2, 5, 32))
    torch.testing.assert_close(block.attend(x), want)


def test_the_reference_encoder_of_torch_gives_the_same_block() -> None:
    torch.manual_seed(0)
    block = Block(32, 4, 2.0).eval()
    reference = torch.nn.TransformerEncoderLayer(32, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    reference.self_attn.in_proj_weight.data = block.qkv.weight.data
    reference.self_attn.in_proj_bias.data = block.qkv.bias.data
    reference.self_attn.out_proj = block.proj  # type: ignore[assignment]
    reference.norm1, reference.norm2 = block.norm1, block.norm2
    reference.linear1, reference.linear2 = block.mlp[0], block.mlp[3]  # type: ignore[assignment]
    x = torch.randn(2, 5, 32)
    reference.train()  # the fused inference path has no gradient; dropout is 0
    torch.testing.assert_close(block(x), reference(x), atol=1e-5, rtol=1e-5)


def test_a_clip_must_be_whole_tubelets() -> None:
    with pytest.raises(UserError, match="not a whole number of tubelets"):
        TubeletViT(TINY, 3, (3, 30, 32), 4)
    with pytest.raises(UserError, match=r"not a multiple of teacher\.heads"):
        TubeletViT(TINY.model_copy(update={"heads": 5}), 3, FRAME, 4)


@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 5), st.floats(0.1, 0.9), st.integers(0, 99))
def test_picking_by_places_is_masking_bit_for_bit(batch: int, times: int, side: int, ratio: float, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    mask = tube_mask(batch, (times, side, side), ratio, draws)
    x = torch.randn(batch, mask.shape[1], 3, generator=draws, requires_grad=True)
    for places, chosen in zip(parted(mask), (~mask, mask), strict=True):
        got, want = picked(x, places), x[chosen].reshape(batch, -1, 3)
        assert torch.equal(got, want)
        weights = torch.randn(want.shape, generator=draws)
        grads = [torch.autograd.grad((part * weights).sum(), x, retain_graph=True)[0] for part in (got, want)]
        assert torch.equal(*grads)


def test_a_masked_autoencoder_answers_as_its_boolean_form_bit_for_bit() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(TubeletViT(TINY, 3, FRAME, 4), 32, 1)
    clip, mask = torch.randn(3, 3, 4, *FRAME[1:]), tube_mask(3, (2, 4, 4), 0.75, torch.Generator().manual_seed(1))
    seen = model.encoder.encode(model.encoder.tokens(clip)[~mask].reshape(3, -1, TINY.dim))
    places = model.get_buffer("positions").expand(3, -1, -1)
    shown = model.bridge(seen) + places[~mask].reshape(3, -1, 32)
    asked = model.hidden_token + places[mask].reshape(3, -1, 32)
    decoded = model.decoder(torch.cat([shown, asked], 1))[:, shown.shape[1] :]
    made, wanted = model.answers(clip, mask)
    assert torch.equal(made, model.predict(model.norm(decoded)))
    assert torch.equal(wanted, model.targets(clip)[mask].reshape(3, asked.shape[1], -1))
    with pytest.raises(AssertionError, match="same number"):
        parted(torch.tensor([[True, False], [True, True]]))


@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 4), times=st.integers(1, 4), side=st.integers(2, 5), ratio=st.floats(0.1, 0.95))
def test_tube_masks_hide_the_same_places_at_all_times(batch: int, times: int, side: int, ratio: float) -> None:
    mask = tube_mask(batch, (times, side, side), ratio, torch.Generator().manual_seed(0)).reshape(
        batch, times, side * side
    )
    assert (mask == mask[:, :1]).all()
    assert len(set(mask.sum((1, 2)).tolist())) == 1
    assert 0 < int(mask[0, 0].sum()) < side * side


def test_the_encoder_sees_visible_tubelets_only() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(TubeletViT(TINY, 3, FRAME, 4), 32, 1).eval()
    mask = tube_mask(1, (2, 4, 4), 0.5, torch.Generator().manual_seed(1))
    clip = torch.randn(1, 3, 4, 32, 32, requires_grad=True)
    tokens = model.encoder.tokens(clip)
    model.encoder.encode(tokens[~mask][None]).sum().backward()  # type: ignore[no-untyped-call]
    assert clip.grad is not None
    seen = clip.grad.abs().sum(1).reshape(2, 2, 4, 8, 4, 8).sum((1, 3, 5)).reshape(-1) > 0
    assert torch.equal(seen, ~mask[0])


def test_targets_are_normalised_pixels_of_each_tubelet() -> None:
    model = MaskedAutoencoder(TubeletViT(TINY, 3, FRAME, 4), 32, 1)
    clip = torch.randn(1, 3, 4, 32, 32)
    first = clip[0, :, :2, :8, 8:16].permute(1, 2, 3, 0).reshape(-1)  # second tubelet: time, row, column, channel
    want = (first - first.mean()) / (first.var() + 1e-6).sqrt()
    torch.testing.assert_close(model.targets(clip)[0, 1], want)


def test_masked_pretraining_learns_to_fill_in() -> None:
    torch.manual_seed(0)
    model = MaskedAutoencoder(TubeletViT(TINY, 3, FRAME, 4), 32, 1)
    wave = torch.linspace(0, 12, 32).sin()[None, None, None, None, :].expand(4, 3, 4, 32, 32) + 0.1 * torch.randn(
        4, 3, 4, 32, 32
    )
    mask = tube_mask(4, (2, 4, 4), 0.75, torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(160):
        optimizer.zero_grad()
        loss = model(wave, mask)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_distillation_loss_is_the_published_formula() -> None:
    torch.manual_seed(0)
    logits, teacher, labels = torch.randn(2, 1, 3), torch.randn(2, 3), torch.tensor([0, 2])
    got = distillation_loss(logits, labels, teacher, alpha=0.3, temperature=2.0)
    s, t = (logits[:, 0] / 2).log_softmax(1), (teacher / 2).softmax(1)
    soft = 4 * (t * (t.log() - s)).sum(1).mean()
    hard = -logits[:, 0].log_softmax(1)[[0, 1], labels].mean()
    torch.testing.assert_close(got, 0.7 * hard + 0.3 * soft)


def test_distillation_asks_every_frame_after_the_warm_up_and_none_before() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, requires_grad=True)
    distillation_loss(logits, torch.tensor([0, 2]), torch.randn(2, 3), 0.5, 2.0, warmup=2).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[:, :2].abs().max() == 0
    assert (logits.grad[:, 2:].abs().amax((0, 2)) > 0).all()


@pytest.mark.parametrize("many", [False, True], ids=["one label", "many labels"])
def test_distillation_is_the_sum_of_its_parts_written_out(many: bool) -> None:
    """The clip's answer counts for two thirds, the frames after the warm-up for one third together."""
    torch.manual_seed(1)
    logits, teacher, heat, frames = torch.randn(2, 5, 4), torch.randn(2, 4), 3.0, range(2, 5)
    labels = torch.tensor([[1.0, 0, 1, 0], [0, 0, 1, 1]]) if many else torch.tensor([3, 1])

    def asked(answer: Tensor, b: int) -> Tensor:
        if not many:
            s, t = (answer / heat).log_softmax(0), (teacher[b] / heat).log_softmax(0)
            return 0.4 * -answer.log_softmax(0)[labels[b]] + 0.6 * heat**2 * (t.exp() * (t - s)).sum()
        p, q, r = answer.sigmoid(), (answer / heat).sigmoid(), (teacher[b] / heat).sigmoid()
        hard = -(labels[b] * p.log() + (1 - labels[b]) * (1 - p).log())
        soft = r * (r.log() - q.log()) + (1 - r) * ((1 - r).log() - (1 - q).log())
        return (0.4 * hard + 0.6 * heat**2 * soft).mean()

    rows = [(asked(logits[b, 2:].mean(0), b), torch.stack([asked(logits[b, t], b) for t in frames])) for b in (0, 1)]
    want = torch.stack([2 / 3 * clip + 1 / 3 * frame.mean() for clip, frame in rows]).mean()
    torch.testing.assert_close(distillation_loss(logits, labels, teacher, 0.6, heat, warmup=2), want)


def test_a_perfect_copy_of_the_teacher_has_no_soft_loss() -> None:
    teacher = torch.randn(4, 3)
    logits = teacher[:, None].expand(4, 6, 3)
    assert distillation_loss(logits, torch.zeros(4, dtype=torch.long), teacher, 1.0, 3.0).abs() < 1e-6


@pytest.mark.parametrize("temporal", ["shift", "conv"])
@pytest.mark.parametrize("readout", ["average", "motion"])
@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_pruning_keeps_stream_equal_to_clip(temporal: str, readout: str, importance: str) -> None:
    config = StudentConfig.model_validate(
        {"width": 0.5, "depth": 0.4, "temporal": temporal, "readout": readout, "look_back": True}
    )
    model = _awake(build_student(config, 3, FRAME, 4))
    before = measure(model)
    clip = torch.randn(2, 4, *FRAME)
    settings_ = PruneConfig.model_validate({"ratio": 0.4, "round_to": 8, "importance": importance})
    prune_student(model, settings_, lambda: model(clip).square().mean())
    after = measure(model)
    assert after.macs < 0.85 * before.macs
    assert after.parameters < before.parameters
    widths = [module.out_channels for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths), widths
    with torch.no_grad():
        assert (model(clip) - _roll(model, clip)).abs().max() < 1e-4


@pytest.mark.parametrize("temporal", ["shift", "conv"])
def test_a_pruned_student_is_saved_and_rebuilt_exactly(temporal: str, tmp_path: Path) -> None:
    config = StudentConfig.model_validate({"width": 0.5, "depth": 0.4, "temporal": temporal})
    model = _awake(build_student(config, 3, FRAME, 4))
    prune_student(model, PruneConfig(ratio=0.4))
    card = Card(
        kind="student",
        config=config.model_dump(mode="json"),
        labels=("a", "b", "c"),
        preprocess=Preprocess(size=(32, 32)),
        frames=4,
    )
    save_model(tmp_path, model, card)
    loaded = load_model(tmp_path)
    clip = torch.randn(1, 4, *FRAME)
    assert loaded.contract == model.contract()
    assert measure(loaded.model) == measure(model)
    with torch.no_grad():
        assert torch.equal(loaded.model(clip), model(clip))


def test_a_damaged_model_is_one_clear_line(tmp_path: Path) -> None:
    config = StudentConfig(width=0.25, depth=0.4)
    card = Card(
        kind="student",
        config=config.model_dump(mode="json"),
        labels=("a", "b"),
        preprocess=Preprocess(size=(32, 32)),
        frames=4,
    )
    save_model(tmp_path, build_student(config, 2, FRAME, 4), card)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(UserError, match="is damaged"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    raw = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({**raw, "labels": ["a", "b", "c"]}))
    with pytest.raises(UserError, match=r"do not fit model\.json"):
        load_model(tmp_path)


def test_macs_are_those_of_a_count_by_hand() -> None:
    vit = TubeletViT(TINY, 3, FRAME, 4)
    tokens, dim = 2 * 4 * 4, 32
    embed = tokens * dim * 3 * 2 * 8 * 8
    block = tokens * dim * 3 * dim + tokens * dim * dim + 2 * tokens * dim * 4 * dim + 2 * tokens * tokens * dim
    assert measure(vit).macs == embed + 2 * block + dim * 3
    assert measure(vit).parameters == sum(p.numel() for p in vit.parameters())
