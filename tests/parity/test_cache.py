"""Cached decoding equals uncached decoding, for every variant and every way to cut a text in three."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from bonsaigpt.torch_engine.cache import FullCache
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import GPT, build
from tests.torch_engine.variants import VARIANTS, variant

ENGINE = TorchEngine(device="cpu")
LENGTH = 10


def lively(name: str) -> GPT:
    """Weights of size 0.1, at which attention and MLPs do something but logits stay of the order of one."""
    model = build(variant(name), seed=2).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(0, 17, (rows, LENGTH), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_every_split_in_three_parts(name: str) -> None:
    model, text = lively(name), tokens()
    whole = model(text)
    assert whole.abs().max() > 0.5  # otherwise 1e-5 would mean little
    for first, second in combinations(range(1, LENGTH), 2):
        cache = ENGINE.cache(model, batch=2)
        parts = [model(part, cache=cache) for part in torch.tensor_split(text, (first, second), dim=1)]
        difference = (torch.cat(parts, dim=1) - whole).abs().max().item()
        assert difference <= 1e-5, f"cut at {first} and {second}: {difference}"


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_one_token_at_a_time(name: str) -> None:
    model, text = lively(name), tokens()
    cache = ENGINE.cache(model, batch=2)
    steps = [model(text[:, t : t + 1], cache=cache) for t in range(LENGTH)]
    assert (torch.cat(steps, dim=1) - model(text)).abs().max() <= 1e-5
    assert cache.length == LENGTH


@torch.inference_mode()
def test_the_comparison_notices_wrong_positions_values_and_order() -> None:
    """Negative controls: each breaks what a cache can break, and must be seen at far more than 1e-5."""
    text = tokens()
    for name in ("gpt2", "rope"):
        model = lively(name)
        whole = model(text)
        cache = ENGINE.cache(model, batch=2)
        model(text[:, :5], cache=cache)
        shifted = torch.arange(6, 6 + 5).expand(2, 5)  # off by one
        assert (model(text[:, 5:], positions_BT=shifted, cache=cache) - whole[:, 5:]).abs().max() > 1e-3
        cache = ENGINE.cache(model, batch=2)
        model(text[:, :5], cache=cache)
        cache._v[1, 0, 0, 2] += 0.5  # one value vector of one row
        broken = model(text[:, 5:], cache=cache) - whole[:, 5:]
        assert broken[0].abs().max() > 1e-4
        assert broken[1].abs().max() <= 1e-5  # and only of that row


@torch.inference_mode()
def test_slots_may_be_in_any_order_because_the_mask_comes_from_positions() -> None:
    model, text = lively("rope"), tokens()
    cache = ENGINE.cache(model, batch=2)
    model(text[:, :6], cache=cache)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    for buffer in (cache._k, cache._v):
        buffer[:, :, :, :6] = buffer[:, :, :, :6][:, :, :, order]
    cache._positions[:, :, :6] = cache._positions[:, :, :6][:, :, order]
    assert (model(text[:, 6:], cache=cache) - model(text)[:, 6:]).abs().max() <= 1e-5
    cache._positions[0, :, 0] = 40  # the negative control: a slot that claims to lie in the future is not seen
    again = model(text[:, 9:], positions_BT=torch.full((2, 1), 9), cache=cache)
    assert (again - model(text)[:, 9:]).abs().max() > 1e-4


@torch.inference_mode()
def test_a_row_alone_equals_the_row_in_a_batch() -> None:
    model, text = lively("modern"), tokens(3)
    together = ENGINE.cache(model, batch=3)
    model(text[:, :4], cache=together)
    batched = model(text[:, 4:], cache=together)
    alone = ENGINE.cache(model, batch=1)
    model(text[1:2, :4], cache=alone)
    assert (model(text[1:2, 4:], cache=alone) - batched[1:2]).abs().max() <= 1e-5


@torch.inference_mode()
def test_a_cleared_cache_is_a_fresh_one_and_bits_are_the_buffers() -> None:
    from bonsaigpt.kv import full_bits_per_token

    model, text = lively("grouped queries"), tokens()
    cache = ENGINE.cache(model, batch=2)
    model(text, cache=cache)
    cache.clear()
    assert cache.length == 0
    assert torch.equal(model(text, cache=cache), model(text, cache=ENGINE.cache(model, batch=2)))
    # 3 layers, 2 rows, 24 slots: keys and values of 2 heads of 8 in float32, and an int64 position.
    by_hand = 3 * 2 * 24 * (2 * 2 * 8 * 32 + 64)
    assert cache.bits() == by_hand == 2 * 24 * full_bits_per_token(model.config)
    held = sum(t.untyped_storage().nbytes() * 8 for t in vars(cache).values() if isinstance(t, torch.Tensor))
    assert held == by_hand


def test_a_full_cache_says_so() -> None:
    from bonsaigpt.errors import GenerateError

    model = lively("gpt2")
    cache = FullCache(model.config, batch=1, slots=4, device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(GenerateError, match="4 slots, 5 are needed"):
        ENGINE.next_logits(model, np.zeros((1, 5)), cache)
