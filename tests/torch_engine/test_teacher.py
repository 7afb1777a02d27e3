"""A model that is taught: the objective is what its definition says, a perfect pupil has no gradient, and a teacher is
a constant that no cut of the batch changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.config import LogitsDistill, RunConfig, derive, validate
from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.data.tokenizers import ByteTokenizer
from bonsaigpt.engines import load_engine
from bonsaigpt.errors import CheckpointError
from bonsaigpt.spec import initial_value, parameters
from bonsaigpt.torch_engine.device import choose_placement
from bonsaigpt.torch_engine.loss import Learner
from bonsaigpt.torch_engine.memory import count_step
from bonsaigpt.torch_engine.model import GPT, build
from bonsaigpt.torch_engine.teacher import Teacher, read_teacher

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": 11}
random = np.random.default_rng(3)
TOKENS = torch.from_numpy(random.integers(0, 11, (4, 6)))
TARGETS = torch.from_numpy(random.integers(0, 11, (4, 6)))
TARGETS[1, 2] = IGNORE


def model(seed: int, **more: object) -> GPT:
    return build(validate({"model": SIZES | more}, origin="t").model, seed=seed).double()


def taught(share: float = 1.0, temperature: float = 1.0, hidden: float = 0.0) -> LogitsDistill:
    return LogitsDistill(teacher="t", share=share, temperature=temperature, hidden=hidden)


@pytest.mark.parametrize(("share", "temperature", "hidden"), [(1.0, 1.0, 0.0), (0.3, 2.0, 0.0), (0.5, 1.5, 0.7)])
def test_the_objective_is_the_definition(share: float, temperature: float, hidden: float) -> None:
    pupil, master = model(1), model(2)
    settings = taught(share, temperature, hidden)
    says = Teacher(master, streams=hidden > 0)(TOKENS)
    objective, loss = Learner(pupil, distill=settings)(TOKENS, TARGETS, None, says)
    plain, _ = Learner(pupil)(TOKENS, TARGETS)
    assert loss.item() == pytest.approx(plain.item())

    kept = (TARGETS != IGNORE).numpy()
    streams: list[list[torch.Tensor]] = [[], []]
    ours, theirs = (
        m.logits(m.hidden(TOKENS, streams=into)).detach().numpy() / temperature
        for m, into in zip((pupil, master), streams, strict=True)
    )
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (theirs, ours))
    divergence = (p * (np.log(p) - np.log(q))).sum(-1)[kept].sum()
    expected = (1 - share) * loss.item() + share * temperature**2 * divergence
    for x, t in zip(*streams, strict=True):
        off = (x - t).square().sum(-1) / t.square().sum(-1)
        expected += hidden / 2 * off.detach().numpy()[kept].sum()
    assert objective.item() == pytest.approx(expected, rel=1e-4)  # the loss is summed in float32


def test_a_perfect_pupil_has_no_gradient_and_another_one_has() -> None:
    pupil = model(1)
    for master, is_zero in ((model(1), True), (model(2), False)):
        pupil.zero_grad()
        objective, _ = Learner(pupil, distill=taught(hidden=1.0))(
            TOKENS, TARGETS, None, Teacher(master, streams=True)(TOKENS)
        )
        objective.backward()
        norm = sum(p.grad.square().sum().item() for p in pupil.parameters() if p.grad is not None)
        assert (norm < 1e-9) == is_zero
        assert (abs(objective.item()) < 1e-6) == is_zero


def test_a_teacher_has_no_dropout_and_no_gradient() -> None:
    master = Teacher(model(2, dropout=0.5).train(), streams=False)
    assert not any(p.requires_grad for p in master.model.parameters())
    assert torch.equal(master(TOKENS)[0], master(TOKENS)[0])
    assert not master(TOKENS)[0].requires_grad


# ------------------------------------------------------------------------------------ in training


def make_run(path: Path, seed: int) -> RunConfig:
    """A run at step 0, of random weights over bytes."""
    tokenizer = ByteTokenizer()
    sizes = SIZES | {"vocab_size": tokenizer.vocab_size}
    train = {"threads": 1, "device": "cpu", "precision": "fp32", "compile": "off", "workers": 1, "batch_size": 4}
    config = validate({"model": sizes, "train": train | {"micro_batch": 4}, "seed": seed}, origin="t")
    values = {p.name: initial_value(p, seed) for p in parameters(config.model) if p.tied_to is None}
    state = {"step": 0, "best_step": -1, "tokens": 0}
    RunDirectory.create(path, config, tokenizer, {}, start=Checkpoint(model=values, optimizer={}, state=state))
    return config


def test_micro_batches_do_not_change_a_taught_step(tmp_path: Path) -> None:
    config = make_run(tmp_path / "master", 7)
    distill = {"kind": "logits", "teacher": str(tmp_path / "master"), "share": 0.7, "hidden": 0.2}
    config = derive(config, optim={"distill": distill})
    engine = load_engine("torch", device="cpu", threads=1, workers=1)
    batch = Batch(tokens_BT=TOKENS.numpy(), targets_BT=TARGETS.numpy(), count=int((TARGETS != IGNORE).sum()))
    found = []
    for rows in (4, 2, 1):
        cut = derive(config, train={"micro_batch": rows})
        state = engine.init(derive(cut, optim={"lr": 1e-2}))
        engine.step(state, batch, config=cut, share=1.0, step=0)
        found.append(engine.arrays(state)[0])
    plain = derive(config, optim={"distill": {"kind": "none"}})
    state = engine.init(plain)
    engine.step(state, batch, config=plain, share=1.0, step=0)
    found.append(engine.arrays(state)[0])
    name = "transformer.h.1.mlp.c_fc.weight"
    assert np.allclose(found[0][name], found[1][name], atol=2e-4)
    assert np.allclose(found[0][name], found[2][name], atol=2e-4)
    assert not np.allclose(found[0][name], found[3][name], atol=2e-4)


def test_the_memory_of_a_step_has_the_teacher_in_it(tmp_path: Path) -> None:
    config = make_run(tmp_path / "master", 7)
    alone = count_step(config, choose_placement("cpu", "fp32", 1), rows=4)
    config = derive(config, optim={"distill": {"kind": "logits", "teacher": str(tmp_path / "master")}})
    both = count_step(config, choose_placement("cpu", "fp32", 1), rows=4)
    assert both.parts["weights"] >= 2 * alone.parts["weights"] - 1024
    assert both.total > alone.total


def test_a_teacher_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run at"):
        read_teacher(LogitsDistill(teacher=str(tmp_path / "nobody@3")), torch.device("cpu"))
