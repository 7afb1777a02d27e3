"""Caches with a policy: what is exact is exact for every block variant and any cut of the text, what is forgotten is
what the policy says, and what is held is what is counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bonsaigpt.errors import ConfigError
from bonsaigpt.kv import read_policy
from bonsaigpt.torch_engine import attention
from bonsaigpt.torch_engine.eager import EagerDecoder
from bonsaigpt.torch_engine.kv.cache import PolicyCache
from bonsaigpt.torch_engine.kv.decoder import PolicyDecoder, PolicyReader
from tests.torch_engine.caching import ALL, LONG, TAKING, TEXT, through
from tests.torch_engine.decoders import CPU, logits_of, model_of
from tests.torch_engine.variants import NO_POLICY, variant

# ------------------------------------------------------------------ exact


@pytest.mark.parametrize("name", TAKING)
def test_full_is_no_policy_bit_for_bit(name: str) -> None:
    model = model_of(name)
    windows = getattr(model.config.attention, "window", None) is not None  # then what nobody sees is not held
    eager = EagerDecoder(model, rows=1, placement=CPU)
    policy = PolicyDecoder(model, read_policy("full, chunk=512"), rows=1, placement=CPU)
    for t in (7, *range(8, 25)):
        since = policy.length(0)
        one, other = (
            d.prefill(0, TEXT[since:t]) if since == 0 else d.step(np.array([0]), TEXT[since:t])[0]
            for d in (eager, policy)
        )
        assert np.abs(one - other).max() < 1e-5 if windows else np.array_equal(one, other)
    narrow = PolicyDecoder(model, read_policy("full, int8"), rows=1, placement=CPU)
    assert not np.array_equal(narrow.verify(0, TEXT)[-1], other)


@pytest.mark.parametrize("policy", ["full", "full, keys=unrotated", "full, x=exact", "full, positions=slot"])
@pytest.mark.parametrize("name", TAKING)
def test_exact_holds_equal_the_whole_text_at_once(name: str, policy: str) -> None:
    model = model_of(name)
    if "slot" in policy and model.config.position.kind != "rope":
        with pytest.raises(ConfigError, match="not rope: use positions=true"):
            through(model, policy)
        return
    want = logits_of(model, TEXT)
    for cuts in [(), (1,), (5, 6, 19), (23,)]:
        assert np.abs(through(model, policy, cuts=cuts) - want).max() < 1e-5


def test_a_turned_key_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the above: keys that are turned by one position too much."""
    model = model_of("rope")
    from bonsaigpt.torch_engine.kv import cache

    turn = cache._Turning.turn
    monkeypatch.setattr(
        cache._Turning, "turn", lambda self, x, at: turn(self, x, at + 1 if x.shape[-2] > 8 and x.ndim == 4 else at)
    )
    assert np.abs(through(model, "full, keys=unrotated") - logits_of(model, TEXT)).max() > 1e-3


@pytest.mark.parametrize("policy", ["full, fp16", "full, x=fp16", "full, int8(residual=24)", "full, int2(sinks=24)"])
def test_sixteen_bits_are_next_to_exact(policy: str) -> None:
    for name in ("gpt2", "modern"):
        model = model_of(name)
        assert 0 < np.abs(through(model, policy) - logits_of(model, TEXT)).max() < 5e-3
        assert np.abs(through(model, "full, int2") - logits_of(model, TEXT)).max() > 0.1


@pytest.mark.parametrize(
    "select",
    ["window(24)", "sinks(2)+window(22)", "window(4)+h2o(20)", "window(4)+snapkv(20, queries=3)", "window(4)+tova(20)",
     "window(4)+keynorm(20)", "window(4)+random(20)"],
)  # fmt: skip
def test_a_budget_for_the_whole_text_changes_nothing(select: str) -> None:
    model = model_of("modern")
    want = logits_of(model, TEXT)
    for cuts in [(), (9, 10)]:
        assert np.abs(through(model, select, cuts=cuts) - want).max() < 1e-5
    less = select.replace("24", "9").replace("22", "7").replace("20", "5")
    assert np.abs(through(model, less) - want).max() > 1e-2


