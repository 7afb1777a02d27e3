"""An MLP learns by gradient what it should write into the residual stream."""

from __future__ import annotations

import numpy as np
import pytest

from bonsaigpt.config import validate
from bonsaigpt.structure import structures
from bonsaigpt.torch_engine.fit_mlp import fit_mlp
from bonsaigpt.torch_engine.model import build, weights

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 11}
SMALL = {"*.1.mlp.c_fc.weight": {"kind": "lowrank", "rank": 4}}
TOKENS = [np.random.default_rng(i).integers(0, 11, (4, 8)) for i in range(6)]
MLP = "transformer.h.1.mlp"


@pytest.mark.parametrize("normalise", [True, False])
def test_the_error_falls_and_only_this_mlp_changes(normalise: bool) -> None:
    config = validate({"model": SIZES | {"structure": SMALL}}, origin="t").model
    teacher = build(validate({"model": SIZES}, origin="t").model, seed=1)
    student = build(config, seed=2)
    before = weights(student)
    found, (start, end) = fit_mlp(student, MLP, TOKENS, teacher=teacher, steps=80, normalise=normalise)
    assert end < 0.9 * start
    assert set(found) == {n for n in before if n.startswith(f"{MLP}.")}
    assert structures(config)[f"{MLP}.c_fc.weight"].factored
    after = weights(student)
    assert all((after[n].tobytes() == before[n].tobytes()) != (n in found) for n in before)


def test_a_fit_that_diverges_gives_back_what_it_had() -> None:
    config = validate({"model": SIZES}, origin="t").model
    teacher, student = build(config, seed=1), build(config, seed=1)
    before = weights(student)
    found, (start, end) = fit_mlp(student, MLP, TOKENS, teacher=teacher, steps=3, normalise=True, rate=50.0)
    assert start == end == pytest.approx(0.0, abs=1e-10)
    assert all(found[n].tobytes() == before[n].tobytes() for n in found)


def test_a_post_norm_model_is_refused() -> None:
    model = build(validate({"model": SIZES | {"norm_position": "post"}}, origin="t").model, seed=1)
    with pytest.raises(ValueError, match="post-norm"):
        fit_mlp(model, MLP, TOKENS, teacher=model, steps=1, normalise=True)
