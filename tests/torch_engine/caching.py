"""What tests of caches read, and the policies that they try."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from bonsaigpt.kv import read_policy
from bonsaigpt.torch_engine.kv.decoder import PolicyReader
from bonsaigpt.torch_engine.model import GPT
from tests.torch_engine.decoders import CPU
from tests.torch_engine.variants import NO_POLICY, VARIANTS

TEXT = np.random.default_rng(0).integers(0, 17, 24)
LONG = np.random.default_rng(1).integers(0, 17, 90)
TAKING = [name for name in VARIANTS if name not in NO_POLICY]
"""Variants that may have a policy."""
ALL = [
    "full",
    "full, fp16",
    "window(9)",
    "sinks(2)+window(9), int8(sinks=2, residual=3)",
    "sinks(1)+window(4)+h2o(5), int4(group=4, hadamard)",
    "window(4)+h2o(5, mode=raw), k=int5, v=int6",
    "window(4)+h2o(5, mode=decay)",
    "window(4)+snapkv(5, queries=3, pool=3), x=int4",
    "window(3)+tova(4), e4m3",
    "window(3)+keynorm(4), e5m2(group=4)",
    "window(3)+random(4), ternary",
    "window(9), k=int2(axis=channel, group=4, residual=3), v=int2(group=4)",
    "sinks(2)+window(9), int3(axis=channel, group=4, sinks=2)",
    "full, sign",
    "full, k=bf16, v=int8(residual=2)",
    "window(6), int4; layers 1: full, x=int8; layers 2: window(3)+tova(2)",
]
"""One of everything."""


def through(model: GPT, policy: str, text: np.ndarray = TEXT, cuts: tuple[int, ...] = ()) -> np.ndarray:
    """Logits (T, V) of a text that is read through a cache in pieces; token by token if no cuts are given."""
    reader = PolicyReader(model, read_policy(policy), placement=CPU)
    at = [0, *cuts, len(text)] if cuts else range(len(text) + 1)
    return np.concatenate([reader.read(text[None, a:b])[0] for a, b in pairwise(at)])
