"""Hidden units in another order compute the same; units that read alike stand together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bonsaigpt.compress import fit, like_units, output_error, permute_hidden
from bonsaigpt.structure import Kronecker
from bonsaigpt.torch_engine.model import build, weights
from tests.torch_engine.variants import variant

TOKENS = torch.randint(0, 17, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["gpt2", "swiglu", "relu2"])
def test_a_permuted_mlp_is_the_same_function(name: str) -> None:
    config = variant(name, bias=True)
    random = np.random.default_rng(0)
    values = {
        n: a + 0.3 * random.standard_normal(a.shape).astype("f") for n, a in weights(build(config, seed=1)).items()
    }
    order = random.permutation(config.hidden)
    moved = permute_hidden(values, "transformer.h.1.mlp", order)
    logits = [build(config, values=v).double().eval()(TOKENS) for v in (values, moved)]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-12, atol=1e-12)
    half = values | {"transformer.h.1.mlp.c_fc.weight": moved["transformer.h.1.mlp.c_fc.weight"]}
    wrong = build(config, values=half).double().eval()(TOKENS)
    assert (wrong - logits[0]).abs().max() > 1e-3  # one of the two alone is another function


def test_like_units_find_scattered_families_and_the_fit_gains() -> None:
    random = np.random.default_rng(0)
    families = random.standard_normal((6, 16))
    label = random.permutation(np.repeat(np.arange(6), 4))
    W = families[label] * random.uniform(0.5, 2.0, (24, 1)) + 0.05 * random.standard_normal((24, 16))
    C = np.eye(16)
    order = like_units(W, C, 6)
    assert sorted(order.tolist()) == list(range(24))
    assert all(len(set(label[order[i : i + 4]])) == 1 for i in range(0, 24, 4))
    structure = Kronecker(24, 16, (6, 16), 1, False)
    before, after = (output_error(V, structure.expand(fit(structure, V, C)), C) for V in (W, W[order]))
    assert after < 0.5 * before
    with pytest.raises(ValueError, match="5 groups"):
        like_units(W, C, 5)
