"""Fine-tuning: what the loss counts, by value; packed as alone; what is frozen stays; more tokens change no other."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bonsaigpt.adapt import finetuned_config, frozen, grown_vocabulary, layerwise, stretched_config, tokenizer_with
from bonsaigpt.config import (
    ExamplesData,
    LikelihoodObjective,
    ObjectiveConfig,
    PairsData,
    PreferenceObjective,
    RunConfig,
    derive,
    dump_toml,
    validate,
)
from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.data.examples import example_batches
from bonsaigpt.data.examples.reading import example_of
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.tokenizers import ByteTokenizer, CharTokenizer, with_special
from bonsaigpt.errors import ConfigError
from bonsaigpt.measure import Evaluation, evaluate
from bonsaigpt.spec import parameters
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import GPT, build

ENGINE = TorchEngine(device="cpu", precision="fp32", workers=1)
LIKELIHOOD = LikelihoodObjective()
MODEL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 48, "vocab_size": 257}

# Sums of at most 48 terms and 16 channels in another order, of losses near ln 257: see test_documents.py.
TOLERANCE = 10 * 2**-24 * 64 * 2 * 5.6


def run_of(**sections: dict[str, Any]) -> RunConfig:
    return validate({"model": MODEL, "train": {"batch_size": 4, "steps": 3}} | sections, origin="test")


@pytest.fixture(scope="module")
def model() -> GPT:
    return build(run_of().model, seed=3).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "pairs.jsonl"
    records = [{"prompt": f"ask {n}:", "completion": " " + "yes" * (1 + n % 3)} for n in range(30)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def by_hand(model: GPT, prompt: str, completion: str) -> float:
    """-log p(completion and the end of text | prompt), one token after the other."""
    ids, total = [256, *prompt.encode()], 0.0
    for token in [*completion.encode(), 256]:
        with torch.inference_mode():
            logs = model(torch.tensor([ids]))[0, -1].double().log_softmax(-1)
        total -= float(logs[token])
        ids.append(token)
    return total


@pytest.mark.parametrize("pack", [True, False])
def test_the_loss_is_that_of_the_completions(model: GPT, path: Path, pack: bool) -> None:
    plan = BatchPlan(batch_size=3, block_size=48)
    source = example_batches(ExamplesData(path=path, pack=pack), seed=1, plan=plan)
    batch = source.batch_at(0)
    wanted, count = 0.0, 0
    for row in batch.tokens_BT:
        for text in bytes(byte if byte < 256 else 0 for byte in row.tolist()).decode().split("\0"):
            if text:
                prompt, colon, completion = text.partition(":")
                wanted += by_hand(model, prompt + colon, completion)
                count += len(completion) + 1
    found, _ = ENGINE.evaluate(model, batch)
    assert batch.count == count
    assert found == pytest.approx(wanted, abs=batch.count * TOLERANCE)
    whole = example_batches(ExamplesData(path=path, pack=pack, prompts=True), seed=1, plan=plan)
    unmasked, _ = ENGINE.evaluate(model, whole.batch_at(0))
    assert abs(unmasked - wanted) > 10  # a mask that is dropped is seen


def losses(model: GPT, batch: Batch, documents: bool) -> dict[bytes, float]:
    """The loss of each example of a batch, by its tokens."""
    given = torch.from_numpy(batch.documents_BT) if documents and batch.documents_BT is not None else None
    with torch.inference_mode():
        logs = model(torch.from_numpy(batch.tokens_BT), documents_BT=given).log_softmax(-1)
    found: dict[bytes, float] = {}
    for row, targets in enumerate(batch.targets_BT):
        numbers = np.zeros(len(targets), int) if batch.documents_BT is None else batch.documents_BT[row]
        for number in np.unique(numbers):
            here = np.flatnonzero((numbers == number) & (targets != IGNORE))
            if len(here):
                start = int(np.flatnonzero(numbers == number)[0])
                picked = logs[row, here].gather(1, torch.from_numpy(targets[here])[:, None])
                found[batch.tokens_BT[row, start : here[-1] + 1].tobytes()] = -float(picked.sum())
    return found


def test_a_packed_example_costs_what_it_costs_alone(model: GPT, path: Path) -> None:
    plan = BatchPlan(batch_size=40, block_size=48)
    packed, alone = (
        example_batches(ExamplesData(path=path, pack=pack), seed=1, plan=plan).batch_at(0) for pack in (True, False)
    )
    ours, theirs = losses(model, packed, documents=True), losses(model, alone, documents=True)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 20
    assert max(abs(ours[e] - theirs[e]) for e in ours) < 11 * TOLERANCE
    leaking = losses(model, packed, documents=False)  # without the mask they see each other
    assert max(abs(leaking[e] - theirs[e]) for e in ours) > 1e-2


def test_what_is_frozen_stays_and_costs_nothing(path: Path) -> None:
    still = "transformer.h.0.*"
    config = run_of(optim={"lr_scale": {still: 0.0}, "matrices": {"kind": "muon"}, "ema": 0.5})
    source = example_batches(ExamplesData(path=path), seed=1, plan=BatchPlan.of(config))
    state = ENGINE.init(config)
    before, _ = ENGINE.arrays(state)
    began = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    for step in range(3):
        ENGINE.step(state, source.batch_at(step), config=config, share=1.0, step=step).host()
    after, optimizer = ENGINE.arrays(state)
    for name, p in state.model.named_parameters():
        same = torch.equal(began[name], p)
        assert same == name.startswith("transformer.h.0."), name
        assert np.array_equal(before[name], after[name]) == same, name
    assert not any(".h.0." in name for name in optimizer if not name.startswith("weight."))
    restored = ENGINE.restore(config, *ENGINE.arrays(state))
    for s in (state, restored):
        ENGINE.step(s, source.batch_at(3), config=config, share=1.0, step=3)
    one, two = (ENGINE.arrays(s)[0] for s in (state, restored))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    less, more = (ENGINE.step_memory(c).state for c in (config, derive(config, optim={"lr_scale": {}})))
    matrices, vectors = 12 * 16**2, 2 * 16  # of a block: one momentum, two moments
    assert more - less == pytest.approx(4 * (matrices + 2 * vectors), rel=0.01)  # and a count for each vector
    with pytest.raises(ConfigError, match="freezes every parameter"):
        ENGINE.init(derive(config, optim={"lr_scale": {"*": 0.0}}))


MUON = run_of(optim={"matrices": {"kind": "muon", "lr": 0.02}})


def tuned(base: RunConfig, objective: ObjectiveConfig = LIKELIHOOD, **changes: Any) -> RunConfig:
    pairs = objective.kind == "preference"
    data = PairsData(path=Path("x")) if pairs else ExamplesData(path=Path("x"))
    how: dict[str, Any] = {"steps": 50, "scales": {}, "exact": True, "objective": objective} | changes
    return finetuned_config(base, base.model, data, **how)


def rates(config: RunConfig) -> tuple[float, float]:
    assert config.optim.matrices.kind == "muon"
    return config.optim.lr, config.optim.matrices.lr


def test_rates_are_shares_of_those_of_the_pretraining_however_long_the_chain() -> None:
    first = tuned(MUON)
    longer = stretched_config(first, 96)
    assert rates(longer) == pytest.approx((0.15e-3, 0.003))  # a stretch takes its share of the run's own
    second = tuned(derive(longer, optim={"lr": 7e-3}), new_tokens=True)  # whatever was tried in between
    assert rates(second) == pytest.approx((1e-3, 0.02))
    third = tuned(second, PreferenceObjective(reference="x"))
    assert rates(third) == pytest.approx((0.03e-3, 0.03 * 0.02))
    assert rates(tuned(third)) == pytest.approx((0.3e-3, 0.006))
    again = validate(tomllib.loads(dump_toml(third)), origin="test")
    assert again.optim == third.optim  # the run carries it


def test_learning_rates_fall_towards_the_input() -> None:
    model = run_of().model
    assert layerwise(model, 0.5) == {
        "transformer.w[tp]e.*": 0.25,
        "transformer.h.0.*": 0.5,
        "transformer.h.1.*": 1.0,
    }
    config = tuned(run_of(), scales=layerwise(model, 0.5))
    assert config.optim.scale_of("transformer.wte.weight") == 0.25
    assert config.optim.scale_of("transformer.ln_f.weight") == 1.0
    assert config.train.best == "exact"
    assert config.optim.lr == pytest.approx(0.3e-3)
    for new_tokens, share in ((False, 0.3), (True, 1.0)):
        assert rates(tuned(MUON, new_tokens=new_tokens)) == pytest.approx((share * 1e-3, share * 0.02))
    with pytest.raises(ConfigError, match="matches no parameter"):
        frozen(model, ["transformer.h.7.*"])


def test_what_is_said_last_holds_over_what_the_base_was_trained_with() -> None:
    """The last match wins, so a glob that the base has too must not stay in front of the base's others."""
    model = run_of().model
    base = derive(run_of(), optim={"lr_scale": {"*": 0.5, "*.mlp.*": 2.0, "*.wpe.*": 0.0}})
    optim = tuned(base, scales=frozen(model, ["*"])).optim
    assert {optim.scale_of(p.name) for p in parameters(model)} == {0.0}
    optim = tuned(base).optim
    assert {optim.scale_of(p.name) for p in parameters(model)} == {0.5, 2.0}


