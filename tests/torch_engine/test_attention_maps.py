"""What attention maps show: the textbook's softmax where everything is held, and zeros where a policy has forgotten."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bonsaigpt.errors import ConfigError
from bonsaigpt.kv import read_policy
from bonsaigpt.torch_engine.attention import Attention, Where
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.kv.decoder import PolicyReader
from tests.torch_engine.decoders import CPU, model_of

ENGINE = TorchEngine(device="cpu")
TEXT = np.random.default_rng(0).integers(0, 17, 20)


@torch.no_grad()
def test_everything_held_is_the_softmax_of_the_textbook() -> None:
    """Of the first layer, from its own queries and keys, head by head."""
    model = model_of("rope")
    maps_LHTT = ENGINE.attention_maps(model, TEXT, read_policy("full"))
    T = len(TEXT)
    block = model.transformer.h[0]
    assert isinstance(block.attn, Attention)
    where = Where(None, (model.cos[:T, None], model.sin[:T, None]), None)
    x_BTD = block.ln_1(model.transformer.wte(torch.from_numpy(TEXT[None])))
    q_BHTK, k_BGSK, _ = block.attn.queries_keys_values(x_BTD, where)
    for head in range(model.config.n_head):
        q, k = q_BHTK[0, head].double(), k_BGSK[0, head // (model.config.n_head // k_BGSK.shape[1])].double()
        for t in range(T):
            weights = torch.exp(k[: t + 1] @ q[t] / q.shape[-1] ** 0.5)
            # float32 logits of order 1: a few roundings of 6e-8 each
            assert maps_LHTT[0, head, t, : t + 1] == pytest.approx((weights / weights.sum()).numpy(), abs=2e-6)
            assert not maps_LHTT[0, head, t, t + 1 :].any()
    assert not np.allclose(maps_LHTT[0, 0], maps_LHTT[0, 1], atol=1e-3)  # heads are not mixed up by chance


@pytest.mark.parametrize("name", ["modern", "shared keys and values"])
@pytest.mark.parametrize(
    "policy", ["full", "window(6)", "sinks(1)+window(4)+h2o(5)", "full, int4", "window(4)+tova(3)"]
)
def test_a_token_takes_all_of_what_is_held_and_nothing_of_what_is_not(name: str, policy: str) -> None:
    model = model_of(name)
    maps_LHTT = ENGINE.attention_maps(model, TEXT, read_policy(policy))
    assert maps_LHTT.sum(-1) == pytest.approx(np.ones(maps_LHTT.shape[:3]), abs=1e-5)
    reader = PolicyReader(model, read_policy(policy), placement=CPU)
    for t, token in enumerate(TEXT):
        held = [reader.positions(layer)[0] for layer in range(model.config.n_layer)] if t else []
        for layer, held_GS in enumerate(held):
            for head in range(model.config.n_head):
                seen = {t, *held_GS[head * len(held_GS) // model.config.n_head].tolist()}
                assert set(maps_LHTT[layer, head, t].nonzero()[0].tolist()) <= seen
        reader.read(np.array([[token]]))
    forgetful = (maps_LHTT[:, :, -1] == 0).any()
    assert forgetful == (not policy.startswith("full"))


def test_attention_without_a_map_says_so() -> None:
    with pytest.raises(ConfigError, match="linear"):
        ENGINE.attention_maps(model_of("linear"), TEXT, read_policy("full"))
