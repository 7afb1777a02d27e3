"""Both engines against what was stored once (tests/goldens), so that they cannot drift together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bonsaigpt.config import derive
from bonsaigpt.engines import load_engine
from bonsaigpt.errors import DeviceError
from bonsaigpt.trace import Observed
from tests.goldens.write import NAMES, Golden, run_of


@pytest.fixture(scope="module", params=["torch", "jax"])
def engine(request: pytest.FixtureRequest) -> Any:
    try:
        return load_engine(request.param, device="cpu", precision="fp32")
    except DeviceError:
        pytest.skip("without jax")


def wrong(golden: Golden, found: Observed) -> list[str]:
    """Tensors that are further from the oracle than they may be, in the order of the computation."""
    return [
        name
        for name, allowed in golden.allowed.items()
        for level, _, tensor in [name.partition("/")]
        if not np.abs(found[level][tensor] - golden.observed[level][tensor]).max() <= allowed
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_is_the_stored_one(name: str, engine: Any) -> None:
    golden = Golden(name)
    assert np.abs(golden.observed["logits"]["logits"]).max() > 0.3
    found = engine.observe(run_of(name), golden.model, {}, golden.batch)
    assert not wrong(golden, found)
    moved = max(np.abs(golden.observed["step"][weight] - value).max() for weight, value in golden.model.items())
    assert moved > 0.5 * run_of(name).optim.lr


def test_a_drift_of_both_is_seen() -> None:
    """The negative control: another epsilon, as a changed default would give to both engines."""
    golden, config = Golden("gpt2"), run_of("gpt2")
    drifted = derive(config, model={"norm": {"kind": "layernorm", "eps": 1e-6}})
    found = load_engine("torch", device="cpu", workers=1).observe(drifted, golden.model, {}, golden.batch)
    assert wrong(golden, found)[0] == "activations/transformer.h.0.ln_1"
