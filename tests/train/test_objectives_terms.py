"""The terms of the objectives against values computed in another way."""

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.train.test_objectives import CLIP, Cnn, batch_of, some_clips, vit
from train.objectives import adversarial, autoencoder, contrastive, masked
from train.objectives.decoder import ClipDecoder, LinearDecoder, strides
from train.objectives.views import Strength, strong

PLAIN = Strength(area=1, colour=0, grey=0, blur=0)


def _unit(count: int, dim: int, seed: int) -> Tensor:
    return functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_info_nce_equals_numpy() -> None:
    query, key = _unit(5, 8, 0), _unit(9, 8, 1)
    hidden = torch.zeros(5, 9, dtype=torch.bool)
    hidden[2, 7] = hidden[0, 3] = True
    loss, _ = contrastive.info_nce(query, key, 0.2, hidden)
    q, k, terms = query.double().numpy(), key.double().numpy(), []
    for i in range(5):
        scores = {j: np.exp(q[i] @ k[j] / 0.2) for j in range(9) if not hidden[i, j]}
        terms.append(-np.log(scores[i] / sum(scores.values())))
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)


def test_info_nce_knows_no_difference_between_equal_vectors() -> None:
    same = _unit(1, 8, 0).expand(6, 8)
    loss, _ = contrastive.info_nce(same, same, 0.1, torch.eye(6, dtype=torch.bool).roll(3, 1))
    assert loss.item() == pytest.approx(np.log(5), rel=1e-5)


def test_without_momentum_the_loss_is_simclrs_nt_xent() -> None:
    torch.manual_seed(0)
    encoder = vit()
    model = contrastive.build(encoder, contrastive.Config(reversed=False, augment=PLAIN, temperature=0.5), CLIP)
    clips = some_clips(3)
    found = model(clips, torch.Generator(), batch_of(clips))["loss"].item()
    with torch.no_grad():
        flat = clips.transpose(0, 1).flatten(0, 1)  # 3 first views, then 3 second views
        z = functional.normalize(model.projector(encoder.forward_features(flat).mean(1)), dim=1).double().numpy()
    terms = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        scores = np.exp(z[others] @ z[i] / 0.5)
        terms.append(-np.log(scores[others.index((i + 3) % 6)] / scores.sum()))
    assert found == pytest.approx(np.mean(terms), rel=1e-5)


def test_reversed_clips_are_negatives_only_where_time_has_a_direction() -> None:
    torch.manual_seed(0)
    model = contrastive.build(vit(), contrastive.Config(augment=PLAIN), CLIP).eval()
    plain = contrastive.build(model.encoder, contrastive.Config(reversed=False, augment=PLAIN), CLIP)
    plain.projector = model.projector
    clips = some_clips(3)
    with_, without = (m(clips, torch.Generator(), batch_of(clips))["loss"] for m in (model, plain))
    assert with_ > without, "three more negatives"


def test_a_batch_norm_does_not_give_the_reversed_clips_away() -> None:
    """This encoder is blind to time, so a reversed clip must be as like as the clip itself: no better than a guess."""
    torch.manual_seed(0)
    encoder = Cnn()
    encoder.conv = nn.Conv3d(3, 6, (1, 3, 3), (1, 4, 4), (0, 1, 1))
    model = contrastive.build(encoder, contrastive.Config(augment=PLAIN), CLIP).train()
    clips = some_clips(3)
    found = model(clips, torch.Generator(), batch_of(clips))["loss"].item()
    with torch.no_grad():
        whole = torch.cat([clips[:, 0], clips[:, 1], clips[:, 1]])
        keys = functional.normalize(model.projector(encoder.embed(whole)), dim=1).double()
    scores = (keys[:6] @ keys.T / 0.1).masked_fill(torch.eye(6, 9, dtype=torch.bool), -torch.inf)
    want = functional.cross_entropy(scores, torch.tensor([3, 4, 5, 0, 1, 2])).item()
    assert found == pytest.approx(want, rel=1e-4)


