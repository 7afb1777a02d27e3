"""Sessions, guesses, dialogues and several samples over caches that forget: the text is that of plain steps."""

from __future__ import annotations

import numpy as np
import pytest

from bonsaigpt.errors import GenerateError
from bonsaigpt.generate import Request, Session
from bonsaigpt.generate.speculation import LookupDraft
from bonsaigpt.kv import read_policy
from bonsaigpt.sampling import Sampling
from bonsaigpt.torch_engine.kv.decoder import PolicyDecoder
from tests.torch_engine.decoders import CPU, model_of

POLICIES = [
    "full, int4",
    "sinks(1)+window(8), int8",
    "window(4)+h2o(5), int4(group=4)",
    "window(7), x=int8, positions=slot",
    "window(9), k=int2(axis=channel, group=4, residual=2), v=int2",
]
MODEL = model_of("modern")
PROMPT = np.random.default_rng(3).integers(0, 17, 11)


def decoder(policy: str, rows: int = 1) -> PolicyDecoder:
    return PolicyDecoder(MODEL, read_policy(policy), rows=rows, placement=CPU)


def by_steps(policy: str, prompt: np.ndarray, tokens: int) -> list[int]:
    """Greedy, one token after the other."""
    plain, found = decoder(policy), []
    logits = plain.prefill(0, prompt)
    for _ in range(tokens):
        found.append(int(logits.argmax()))
        logits = plain.step(np.array([0]), np.array(found[-1:]))[0]
    return found


def request(prompt: np.ndarray, tokens: int = 12, **settings: object) -> Request:
    return Request(prompt=prompt.tolist(), max_tokens=tokens, sampling=Sampling(temperature=0), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", POLICIES)
def test_guessing_changes_no_token(policy: str) -> None:
    prompt = np.array([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3])
    session = Session(decoder(policy), vocab_size=17, draft=LookupDraft(length=1, count=3))
    [done] = session.run([request(prompt)])
    assert session.speculation.guessed > 0
    assert done.tokens == by_steps(policy, prompt, 12)


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_share_rows_and_prompts(policy: str) -> None:
    """Five requests on two rows, two of them with the same prompt."""
    prompts = [PROMPT, PROMPT[:5], PROMPT, PROMPT[2:], PROMPT[::-1].copy()]
    found = Session(decoder(policy, 2), vocab_size=17).run([request(p) for p in prompts])
    assert [done.tokens for done in found] == [by_steps(policy, p, 12) for p in prompts]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_dialogue_goes_on(policy: str) -> None:
    """The history is held; where the next prompt leaves it, what cannot be gone back to is read again."""
    inner = decoder(policy)
    session = Session(inner, vocab_size=17, reuse=True)
    [first] = session.run([request(PROMPT, 4)])
    history = np.array([*PROMPT, *first.tokens])
    session.run([request(np.concatenate([history, [3, 4]]), 3)])
    [retried] = session.run([request(PROMPT, 4)])
    assert retried.tokens == first.tokens
    [other] = session.run([request(np.concatenate([history[:13], [9, 9]]), 3)])
    assert len(other.tokens) == 3
    assert inner.length(0) >= 15


def test_a_text_beyond_the_block_needs_no_sliding_where_all_is_forgotten_in_time() -> None:
    assert MODEL.config.block_size == 24
    [done] = Session(decoder("window(8), int8"), vocab_size=17).run([request(PROMPT, 80, overflow="error")])
    assert done.tokens == by_steps("window(8), int8", PROMPT, 80)
    with pytest.raises(GenerateError, match="do not fit the model's block of 24"):
        Session(decoder("full, int8"), vocab_size=17).add(request(PROMPT, 80, overflow="error"))
    [slid] = Session(decoder("full, int8"), vocab_size=17).run([request(PROMPT, 40)])
    assert len(slid.tokens) == 40


def test_a_row_goes_back_where_it_can_and_says_where() -> None:
    row = decoder("window(6), int8")
    row.prefill(0, PROMPT)
    row.step(np.array([0]), np.array([1]))
    row.verify(0, np.array([2, 3, 4]))
    want = decoder("window(6), int8")
    want.prefill(0, PROMPT)
    for token in (1, 2):
        want.step(np.array([0]), np.array([token]))
    assert [row.reach(0, length) for length in (15, 14, 13, 12, 11, 10, 0)] == [15, 14, 13, 12, 11, 0, 0]
    with pytest.raises(GenerateError, match=r"cut to 5 of 15 tokens.*it can go back to 0, 11, 12, 13, 14, 15"):
        row.truncate(0, 5)
    row.truncate(0, 13)
    assert np.array_equal(row.step(np.array([0]), np.array([7])), want.step(np.array([0]), np.array([7])))
    row.truncate(0, 11)
    fresh = decoder("window(6), int8")
    fresh.prefill(0, PROMPT)
    assert np.array_equal(row.step(np.array([0]), np.array([1])), fresh.step(np.array([0]), np.array([1])))
    row.truncate(0, 0)
    assert row.length(0) == row.bits() == 0


def test_a_store_without_groups_is_cut_anywhere() -> None:
    for policy in ("full, int4(sinks=2)", "full, x=fp16", "full; layers 1: full, e4m3"):
        row, want = decoder(policy), decoder(policy)
        row.prefill(0, PROMPT)
        row.truncate(0, 5)
        want.prefill(0, PROMPT[:5])
        assert row.bits() == want.bits()
        assert np.array_equal(row.step(np.array([0]), np.array([7])), want.step(np.array([0]), np.array([7])))
    waiting = decoder("full, int4(residual=3)")
    waiting.prefill(0, PROMPT)
    assert waiting.reach(0, 5) == 0


def test_copies_share_nothing_that_changes() -> None:
    both = decoder("window(4)+h2o(5), int4", rows=2)
    both.prefill(0, PROMPT)
    bits = both.bits()
    both.copy_row(0, 1)
    assert both.bits() == bits  # the same memory, counted once
    both.step(np.array([1]), np.array([9]))
    alone = decoder("window(4)+h2o(5), int4")
    alone.prefill(0, PROMPT)
    assert np.array_equal(both.step(np.array([0]), np.array([3])), alone.step(np.array([0]), np.array([3])))


def test_a_failed_prefill_leaves_the_row_as_it_was() -> None:
    row = decoder("full, int8")
    row.prefill(0, PROMPT)
    for bad in (np.array([99]), np.array([], dtype=int), np.arange(14) % 17):
        with pytest.raises(GenerateError):
            row.prefill(0, bad)
        assert row.length(0) == 11
