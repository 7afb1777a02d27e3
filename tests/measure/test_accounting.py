"""What is counted is what is computed: against formulas by hand, and against torch's own count of a real step."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bonsaigpt.config import LinearAttention, ModelConfig, SoftmaxAttention, validate
from bonsaigpt.measure.accounting import flops_by_kind, flops_per_token, matrix_parameters, matrix_products
from bonsaigpt.torch_engine.loss import Learner
from bonsaigpt.torch_engine.model import build
from tests.torch_engine.variants import VARIANTS, variant


def model(**changes: object) -> ModelConfig:
    sizes = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "vocab_size": 65}
    return validate({"model": sizes | changes}, origin="test").model


def test_parts_by_hand() -> None:
    """nanoGPT's CPU recipe: 6 N + 12 L H K T, each kind by itself."""
    assert flops_by_kind(model()) == {
        "attn.c_attn": 6 * 4 * 3 * 128**2,
        "attn.c_proj": 6 * 4 * 128**2,
        "mlp.c_fc": 6 * 4 * 4 * 128**2,
        "mlp.c_proj": 6 * 4 * 4 * 128**2,
        "lm_head": 6 * 65 * 128,
        "attention scores": 6 * 4 * 4 * 32 * 64,
        "attention values": 6 * 4 * 4 * 32 * 64,
    }
    gated = flops_by_kind(model(mlp={"kind": "swiglu", "hidden": 96}, attention={"n_kv_head": 1}))
    assert gated["mlp.c_gate"] == gated["mlp.c_fc"] == gated["mlp.c_proj"] == 6 * 4 * 96 * 128
    assert gated["attn.c_attn"] == 6 * 4 * (128 + 2 * 32) * 128


DENSE = [name for name in VARIANTS if name != "structured"]
"""What factors take is another count than what they store: tests/structure has it."""


@pytest.mark.parametrize("name", DENSE)
def test_parts_sum_to_the_whole(name: str) -> None:
    config = variant(name)
    parts = flops_by_kind(config)
    assert sum(parts.values()) == flops_per_token(config)
    assert 6 * matrix_parameters(config) == sum(n for kind, n in parts.items() if not kind.startswith("attention "))
    elements = [product.macs * count for (_, product), count in matrix_products(config).items()]
    assert sum(elements) == matrix_parameters(config)


def test_a_shorter_context_costs_less_attention_and_nothing_else() -> None:
    config = model()
    assert flops_per_token(config) - flops_per_token(config, length=16) == 12 * 4 * 128 * (64 - 16)


def counted(config: ModelConfig, *, rows: int, length: int) -> int:
    """Operations of a forward and backward pass as torch counts them, operator by operator."""
    learner = Learner(build(config, seed=0))
    tokens = torch.randint(0, config.vocabulary, (rows, length))
    # The fused kernels of attention skip the masked half or count differently; the plain one multiplies it all.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective, _ = learner(tokens, tokens)
        objective.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", [name for name in DENSE if name != "experts"])  # test_experts.py has those
def test_the_count_is_that_of_a_real_step(name: str) -> None:
    config = variant(name)
    assert counted(config, rows=2, length=24) == 2 * 24 * (flops_per_token(config) + hidden(config, 24))
    assert counted(config, rows=3, length=8) == 3 * 8 * (flops_per_token(config, length=8) + hidden(config, 8))


def hidden(config: ModelConfig, length: int) -> int:
    """What the program multiplies for a token beyond the work of the model: keys that a window hides; and all keys of a
    short row, where linear attention could have gone by a state of 8 x 8, of which elu sums the weights too."""
    attention, one = config.attention, 12 * 4 * 8
    if isinstance(attention, SoftmaxAttention):
        windows = [attention.window_of(layer) or length for layer in range(3)]
        return sum(one * (length - min(length, window)) for window in windows)
    if not isinstance(attention, LinearAttention):
        return 0
    # The sums of the weights: a column more, or under rope, where those are not turned, the weights once more, times
    # ones without a gradient. And the state at the end, which has no gradient.
    elu, turns = attention.form == "elu", config.position.kind == "rope"
    sums = (6 * 4 * 8 + 4 * 4 if turns else 6 * 4) * length if elu else 0
    return 3 * (one * (length - 8) + sums + 2 * 4 * 8 * (8 + elu))


def test_the_comparison_sees_a_wrong_count() -> None:
    """Counting the look-up of an untied embedding as a product, the classic mistake of 6 N, would show."""
    config = variant("untied")
    wrong = flops_per_token(config) + 6 * config.vocabulary * config.n_embd
    assert counted(config, rows=2, length=24) != 2 * 24 * wrong
