"""Cache policies as text: what is written is read again, and what cannot be names what can."""

from __future__ import annotations

import re

import pytest

from bonsaigpt.config import H2OSelection, IntFormat, KeysAndValues, KVConfig, LayerInput, WindowSelection
from bonsaigpt.errors import ConfigError
from bonsaigpt.kv import read_policy, write_policy

POLICIES = [
    "full",
    "full, chunk=4",
    "window(64)",
    "sinks(4)+window(64), int4(group=32, hadamard)",
    "sinks(2)+window(16)+h2o(32, mode=decay, decay=0.9), e4m3",
    "window(16)+snapkv(48, queries=16, pool=7), k=int3, v=ternary(group=16)",
    "window(8)+tova(24), e5m2(group=8)",
    "window(8)+keynorm(24), sign",
    "window(8)+random(24, seed=3), fp16",
    "window(32), k=int2(group=8, axis=channel, residual=8), v=int2(residual=8), keys=unrotated, positions=slot",
    "window(32), x=int4(sinks=0)",
    "window(64), int8; layers 0,2,3: full, x=bf16; layers 1: window(8), int4",
]


@pytest.mark.parametrize("text", POLICIES)
def test_what_is_written_is_read_again(text: str) -> None:
    policy = read_policy(text)
    assert read_policy(write_policy(policy)) == policy


def test_a_text_means_its_policy() -> None:
    policy = read_policy(
        "sinks(4) + window(64), k=int4(group=32, hadamard), v=int8; layers 1-2: full, x=int3; layer 3: h2o(9)"
    )
    assert policy.policy.select == WindowSelection(sinks=4, window=64)
    assert policy.policy.hold == KeysAndValues(
        k=IntFormat(kind="int4", group=32, hadamard=True), v=IntFormat(kind="int8")
    )
    assert set(policy.layers) == {1, 2, 3}
    assert policy.of(2).hold == LayerInput(x=IntFormat(kind="int3"))
    assert policy.of(3).select == H2OSelection(budget=9, window=8)
    assert policy.of(0) == policy.policy
    assert read_policy("full").is_plain
    assert read_policy("int8") == read_policy("full, int8") != KVConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("int9", "'int9' in the cache policy is not known: formats are exact, fp16, .* Did you mean 'int8'"),
        ("windw(4)", "tokens are chosen by full, sinks, window, h2o.* Did you mean 'window'"),
        ("sinks(4)+windw(4)", "tokens are chosen by full, sinks, window.* Did you mean 'window'"),
        ("sinks(4)", "go with a window: write e.g. sinks"),
        ("full+window(4)", "'full' .* stands alone"),
        ("window(4)+window(5)", "'window' .* stands there twice"),
        ("window(a)", "write a number of tokens"),
        ("window(0)", "window = 0 .*greater than or equal to 1"),
        ("tova", "tova .* needs a number of tokens"),
        ("tova(4)+h2o(4)", "tova and h2o .* choose one"),
        ("int4(grp=3)", "it takes group=N, axis=token.channel, hadamard, residual=N, sinks=N. Did you mean 'group'"),
        ("int4(group=1)", "greater than or equal to 2"),
        ("int4(", "parentheses .* do not match"),
        ("int4)", "parentheses .* do not match"),
        ("", "cannot be read"),
        ("int4, int8", "says twice what k is"),
        ("x=int4, int8", "leave out theirs"),
        ("keys=foo", "use rotated or unrotated"),
        ("kv=int8", "use k, v, x, keys, positions, chunk"),
        ("int4; int8", "says no layers"),
        ("int4; layers 0: int8, chunk=4", "of all layers at once"),
        ("layers 2-1: int8", "write e.g. layers 0,2-3"),
        ("window(8), int4(residual=8)", "nothing would be int4; use residual=6 at most"),
        ("window(8), int4(sinks=2)", "only 0 of them stay: add sinks.2. to the selection"),
        ("sinks(2)+window(8), int4(axis=channel, group=4)", "add sinks=2 to int4"),
        ("h2o(8), int4(axis=channel)", "h2o forgets single tokens"),
        ("window(8), k=int4(axis=channel, group=4), v=int4(axis=channel, group=8)", "use the same for both"),
        ("window(8)+snapkv(8, queries=9)", "use window.9. at least"),
        ("window(8)+snapkv(8, pool=4)", "use an odd number"),
        ("window(1)+h2o(8)", "greater than or equal to 2"),
    ],
)
def test_what_cannot_be_says_what_can(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_policy(text)
    assert re.search(words, str(refused.value)), refused.value