def test_the_follower_has_no_gradient_and_follows_by_the_momentum() -> None:
    torch.manual_seed(0)
    encoder = Cnn()
    model = contrastive.build(encoder, contrastive.Config(momentum=0.75, queue=5, augment=PLAIN), CLIP)
    assert not any("follower" in name for name, _ in model.named_parameters())
    assert any("follower" in name for name in model.state_dict())
    with torch.no_grad():
        before = encoder.conv.weight.clone()
        encoder.conv.weight.add_(1.0)
    clips = some_clips()
    model(clips, torch.Generator(), batch_of(clips))["loss"].backward()
    assert torch.equal(model.state_dict()["follower.0.conv.weight"], before), "it waits for the optimiser's step"
    model.follow()
    slow = model.state_dict()["follower.0.conv.weight"]
    assert torch.allclose(slow, 0.75 * before + 0.25 * encoder.conv.weight, atol=1e-6)
    assert not slow.requires_grad
    kept = model.queue.clone()
    model.eval()
    model(clips, torch.Generator(), batch_of(clips))
    assert torch.equal(kept, model.queue), "evaluation changes nothing"


def test_the_queue_holds_the_newest_keys_and_wraps_around() -> None:
    torch.manual_seed(0)
    model = contrastive.build(Cnn(), contrastive.Config(momentum=0.9, queue=12, augment=PLAIN), CLIP)
    first = model.queue.clone()
    clips = some_clips()
    model(clips, torch.Generator(), batch_of(clips))  # 4 videos, 2 views: 8 keys
    assert not (model.queue[:8] == first[:8]).all(1).any()
    assert torch.equal(model.queue[8:], first[8:])
    second = model.queue.clone()
    model(clips, torch.Generator(), batch_of(clips))
    assert int(model.cursor) == 4
    assert torch.equal(model.queue[4:8], second[4:8]), "the oldest went, not the newest"
    assert torch.allclose(model.queue.norm(dim=1), torch.ones(12))