# ------------------------------------------------------------------ forgetting


@pytest.mark.parametrize("name", ["rope", "rope, neighbours", "no position", "grouped queries"])
@pytest.mark.parametrize(("sinks", "window"), [(0, 5), (2, 7)])
def test_a_window_is_the_window_of_a_mask(name: str, sinks: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the whole text at once under a mask, at true positions, however the text is cut: with and without
    groups of tokens that are forgotten together."""
    model = model_of(name)
    policy = f"sinks({sinks})+window({window})" if sinks else f"window({window})"
    grouped = f"{policy}, k=int8(axis=channel, group=2, sinks={sinks}), v=exact"
    found = [through(model, policy, cuts=cuts) for cuts in [(), (3, 20), (1, 2, 15, 16)]]
    coded, whole = through(model, grouped), logits_of(model, TEXT)
    plain = attention.attend

    def masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **rest: Any) -> Tensor:
        at = torch.arange(q.shape[2])
        away = at[:, None] - at
        return plain(q, k, v, (away >= 0) & ((away < window) | (at < sinks)), **rest)

    monkeypatch.setattr(attention, "attend", masked)
    with torch.inference_mode():
        want = model(torch.from_numpy(TEXT)[None])[0].numpy()
    assert all(np.abs(logits - want).max() < 1e-5 for logits in found)
    assert np.abs(coded - want).max() < 0.2
    assert np.abs(whole - want).max() > 0.2


@pytest.mark.parametrize("select", ["sinks(2)+window(6)", "window(3)+h2o(4)", "window(3)+tova(4)"])
def test_turning_the_survivors_is_turning_after_choosing(select: str) -> None:
    """rotate again (choose (rotate k)) = rotate (choose k), and neither is the true positions'."""
    for name in ("rope", "rope, neighbours", "rope, yarn", "modern"):
        model = model_of(name)
        again = through(model, f"{select}, positions=slot", LONG)
        after = through(model, f"{select}, keys=unrotated, positions=slot", LONG)
        true = through(model, select, LONG)
        assert np.abs(again - after).max() < 2e-5
        assert np.abs(through(model, f"{select}, keys=unrotated", LONG) - true).max() < 2e-5
        assert np.abs(again - true).max() > 1e-2


def test_a_text_far_beyond_every_table_does_not_drift() -> None:
    """Longer than block, window and residual: a cache of slots sees the same whatever stood long before."""
    model = model_of("rope", n_layer=1)
    other = np.concatenate([LONG[:40][::-1], LONG[40:]])
    for policy in ("window(6), int4(residual=2), positions=slot", "window(6), int4(residual=2)"):
        one, two = through(model, policy, LONG), through(model, policy, other)
        assert np.isfinite(one).all()
        assert np.abs(one[46:] - two[46:]).max() < (1e-5 if "slot" in policy else 1e-3)
        assert np.abs(one[:40] - two[:40]).max() > 1e-2


@pytest.mark.parametrize("policy", ALL)
def test_true_positions_survive(policy: str) -> None:
    """The newest token is always held, sinks stay, the budget holds, and all is in the text's order."""
    model = model_of("modern")
    reader = PolicyReader(model, read_policy(policy), placement=CPU)
    for t in range(30):
        reader.read(LONG[None, t : t + 1])
        for layer in range(3):
            select = read_policy(policy).of(layer).select
            found = reader.positions(layer)
            assert (np.diff(found) > 0).all()
            assert (found[..., -1] == t).all()
            most = getattr(select, "most", 99) - 1
            slack = read_policy(policy).of(layer).granularity - 1 + getattr(select, "queries", 1) - 1
            assert min(t + 1, most) <= found.shape[-1] <= most + slack
            sinks = min(t + 1, getattr(select, "sinks", 0))
            assert (found[..., :sinks] == np.arange(sinks)).all()


@pytest.mark.parametrize("policy", [p for p in ALL if "full" not in p])
def test_what_is_forgotten_follows_from_the_past_alone(policy: str) -> None:
    model = model_of("modern")
    other = np.concatenate([LONG[:20], LONG[20:][::-1]])
    kv = read_policy(policy)
    readers = [PolicyReader(model, kv, placement=CPU) for _ in range(2)]
    for start in range(0, 40, 4):
        one, two = (r.read(t[None, start : start + 4]) for r, t in zip(readers, (LONG, other), strict=True))
        assert np.array_equal(one, two) == (start < 20)


class Head(SimpleNamespace):
    """As much of an ``Attention`` as a cache asks for."""

    plain, has_own, window, sinks, scale = True, True, None, None, None


def read(cache: PolicyCache, head: Head, qk_BTHK: Tensor, v_BTGK: Tensor) -> Tensor:
    """Attention of new tokens with these queries, keys and values."""
    head.heads = lambda x_BTD: (qk_BTHK, v_BTGK)
    found, _ = cache.attend(head, torch.zeros(*qk_BTHK.shape[:2], 1), None, None)  # type: ignore[arg-type]
    return found


RULES = ["h2o, mode=raw", "h2o, mode=decay, decay=0.9", "h2o, mode=age", "tova", "keynorm", "random"]


@pytest.mark.parametrize("rule", RULES)
def test_scores_are_those_of_the_textbook(rule: str) -> None:
    """Step by step in float64 with everything at hand, each head with a list of what it still has."""
    T, H, G, K, budget, newest = 40, 4, 2, 8, 5, 3
    rng = np.random.default_rng(5)
    q, k, v = (rng.normal(size=(T, n, K)) for n in (H, G, G))
    kind, _, settings = rule.partition(", ")
    words = f"window({newest})+{kind}({budget}{', ' + settings if settings else ''})"
    cache = PolicyCache(variant("no position", n_layer=1, attention={"n_kv_head": 2}), read_policy(words))
    head = Head(layer=0, n_head=H, n_kv_head=G)
    held = [list(range(0)) for _ in range(G)]
    total, age = np.zeros((G, T)), np.zeros(T)
    from bonsaigpt.randomness import key, uniform

    for t in range(T):
        qk = torch.from_numpy(np.concatenate([q[t], k[t]]))[None, None]
        found = read(cache, head, qk, torch.from_numpy(v[t])[None, None])
        share, want = np.zeros((G, T)), np.zeros((H, K))
        for g in range(G):
            held[g].append(t)
        age[: t + 1] += 1
        for h in range(H):
            seen = held[h * G // H]
            scores = k[seen, h * G // H] @ q[t, h] / K**0.5
            p = np.exp(scores - scores.max())
            want[h] = p / p.sum() @ v[seen, h * G // H]
            share[h * G // H, seen] += p / p.sum()
        assert np.abs(found[0, :, 0].numpy() - want).max() < 1e-6
        total = total * (0.9 if "decay" in rule else 1) + share
        for g in range(G):
            rank = {
                "h2o": total[g] / age.clip(1) if "age" in rule else total[g],
                "tova": share.mean(0),
                "keynorm": -np.linalg.norm(k[:, g], axis=-1),
                "random": uniform(key(0, "kept", 0, g), np.arange(T)),
            }[kind]
            if len(held[g]) > budget + newest - 1:
                held[g].remove(min(held[g][: 1 - newest], key=lambda i: rank[i]))
        assert cache.positions(0)[0].expand(G, -1).tolist() == held


def test_snapkv_chooses_by_the_last_queries_every_few_tokens() -> None:
    """A token that the last queries look at stays although nobody did before; between choices nothing goes."""
    cache = PolicyCache(
        variant("no position", n_layer=1, n_head=1, n_embd=8), read_policy("window(4)+snapkv(2, queries=4, pool=1)")
    )
    head = Head(layer=0, n_head=1, n_kv_head=1)
    k = np.eye(8)[np.arange(16) % 8] * 5
    sizes = []
    for t in range(16):
        q = k[2] if t >= 12 else k[5]
        qk = torch.from_numpy(np.stack([q, k[t]]))[None, None].float()
        read(cache, head, qk, torch.zeros(1, 1, 1, 8))
        sizes.append(cache.positions(0).shape[-1])
    assert sizes[-8:] == [6, 7, 8, 5, 6, 7, 8, 5]
    assert 10 in cache.positions(0)[0, 0].tolist() or 2 in cache.positions(0)[0, 0].tolist()
    assert 5 not in cache.positions(0)[0, 0].tolist()


# ------------------------------------------------------------------ rows, copies, bits


@pytest.mark.parametrize("policy", ALL)
def test_a_row_alone_is_the_row_in_a_batch(policy: str) -> None:
    """No scale, choice or group is shared between rows; one row has numbers a hundred times as large."""
    model = model_of("modern")
    with torch.no_grad():
        model.transformer.wte.weight[16] *= 100
    rows = np.stack([np.full(30, 16), LONG[:30], LONG[30:60]])
    together = PolicyReader(model, read_policy(policy), placement=CPU)
    found = np.concatenate([together.read(rows[:, t : t + 3]) for t in range(0, 30, 3)], axis=1)
    for row, logits in zip(rows, found, strict=True):
        alone = through(model, policy, row, tuple(range(3, 30, 3)))
        assert np.abs(alone - logits).max() < 2e-3 if "int" in policy else np.abs(alone - logits).max() < 1e-4


CONSTANTS = {"_turn", "_turning"}
"""Attributes that lead to the Hadamard matrix and to RoPE's table, which all caches share."""


def walk(thing: Any, found: dict[int, int]) -> dict[int, int]:
    """Bytes of the memory behind every tensor that can be reached from an object."""
    if isinstance(thing, Tensor):
        found[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    elif isinstance(thing, dict):
        for name, child in thing.items():
            walk(child, found if name not in CONSTANTS else {})
    elif isinstance(thing, list | tuple):
        walk(dict(enumerate(thing)), found)
    elif hasattr(thing, "__dict__"):
        walk(vars(thing), found)
    return found


@pytest.mark.parametrize("policy", ALL)
def test_bits_are_the_bytes_that_are_held(policy: str) -> None:
    model = model_of("modern")
    cache = PolicyCache(model.config, read_policy(policy))
    with torch.inference_mode():
        for start in range(0, 60, 5):
            model(torch.from_numpy(LONG[None, start : start + 5]), cache=cache)
            held = sum(walk(cache._layers, {}).values())
            assert cache.bits() == 8 * held > 0
    next(iter(cache._layers[0]._stores.values()))._spare = torch.zeros(3)  # type: ignore[attr-defined]
    assert cache.bits() != 8 * sum(walk(cache._layers, {}).values())


def test_bits_by_hand() -> None:
    """Of 2 heads of 8 channels, 3 layers."""
    model = model_of("modern")
    config = model.config
    assert (config.n_kv_head, config.head_width, config.n_layer) == (2, 8, 3)

    def bits(policy: str) -> int:
        cache = PolicyCache(config, read_policy(policy))
        with torch.inference_mode():
            for t in range(50):
                model(torch.from_numpy(LONG[None, t : t + 1]), cache=cache)
        return cache.bits()

    heads = 3 * 2
    assert bits("full") == 50 * heads * 2 * 8 * 32
    assert bits("full, bf16") == 50 * heads * 2 * 8 * 16
    assert bits("window(10), int8") == 9 * heads * 2 * (8 * 8 + 16)
    assert bits("window(10), int4(group=4)") == 9 * heads * 2 * (8 * 4 + 2 * 32)
    assert bits("window(10), int3") == 9 * heads * 2 * (8 * 3 + 32)
    assert bits("window(10), e4m3") == 9 * heads * 2 * 8 * 8
    assert bits("window(10), ternary") == 9 * heads * 2 * (2 * 8 + 32)
    assert bits("window(10), sign") == 9 * heads * 2 * (8 + 32)
    assert bits("sinks(2)+window(10), int8(sinks=2, residual=3)") == heads * 2 * (5 * 8 * 16 + 6 * 80)
    # Of 50 tokens 48 are coded in groups of 4; 9 and less than a group stay: 10 = 2 groups and 2 in 16 bits.
    assert bits("window(10), int2(axis=channel, group=4)") == heads * 2 * (2 * 8 * (4 * 2 + 32) + 2 * 8 * 16)
    assert bits("window(4)+h2o(6), bf16") == 9 * heads * (2 * 8 * 16 + 32 + 32)  # a position and a score
    assert bits("window(4)+random(6), bf16") == 9 * heads * (2 * 8 * 16 + 32)
    assert bits("window(4)+tova(6), bf16") == 9 * (heads * 2 * 8 * 16 + 3 * 32)  # a position of all heads
    assert bits("window(10), x=bf16") == 9 * 3 * 32 * 16


@pytest.mark.parametrize("policy", ALL)
def test_a_fork_is_another_future_of_the_same_past(policy: str) -> None:
    model = model_of("modern")
    cache = PolicyCache(model.config, read_policy(policy))
    straight = PolicyCache(model.config, read_policy(policy))

    def read(into: PolicyCache, tokens: np.ndarray) -> Tensor:
        with torch.inference_mode():
            return model(torch.from_numpy(tokens[None]), cache=into)

    read(cache, LONG[:20])
    read(straight, LONG[:20])
    fork = cache.fork()
    assert fork.bits() == cache.bits()
    for start in range(60, 80, 2):
        read(fork, LONG[start : start + 2])  # another text, all buffers of it
    for start in range(20, 40, 4):
        assert torch.equal(read(cache, LONG[start : start + 4]), read(straight, LONG[start : start + 4]))
    assert not torch.equal(read(fork, LONG[40:44]), read(straight, LONG[40:44]))


def test_a_policy_that_does_not_fit_the_model_says_why() -> None:
    config = variant("modern")
    for words, why in [
        ("int4(group=3)", "group=3 does not divide the 8 channels of k: use one of 2, 4, 8"),
        ("full, x=int4(group=5)", "group=5 does not divide the 32 channels of x"),
        ("full; layers 3: int8", "there is no layer 3: the model has 0 to 2"),
    ]:
        with pytest.raises(ConfigError, match=why):
            PolicyCache(config, read_policy(words))
    with pytest.raises(ConfigError, match="layer 1 reads the keys and values of layer 0: say of that one"):
        PolicyCache(variant("shared keys and values"), read_policy("full; layers 1: int8"))
    for words in ("window(4)+h2o(8)", "sinks(2)+window(8)"):
        with pytest.raises(ConfigError, match=r"layer 0 holds is seen by layers whose own window is of 5 tokens"):
            PolicyCache(variant("sliding windows"), read_policy(words))


def test_what_the_model_itself_does_not_see_is_not_held() -> None:
    """Layers 0 and 2 have a window of 5, layer 1 none; of shared layers the widest window counts; a policy may hold
    less."""

    def held(name: str, policy: str) -> list[int]:
        reader = PolicyReader(model_of(name), read_policy(policy), placement=CPU)
        reader.read(TEXT[None])
        return [reader.positions(layer).shape[-1] for layer in range(3)]

    assert held("sliding windows", "full, int8") == [4, 24, 4]
    assert held("sliding windows", "window(9), int8") == [4, 8, 4]
    assert held("sliding windows", "window(3), int8") == [2, 2, 2]
    assert held("shared, in windows", "full, int8") == [24, 24, 24]
    model = model_of("shared keys and values")
    reader = PolicyReader(model, read_policy("full, bf16"), placement=CPU)
    reader.read(TEXT[None])
    assert reader.bits() == len(TEXT) * 2 * 2 * 2 * 8 * 16  # layers 0 and 2, keys and values of 2 heads of 8


@pytest.mark.parametrize("name", sorted(NO_POLICY))
def test_attention_that_no_policy_knows_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.attention\.kind\b.*: leave the policy out"):
        PolicyCache(variant(name), read_policy("full, int8"))


def test_the_temperature_of_yarn_is_applied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the turning of survivors: keys that are turned again are sharpened once more."""
    from bonsaigpt.torch_engine.kv import cache

    model, policy = model_of("rope, yarn"), "sinks(2)+window(6), positions=slot"
    want = through(model, policy, LONG)
    monkeypatch.setattr(cache._Turning, "move", cache._Turning.turn)
    assert np.abs(through(model, policy, LONG) - want).max() > 1e-3
