"""Preferences and rewards as weights of an ordinary step: the gradients are those of the papers, and they work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bonsaigpt.checkpoint import Checkpoint, RunDirectory
from bonsaigpt.config import PairsData, RunConfig, validate
from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.data.examples.pairs import PairBatches, pair_batches
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.toys import task_batches
from bonsaigpt.errors import ConfigError, DataError
from bonsaigpt.measure import Evaluation
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.loss import Learner
from bonsaigpt.torch_engine.model import GPT, build
from bonsaigpt.train import start_state
from bonsaigpt.train.objectives import objective_of, preferred, rewarded

ENGINE = TorchEngine(device="cpu", precision="fp32", workers=1)
MODEL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 32, "vocab_size": 257}


@pytest.fixture
def pairs(tmp_path: Path) -> PairBatches:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n}:", "chosen": "yes" * (1 + n % 2), "rejected": "no"} for n in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return pair_batches(PairsData(path=path), seed=1, plan=BatchPlan(batch_size=8, block_size=32))


def config_of(**sections: Any) -> RunConfig:
    return validate({"model": MODEL} | sections, origin="test")


def row_sums(model: GPT, batch: Batch) -> torch.Tensor:
    targets = torch.from_numpy(batch.targets_BT)
    losses = F.cross_entropy(
        model(torch.from_numpy(batch.tokens_BT)).mT, targets, ignore_index=IGNORE, reduction="none"
    )
    return -losses.sum(dim=1)


def test_pairs_are_rows_beside_each_other(pairs: PairBatches) -> None:
    seen: set[bytes] = set()
    for step in range(7):
        batch = pairs.batch_at(step)
        assert batch.tokens_BT.shape[0] == 8
        for chosen, rejected in zip(batch.targets_BT[0::2], batch.targets_BT[1::2], strict=True):
            said = [bytes(i for i in row.tolist() if 0 <= i < 256) for row in (chosen, rejected)]
            assert said[0] in (b"yes", b"yesyes")
            assert said[1] == b"no"
        for one, other in zip(batch.tokens_BT[0::2], batch.tokens_BT[1::2], strict=True):
            length = one.tolist().index(ord(":")) + 1
            assert one[:length].tolist() == other[:length].tolist()
            seen.add(one[:length].tobytes())
    assert len(seen) == len(pairs)


def test_the_gradient_is_that_of_dpo(pairs: PairBatches) -> None:
    batch, beta = pairs.batch_at(0), 0.7
    model, reference = (build(config_of().model, seed=seed).double() for seed in (3, 4))
    with torch.no_grad():
        theirs = row_sums(reference, batch)
    ours = row_sums(model, batch)
    margin = beta * ((ours - theirs)[0::2] - (ours - theirs)[1::2])
    loss = -F.logsigmoid(margin).mean()
    wanted = torch.autograd.grad(loss, list(model.parameters()))

    def gradients(made: Batch) -> list[torch.Tensor]:
        model.zero_grad()
        assert made.weights_BT is not None
        tokens, targets, weights = (torch.from_numpy(a) for a in (made.tokens_BT, made.targets_BT, made.weights_BT))
        objective, _ = Learner(model)(tokens, targets, weights_BT=weights)
        (objective / made.count).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    found = gradients(preferred(batch, ours.detach().numpy(), theirs.numpy(), beta=beta))
    for a, b in zip(found, wanted, strict=True):  # weights and losses are float32
        assert (a - b).abs().max() < 1e-5 * b.abs().max() + 1e-9
    swapped = gradients(preferred(batch, theirs.numpy(), ours.detach().numpy(), beta=beta))
    assert any((a - b).abs().max() > 1e-2 * b.abs().max() for a, b in zip(swapped, wanted, strict=True))


def test_pairs_are_judged_against_the_reference(pairs: PairBatches, tmp_path: Path) -> None:
    """By hand, one row at a time; a model that is its own reference has gained nothing."""
    config = config_of(
        data={"kind": "pairs", "path": "x"},
        optim={"objective": {"kind": "preference", "reference": str(tmp_path / "run"), "beta": 0.7}},
        train={"batch_size": 8},
    )
    model, reference = (build(config.model, seed=seed).eval() for seed in (3, 4))
    weights = {name: p.detach().numpy() for name, p in reference.named_parameters()}
    start = Checkpoint(model=weights, optimizer={}, state=start_state(pairs))
    RunDirectory.create(tmp_path / "run", config, pairs.tokenizer, {}, start=start)
    objective = objective_of(config, ENGINE, pairs)
    assert objective is not None
    plain = Evaluation(loss=1.0, perplexity=1.0, bits_per_byte=None, exact=0.0, tokens=1)
    told: list[tuple[str, int, int]] = []
    found = objective.judged(model, plain, lambda *words: told.append(words))
    gained = []
    chosen, rejected = pairs.chosen.val, pairs.rejected.val
    for number in range(len(chosen)):
        for side, sign in ((chosen, 1), (rejected, -1)):
            ids, asked = (torch.from_numpy(array) for array in side.example(number))
            with torch.inference_mode():
                logs = [m(ids[None, :-1].long())[0].double().log_softmax(-1) for m in (model, reference)]
            picked = [log.gather(1, ids[1:, None].long())[asked[1:], 0].sum() for log in logs]
            gained.append(sign * float(picked[0] - picked[1]))
    margins = 0.7 * (np.array(gained[0::2]) + np.array(gained[1::2]))
    assert len(margins) > 1
    assert found.margin == pytest.approx(margins.mean(), abs=1e-4)  # sums of at most 7 losses near ln 257, in float32
    assert found.ordered == (margins > 0).mean()
    assert abs(margins.mean()) > 1e-2
    assert told[-1] == ("comparing pairs", len(margins), len(margins))
    same = objective.judged(reference, plain, lambda *_: None)
    assert (same.margin, same.ordered) == (0.0, 0.5)


def test_what_was_chosen_becomes_likelier(pairs: PairBatches) -> None:
    config = config_of(optim={"lr": 1e-2}, train={"batch_size": 8, "precision": "fp32"})
    state = ENGINE.init(config)
    reference = build(config.model, seed=config.seed)

    def margins() -> float:
        with torch.inference_mode():
            ours, theirs = (row_sums(m, pairs.batch_at(0)) for m in (state.model, reference))
        return float(((ours - theirs)[0::2] - (ours - theirs)[1::2]).mean())

    assert margins() == pytest.approx(0.0, abs=1e-4)
    for step in range(8):
        batch = pairs.batch_at(step)
        with torch.inference_mode():
            ours, theirs = (row_sums(m, batch).double().numpy() for m in (state.model, reference))
        ENGINE.step(state, preferred(batch, ours, theirs, beta=0.5), config=config, share=1.0, step=step)
    assert margins() > 1.0


def toy(**optim: Any) -> tuple[RunConfig, Any]:
    config = config_of(
        model=MODEL | {"vocab_size": 4, "block_size": 8},
        data={"kind": "copy", "vocab": 3, "length": 1},
        train={"batch_size": 32, "precision": "fp32"},
        optim={"lr": 3e-2} | optim,
    )
    return config, task_batches(config.data, seed=1, plan=BatchPlan.of(config))  # type: ignore[arg-type]


def test_answers_weigh_what_they_are_better_by() -> None:
    config, source = toy()
    model = build(config.model, seed=2)
    problems = source.batch_at(0).first(8)
    made = rewarded(ENGINE, model, problems, samples=4, temperature=1.0, noise=7)
    again = rewarded(ENGINE, model, problems, samples=4, temperature=1.0, noise=7)
    other = rewarded(ENGINE, model, problems, samples=4, temperature=1.0, noise=8)
    assert np.array_equal(made.targets_BT, again.targets_BT)
    assert not np.array_equal(made.targets_BT, other.targets_BT)
    assert made.weights_BT is not None
    asked = made.targets_BT != IGNORE
    assert made.count == asked.sum()
    right = (made.targets_BT == np.repeat(problems.targets_BT, 4, axis=0))[:, -1].reshape(8, 4)
    weights = made.weights_BT[:, -1].reshape(8, 4)
    assert np.allclose(weights.sum(axis=1), 0.0, atol=1e-6)
    mixed = right.any(axis=1) & ~right.all(axis=1)
    assert mixed.any()
    assert np.array_equal(weights[mixed] > 0, right[mixed])
    assert not weights[~mixed].any()
    assert not made.weights_BT[~asked].any()


def test_a_token_is_credited_with_what_comes_after_it() -> None:
    """By hand, of two answers: a baseline that leaves one out is the other one."""
    config = config_of(
        model=MODEL | {"vocab_size": 4, "block_size": 8},
        data={"kind": "copy", "vocab": 3, "length": 3},
        train={"batch_size": 32, "precision": "fp32"},
    )
    problems = task_batches(config.data, seed=1, plan=BatchPlan.of(config)).batch_at(0)  # type: ignore[arg-type]
    made = rewarded(ENGINE, build(config.model, seed=2), problems, samples=2, temperature=1.0, noise=7)
    assert made.weights_BT is not None
    right = made.targets_BT[:, -3:] == np.repeat(problems.targets_BT[:, -3:], 2, axis=0)
    for n in range(0, len(right), 2):
        for place in range(3):
            ahead = (int(right[n, place:].sum()) - int(right[n + 1, place:].sum())) / 3
            assert made.weights_BT[n : n + 2, place - 3].tolist() == pytest.approx([ahead, -ahead])
    whole = (right.sum(axis=1)[0::2] - right.sum(axis=1)[1::2]) / 3
    assert np.abs(made.weights_BT[0::2, -1] - whole).max() > 0.3  # credit for all of the answer would differ


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_rewards_teach_a_toy(sign: float) -> None:
    config, source = toy()
    state = ENGINE.init(config)

    def share() -> float:
        batch = source.batch_at(999)  # of three problems none can be told from others that are held out
        return ENGINE.evaluate(state.model, batch, exact=True)[1] / len(batch.tokens_BT)

    for step in range(15):
        made = rewarded(ENGINE, state.model, source.batch_at(step).first(8), samples=4, temperature=1.0, noise=step)
        assert made.weights_BT is not None
        made = Batch(
            tokens_BT=made.tokens_BT, targets_BT=made.targets_BT, count=made.count, weights_BT=sign * made.weights_BT
        )
        ENGINE.step(state, made, config=config, share=1.0, step=step)
    assert share() == 1.0 if sign > 0 else share() < 0.5


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optim": {"objective": {"kind": "preference", "reference": "x"}}}, "goes with data.kind = 'pairs'"),
        ({"data": {"kind": "pairs", "path": "x"}}, "goes with data.kind = 'pairs'"),
        ({"train": {"best": "preference"}}, "compares with the reference"),
        ({"optim": {"objective": {"kind": "reward"}}}, "needs a toy whose answer ends the row"),
        (
            {"data": {"kind": "sort"}, "model": {"block_size": 64}, "optim": {"objective": {"kind": "reward"}}},
            "is no multiple of optim.objective.samples = 8: use 16",
        ),
    ],
)
def test_what_does_not_fit_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(sections, origin="test")


def test_an_answer_without_a_prompt_is_not_cut_into_pieces(tmp_path: Path) -> None:
    """They would be paired with other answers' pieces."""
    path = tmp_path / "x.jsonl"
    rows = [{"prompt": "", "chosen": "yes" * n, "rejected": "no"} for n in (1, 2, 5, 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="example 3 of the pairs has no prompt, and an answer longer than"):
        pair_batches(PairsData(path=path, val=path), seed=1, plan=BatchPlan(batch_size=2, block_size=8))
    pair_batches(PairsData(path=path, val=path), seed=1, plan=BatchPlan(batch_size=2, block_size=16))


def test_pairs_need_both_answers(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b"}\n' * 3)
    with pytest.raises(DataError, match="no field 'rejected'"):
        pair_batches(PairsData(path=path, val=path), seed=1, plan=BatchPlan(batch_size=2, block_size=8))