def test_strong_augmentation_does_not_flicker_and_can_be_turned_off() -> None:
    still = torch.rand(8, 3, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(8, 3, 4, 16, 16)
    made = strong(still, Strength(), torch.Generator().manual_seed(1))
    assert torch.diff(made, dim=2).abs().max() < 1e-5
    assert (made - still).abs().mean() > 0.05
    assert torch.allclose(strong(still, PLAIN, torch.Generator().manual_seed(1)), still, atol=1e-5)


def test_grey_clips_have_no_colour_and_mirrored_ones_are_mirrored() -> None:
    clip = torch.rand(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    grey = strong(clip, Strength(area=1, colour=0, grey=1, blur=0), torch.Generator().manual_seed(0))
    assert torch.allclose(grey, clip.mean(1, keepdim=True).expand_as(clip), atol=1e-5)
    mirrored = strong(clip, Strength(area=1, colour=0, grey=0, blur=0, mirror=1), torch.Generator().manual_seed(0))
    assert torch.allclose(mirrored, clip.flip(-1), atol=1e-5)


@pytest.mark.parametrize("small", [(1, 1, 1), (1, 6, 6), (4, 3, 3), (3, 7, 5)])
@pytest.mark.parametrize("large", [(8, 48, 48), (5, 30, 44)])
def test_the_decoder_reaches_any_size(small: tuple[int, int, int], large: tuple[int, int, int]) -> None:
    grown = np.prod([small, *strides(small, large)], axis=0)
    assert all(side <= got < 2 * side + 1 for side, got in zip(large, grown, strict=True))
    with torch.no_grad():
        for decoder in (ClipDecoder(4, small, large, 8), LinearDecoder(4, small, large)):
            assert decoder(torch.zeros(1, 4, *small)).shape == (1, 3, *large)


@pytest.mark.parametrize("since", ["before", "mean"])
def test_a_perfect_reconstruction_has_no_error_and_a_frozen_one_misses_all_change(
    since: Literal["before", "mean"],
) -> None:
    clip = some_clips(3)[:, 0]
    assert [e.item() for e in autoencoder.errors(clip, clip, since=since)] == [0.0, 0.0]
    still = clip.mean(2, keepdim=True).expand_as(clip)
    pixels, change = autoencoder.errors(still, clip, since=since, floor=1e-3)
    assert change.item() == pytest.approx(1.0, abs=0.01)
    assert pixels.item() == pytest.approx(clip.var(2, correction=0).mean().item(), rel=1e-4)


def test_changes_since_the_mean_picture_equal_numpy() -> None:
    clip, made = some_clips(3)[:, 0], some_clips(3)[:, 0].flip(2) * 0.7
    _, change = autoencoder.errors(made, clip, since="mean", floor=0.02)
    one, two = (x.double().numpy() - x.double().numpy().mean(2, keepdims=True) for x in (made, clip))
    missed, moved = ((one - two) ** 2).mean((1, 2, 3, 4)), (two**2).mean((1, 2, 3, 4))
    assert change.item() == pytest.approx((missed / (moved + 0.02)).mean(), rel=1e-5)


def test_a_linear_decoder_makes_each_part_of_its_own_place_only() -> None:
    torch.manual_seed(0)
    decoder = LinearDecoder(5, (2, 2, 3), (8, 8, 12))
    latent = torch.randn(2, 5, 2, 2, 3)
    with torch.no_grad():
        made = decoder(latent)
        weight, bias = decoder.parts.weight, decoder.parts.bias
        assert bias is not None
        part = torch.einsum("bl,lcthw->bcthw", latent[:, :, 1, 0, 2], weight) + bias[:, None, None, None]
    torch.testing.assert_close(made[:, :, 4:, :4, 8:], part)


def _touched(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


@pytest.mark.parametrize("side", ["generator", "critic"])
def test_each_side_of_the_adversarial_game_learns_from_its_own_term_only(side: str) -> None:
    torch.manual_seed(0)
    encoder = vit()
    model = adversarial.build(encoder, adversarial.Config(critic_width=4, r1=1.0), CLIP)
    clip = some_clips()[:, 0]
    made = model.reconstruction(clip)
    if side == "generator":
        terms = model.generator_terms(made, clip)
        (terms["fool"] + terms["match"]).backward()  # type: ignore[no-untyped-call]
    else:
        terms = model.critic_terms(made, clip)
        (terms["critic"] + terms["r1"]).backward()  # type: ignore[no-untyped-call]
    own = side == "generator"
    assert _touched(encoder) == own
    assert _touched(model.reconstruction) == own
    assert _touched(model.critic) == (not own)


def test_the_discriminator_learns_to_tell_and_stays_smooth() -> None:
    torch.manual_seed(0)
    model = adversarial.build(vit(), adversarial.Config(critic_width=4), CLIP)
    clip = some_clips()[:, 0]
    optimizer = torch.optim.AdamW(model.critic.parameters(), 3e-3)
    made = model.reconstruction(clip).detach()
    for _ in range(40):
        terms = model.critic_terms(made, clip)
        optimizer.zero_grad()
        terms["critic"].backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert terms["critic_right"] > 0.9
    for layer in [*model.critic.layers, model.critic.score]:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        assert torch.linalg.matrix_norm(weight.flatten(1), 2) < 1.2, "spectral norm"


def test_the_gradient_penalty_of_a_linear_score_is_its_squared_slope() -> None:
    class Linear(nn.Module):
        def forward(self, clip_BCTHW: Tensor) -> tuple[Tensor, list[Tensor]]:
            return (3 * clip_BCTHW[:, :1, :1, :1, :2]).mean(-1, keepdim=True), []

    model = adversarial.build(vit(), adversarial.Config(r1=1.0), CLIP)
    model.critic = Linear()  # type: ignore[assignment]
    clip = some_clips()[:, 0]
    # The slope is 3/2 at two pixels of a clip: half of 2 * (3/2) ** 2.
    assert model.critic_terms(clip, clip)["r1"].item() == pytest.approx(2.25)


def test_a_masked_answer_of_nothing_misses_all_change() -> None:
    torch.manual_seed(0)
    model = masked.build(vit(), masked.Config(decoder_dim=16, decoder_depth=1, change=0.5), CLIP)
    with torch.no_grad():
        for parameter in model.autoencoder.predict.parameters():
            parameter.zero_()
    clips = some_clips()
    parts = model(clips, torch.Generator().manual_seed(0), batch_of(clips))
    assert parts["change"].item() == pytest.approx(1.0, rel=1e-5)
    assert parts["pixels"].item() == pytest.approx(1.0, abs=0.02), "targets have mean 0 and variance 1"
    assert parts["loss"].item() == pytest.approx(parts["pixels"].item() + 0.5 * parts["change"].item(), rel=1e-6)
