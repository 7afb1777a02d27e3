"""Document masks: a document in a row is what it is alone, in the loss, in the gradient, in every way to compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from bonsaigpt.config import RunConfig, validate
from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.torch_engine.compiling import compile_module, what_is_missing
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.loss import Learner
from bonsaigpt.torch_engine.model import build
from tests.torch_engine.variants import VARIANTS, variant

LENGTHS = [[5, 12, 7], [24], [1, 1, 20, 2], [9, 10]]
"""Of the documents in each row of 24; the rest of the last one is padding."""

# Scores, shares and sums of at most 24 terms and 32 channels in another order: 2^-24 times 56 terms times 3 layers, of
# losses of about ln 17; ten times that for what the layers amplify.
TOLERANCE = 10 * 2**-24 * 56 * 3 * 2.9


def packed_batch(seed: int = 0, vocabulary: int = 17) -> Batch:
    """Random tokens in documents of ``LENGTHS``."""
    draws = np.random.default_rng(seed)
    shape = len(LENGTHS), 24
    tokens, targets = (draws.integers(0, vocabulary, shape) for _ in range(2))
    documents = np.zeros(shape, dtype=np.int32)
    for row, lengths in enumerate(LENGTHS):
        documents[row] = [*np.repeat(np.arange(len(lengths)), lengths), *[len(lengths)] * (24 - sum(lengths))]
        targets[row, sum(lengths) :] = IGNORE
    return Batch(tokens_BT=tokens, targets_BT=targets, count=int((targets != IGNORE).sum()), documents_BT=documents)


def losses(model: Any, batch: Batch, documents: bool) -> list[float]:
    """The mean loss of each document of the batch, all rows in one pass."""
    assert batch.documents_BT is not None
    given = torch.from_numpy(batch.documents_BT) if documents else None
    with torch.inference_mode():
        logs = model(torch.from_numpy(batch.tokens_BT), documents_BT=given).log_softmax(-1)
    found = []
    for row, lengths in enumerate(LENGTHS):
        for start, length in zip(np.cumsum([0, *lengths]).tolist(), lengths, strict=False):
            here = slice(start, start + length)
            picked = logs[row, here].gather(1, torch.from_numpy(batch.targets_BT[row, here])[:, None])
            found.append(-picked.mean().item())
    return found


def losses_alone(model: Any, batch: Batch) -> list[float]:
    """The same, each document in a pass of its own."""
    found = []
    for row, lengths in enumerate(LENGTHS):
        for start, length in zip(np.cumsum([0, *lengths]).tolist(), lengths, strict=False):
            here = slice(start, start + length)
            with torch.inference_mode():
                logs = model(torch.from_numpy(batch.tokens_BT[row : row + 1, here])).log_softmax(-1)[0]
            found.append(-logs.gather(1, torch.from_numpy(batch.targets_BT[row, here])[:, None]).mean().item())
    return found


@pytest.mark.parametrize("plain", [False, True], ids=["sdpa", "plain"])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_document_in_a_row_has_the_loss_that_it_has_alone(name: str, plain: bool) -> None:
    model = build(variant(name), seed=1).eval()
    with torch.no_grad():  # fresh weights hardly look at what stands before
        for parameter in model.parameters():
            parameter.mul_(4.0)
    model.attend_plainly(plain)
    batch = packed_batch()
    alone = losses_alone(model, batch)
    scale = max(alone)
    assert np.allclose(losses(model, batch, documents=True), alone, rtol=0, atol=TOLERANCE * scale)
    # Negative control: without the mask every document but the first of each row sees its neighbours.
    unmasked = np.array(losses(model, batch, documents=False))
    first = np.cumsum([0, *map(len, LENGTHS)])[:-1]
    later = np.setdiff1d(np.arange(len(alone)), first)
    assert np.allclose(unmasked[first], np.array(alone)[first], rtol=0, atol=TOLERANCE * scale)
    assert (abs(unmasked - alone)[later] > 10 * TOLERANCE * scale).any()


def test_positions_start_anew_in_each_document() -> None:
    """Without that, a model with learned positions would give another loss: the mask alone does not do it."""
    model = build(variant("gpt2"), seed=1).eval()
    batch = packed_batch()
    assert batch.documents_BT is not None
    moved = torch.arange(24).expand(len(LENGTHS), 24)
    with torch.inference_mode():
        masked = model(torch.from_numpy(batch.tokens_BT), documents_BT=torch.from_numpy(batch.documents_BT))
        first = model(torch.from_numpy(batch.tokens_BT), positions_BT=moved)
    assert torch.allclose(masked[0, :5], first[0, :5], atol=1e-5)
    assert not torch.allclose(masked[0, 5], first[0, 5], atol=1e-3)


def config(**train: Any) -> RunConfig:
    """A small run whose first step shows its gradient: SGD-like through AdamW (see test_step.py)."""
    optim = {"eps": 1e6, "lr": 1e6, "weight_decay": 0.0, "grad_clip": 0.0, "beta1": 0.0}
    model = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 17}
    return validate({"model": model, "train": {"batch_size": 4, "threads": 1} | train, "optim": optim}, origin="t")


def after_a_step(run: RunConfig, batch: Batch, workers: int = 1) -> tuple[float, dict[str, np.ndarray]]:
    engine = TorchEngine(device="cpu", workers=workers)
    state = engine.init(run)
    loss = engine.step(state, batch, config=run, share=1.0, step=0).host()["loss"]
    return loss, engine.arrays(state)[0]


@pytest.mark.parametrize(
    ("train", "workers"),
    [({"micro_batch": 1}, 1), ({"micro_batch": 3}, 1), ({"recompute": True}, 1), ({}, 2), ({"micro_batch": 1}, 2)],
    ids=["micro 1", "micro 3", "recompute", "workers", "workers, micro 1"],
)
def test_every_way_to_take_a_step_keeps_the_mask(train: dict[str, Any], workers: int) -> None:
    """Sums in another order: the tolerances of test_step.py."""
    loss, weights = after_a_step(config(), packed_batch())
    other_loss, other = after_a_step(config(**train), packed_batch(), workers)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    for name in weights:
        np.testing.assert_allclose(other[name], weights[name], rtol=1e-5, atol=2e-6, err_msg=name)
    bare = packed_batch()
    unmasked, _ = after_a_step(config(**train), Batch(**{**vars(bare), "documents_BT": None}), workers)
    assert abs(unmasked - loss) > 1e-4 * loss


def test_shares_of_processes_and_evaluation_keep_the_mask() -> None:
    batch, engine = packed_batch(), TorchEngine(device="cpu")
    state = engine.init(config())
    whole, _ = engine.evaluate(state.model, batch)
    per_token = sum(
        loss * length
        for loss, length in zip(
            losses_alone(state.model.eval(), batch), [n for row in LENGTHS for n in row], strict=True
        )
    )
    assert whole == pytest.approx(per_token, rel=1e-6)
    parts = [engine.evaluate(state.model, batch.share(rank, 3))[0] for rank in range(3)]
    assert sum(parts) == pytest.approx(whole, rel=1e-6)


@pytest.mark.skipif(what_is_missing(torch.device("cpu")) is not None, reason="nothing to compile with")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.jit")  # torch's own compiler uses it
def test_a_compiled_step_keeps_the_mask() -> None:
    batch = packed_batch()
    given = [torch.from_numpy(a) for a in (batch.tokens_BT, batch.targets_BT, batch.documents_BT)]
    model = build(variant("modern"), seed=1)
    eager, compiled = Learner(model), Learner(model)
    compile_module(compiled, torch.device("cpu"))
    assert compiled(*given)[1].item() == pytest.approx(eager(*given)[1].item(), rel=1e-5)
    assert compiled(*given[:2])[1].item() == pytest.approx(eager(*given[:2])[1].item(), rel=1e-5)
    assert abs(compiled(*given)[1].item() - compiled(*given[:2])[1].item()) > 1e-3
