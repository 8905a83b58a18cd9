"""Token merging: what is merged, what it must leave alone, and that it stays near the whole model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.errors import UserError
from toolkit.recipe import TeacherConfig
from train.macs import measure
from train.models.merge import encode_merged, merge_tokens
from train.models.vit import TubeletViT

SHAPE = TeacherConfig(dim=32, depth=3, heads=2, tubelet=(2, 8, 8))


def _vit(**changes: object) -> TubeletViT:
    torch.manual_seed(0)
    return TubeletViT(SHAPE.model_copy(update=changes), 3, (3, 32, 32), 4).eval()


@settings(max_examples=25, deadline=None)
@given(batch=st.integers(1, 3), tokens=st.integers(1, 12), count=st.integers(0, 8), seed=st.integers(0, 99))
def test_merging_keeps_the_weighted_sum_and_the_number_of_parts(batch: int, tokens: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, key = torch.randn(2, batch, tokens, 5, generator=generator).unbind(0)
    size = torch.randint(1, 5, (batch, tokens), generator=generator).float()
    merged, parts = merge_tokens(x, key, size, count)
    assert merged.shape[1] == parts.shape[1] == tokens - min(count, tokens // 2)
    torch.testing.assert_close(parts.sum(1), size.sum(1))
    torch.testing.assert_close((merged * parts[..., None]).sum(1), (x * size[..., None]).sum(1), atol=1e-4, rtol=1e-4)


def test_the_most_similar_pairs_are_the_ones_that_merge() -> None:
    key = torch.eye(6)[None].clone()
    key[0, 3] = key[0, 0] * 2  # token 3 looks like token 0, whatever its length
    x = torch.arange(6.0)[None, :, None]
    merged, size = merge_tokens(x, key, torch.ones(1, 6), 1)
    found = dict(zip(merged[0, :, 0].tolist(), size[0].tolist(), strict=True))
    assert found == {1.5: 2.0, 1.0: 1.0, 2.0: 1.0, 4.0: 1.0, 5.0: 1.0}


def test_merging_equal_tokens_changes_nothing() -> None:
    """Attention is proportional: eight equal tokens and one that stands for eight are the same thing."""
    model = _vit()
    tokens = torch.randn(1, 2, 32).repeat_interleave(8, 1)
    with torch.no_grad():
        merged, size = encode_merged(model.blocks, tokens, 8)  # 16 -> 8 -> 4 -> 2
        for block in model.blocks:
            tokens = block(tokens)
    assert size.tolist() == [[8.0, 8.0]]
    torch.testing.assert_close(merged, tokens[:, [0, 8]], atol=1e-5, rtol=1e-5)


def test_the_option_acts_at_inference_only_and_saves_work() -> None:
    whole, merging = _vit(), _vit(merge=4)
    clip = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        assert merging.forward_features(clip).shape == (2, 32 - 3 * 4, 32)
        assert not torch.equal(merging(clip), whole(clip))
        near = torch.nn.functional.cosine_similarity(merging.embed(clip), whole.embed(clip))
        assert near.min() > 0.98
        whole.train()
        merging.train()
        assert torch.equal(merging(clip), whole(clip))
    assert measure(merging).macs < measure(whole).macs
    assert measure(merging).parameters == measure(whole).parameters


def test_merging_and_divided_attention_do_not_go_together() -> None:
    with pytest.raises(UserError, match=r"set teacher\.attention to 'joint'"):
        _vit(merge=2, attention="divided")