@pytest.mark.parametrize("tied", [True, False])
def test_more_tokens_change_nothing_of_the_others(tied: bool) -> None:
    config = run_of(model=MODEL | {"tie_embeddings": tied, "vocab_multiple": 64}).model
    old = build(config, seed=3).eval()
    weights = {name: p.detach().numpy().copy() for name, p in old.named_parameters()}
    labels = [f"<|{name}|>" for name in ("ab_c", "de", "__")]
    known = ByteTokenizer()
    tokenizer = with_special(known, labels)
    grown, wider = grown_vocabulary(config, weights, known, tokenizer)
    new = build(grown, values=wider).eval()
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        assert torch.equal(new(tokens)[..., :257], old(tokens))
    assert new(tokens).shape[-1] == 260
    for table in (wider[name] for name in ("transformer.wte.weight", "lm_head.weight") if name in wider):
        for row, text in ((257, " ab c"), (258, " de")):  # a label begins among what spells it
            assert np.allclose(table[row], table[list(text.encode())].mean(axis=0), atol=1e-6)
        assert not np.allclose(table[257], table[258], atol=1e-3)
        assert np.allclose(table[259:], table[:257].mean(axis=0), atol=1e-6)
    assert grown_vocabulary(config, weights, known, known) == (config, weights)


def test_labels_are_few() -> None:
    examples = [example_of({"prompt": str(n), "completion": "ab"[n % 2]}, "{prompt}{completion}", "") for n in range(9)]
    tokenizer = tokenizer_with(CharTokenizer("0123"), examples)
    assert list(tokenizer.special_tokens) == ["<|endoftext|>", "<|a|>", "<|b|>"]
    assert tokenizer_with(ByteTokenizer(), None).vocab_size == 257
    with pytest.raises(ConfigError, match="9 examples have 9 different ones"):
        tokenizer_with(ByteTokenizer(), [example_of({"text": str(n)}, "{text}", "") for n in range(9)])


def test_the_best_is_most_exact_or_has_the_lowest_loss() -> None:
    right, sure = (
        Evaluation(loss=loss, perplexity=0.0, bits_per_byte=None, exact=exact, tokens=1)
        for loss, exact in ((2.0, 0.9), (1.0, 0.8))
    )
    assert right.badness("exact") < sure.badness("exact")
    assert sure.badness("loss") < right.badness("loss")
    likely, unlikely, wrong = (
        replace(sure, loss=loss, ordered=ordered, margin=margin)
        for loss, ordered, margin in ((0.1, 0.9, 0.1), (0.2, 0.9, 0.2), (0.0, 0.8, 0.3))
    )
    assert likely.badness("preference") < unlikely.badness("preference") < wrong.badness("preference")


def test_a_whole_split_is_scored_example_by_example(model: GPT, path: Path) -> None:
    source = example_batches(ExamplesData(path=path), seed=1, plan=BatchPlan(batch_size=3, block_size=48))
    found = evaluate(ENGINE, model, source)
    texts = [bytes(source.val.example(n)[0][1:-1].tolist()).decode() for n in range(len(source.val))]
    parts = [text.partition(":") for text in texts]
    wanted = sum(by_hand(model, prompt + colon, rest) for prompt, colon, rest in parts)
    assert found.loss * found.tokens == pytest.approx(wanted, abs=found.tokens * TOLERANCE)
    assert found.tokens == sum(len(rest) + 1 for _, _, rest in parts)
    assert found.exact == 0.0
