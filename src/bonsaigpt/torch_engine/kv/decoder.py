"""Decoding through a cache policy: one row after the other, so that the bits of a row depend on nothing but itself.
On a CPU the products are the C++'s, where it can be, and the cache computes the attention between them. And reading
many texts of one length at once, to measure what a policy costs.

Past tokens are gone in most policies, so a row cannot be cut anywhere. It keeps two sorts of marks to go back to: the
end of its last prefill (the same prompt again) and every token of its last ``verify`` (refused guesses). A mark is the
state that the cache had there; it shares what has not changed since.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bonsaigpt.config import KVConfig
from bonsaigpt.errors import GenerateError
from bonsaigpt.kv import write_policy
from bonsaigpt.torch_engine.device import Placement
from bonsaigpt.torch_engine.eager import bytes_of_a_step, check_different, check_row, check_tokens, ready
from bonsaigpt.torch_engine.kv.cache import PolicyCache, bits_of
from bonsaigpt.torch_engine.model import GPT
from bonsaigpt.torch_engine.native.blocks import NativeBlocks
from bonsaigpt.torch_engine.native.building import Missing
from bonsaigpt.torch_engine.rounding import Weights

__all__ = ["PolicyDecoder", "PolicyReader", "attention_maps"]

_ENDLESS = 1 << 40
"""Block size of a row without an end."""


class PolicyReader:
    """See ``bonsaigpt.engines.Reader``."""

    def __init__(self, model: GPT, kv: KVConfig, *, placement: Placement) -> None:
        self._model, self._placement = model.eval(), placement
        self.cache = PolicyCache(model.config, kv, memory=True)

    @property
    def length(self) -> int:
        return self.cache.length

    def read(self, tokens_BT: np.ndarray) -> np.ndarray:
        return _read(self._model, self._placement, self.cache, tokens_BT, every=True)

    def bits(self) -> int:
        return self.cache.bits()

    def positions(self, layer: int) -> np.ndarray:
        return self.cache.positions(layer).cpu().numpy()


class PolicyDecoder:
    """See ``bonsaigpt.engines.Decoder``. Where every layer forgets and positions have no table, a row has no end and
    its context never slides.

    Args:
        native: makes the C++ for the model as decoding reads it; without it the model's own code computes.

    Raises:
        ConfigError: the model cannot have this policy.
    """

    def __init__(
        self,
        model: GPT,
        kv: KVConfig,
        *,
        rows: int,
        placement: Placement,
        weights: Weights = "fp32",
        native: Callable[[GPT], NativeBlocks] | None = None,
    ) -> None:
        self._model, self._placement = ready(model, placement, weights), placement
        self._kv, self.rows = kv, rows
        config = model.config
        self.vocabulary = config.vocabulary
        self.block_size = _ENDLESS if kv.unbounded(config) else config.block_size
        self._marks: list[list[PolicyCache]] = [[] for _ in range(rows)]
        self.weight_bytes = bytes_of_a_step(self._model)
        self._blocks: NativeBlocks | None = None
        rounding = ", int8 weights without their speed" if weights == "int8" else ""
        how = f"the model's own code on {placement.device}{rounding}"
        if native is not None:
            try:
                self._blocks = native(self._model)
                self.weight_bytes, how = self._blocks.weight_bytes, f"C++ around it, {weights} weights"
            except Missing as why:
                how += f"; {why}"
        self._caches = [self._empty() for _ in range(rows)]
        self.why = f"cache policy {write_policy(kv)}: {how}"

    def _empty(self) -> PolicyCache:
        return PolicyCache(self._model.config, self._kv, native=self._blocks is not None)

    def length(self, row: int) -> int:
        return self._caches[row].length

    def prefill(self, row: int, tokens: np.ndarray) -> np.ndarray:
        self._check([row], tokens, len(tokens))
        if len(tokens) < 1:
            raise GenerateError("no tokens were given: a row goes on with one at least")
        cache = self._caches[row].fork()  # whatever happens on the way, the row is as it was until the end
        logits_TV = np.empty((0, 0), dtype=np.float32)
        for start in range(0, len(tokens), self._kv.chunk):
            logits_TV = self._read(cache, tokens[start : start + self._kv.chunk])
        self._caches[row], self._marks[row] = cache, [cache.fork()]
        return logits_TV[-1]

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        asked = np.asarray(rows).tolist()
        check_different(asked, tokens)
        self._check(asked, tokens, 1)
        return np.concatenate([self._read(self._caches[r], tokens[i : i + 1]) for i, r in enumerate(asked)])

    def verify(self, row: int, tokens: np.ndarray) -> np.ndarray:
        """As many steps as tokens: read at once they would see each other exactly, and guessing would change the
        text."""
        self._check([row], tokens, len(tokens))
        cache = self._caches[row]
        kept = [mark for mark in self._marks[row][:1] if mark.length <= cache.length]
        marks, logits = [cache.fork()], []
        for token in tokens:
            logits.append(self._read(cache, np.array([token])))
            marks.append(cache.fork())
        self._marks[row] = kept + marks
        return np.concatenate(logits)

    def truncate(self, row: int, length: int) -> None:
        check_row(row, self.rows)
        cache = self._caches[row]
        if self.reach(row, length) != length or length < 0:
            held = sorted({0, *(mark.length for mark in self._marks[row]), cache.length})
            raise GenerateError(
                f"row {row} cannot be cut to {length} of {cache.length} tokens: the cache policy has forgotten what it "
                f"held there; it can go back to {', '.join(map(str, held))}"
            )
        if length == cache.length:
            return
        if length == 0:
            self._caches[row] = self._empty()
        elif (found := self._mark(row, length)) is not None:
            self._caches[row] = found.fork()
        else:
            self._caches[row].truncate(length)
        self._marks[row] = [mark for mark in self._marks[row] if mark.length <= length]

    def reach(self, row: int, length: int) -> int:
        cache = self._caches[row]
        if cache.can_truncate:
            return min(length, cache.length)
        there = [0, cache.length, *(mark.length for mark in self._marks[row])]
        return max(at for at in there if at <= max(0, length))

    def _mark(self, row: int, length: int) -> PolicyCache | None:
        return next((mark for mark in self._marks[row] if mark.length == length), None)

    def copy_row(self, source: int, target: int) -> None:
        if source != target:
            self._caches[target] = self._caches[source].fork()
            self._marks[target] = [mark.fork() for mark in self._marks[source]]

    def bits(self) -> int:
        """Of the cache, all rows, without marks; what rows share is counted once."""
        return bits_of(t for cache in self._caches for t in cache.tensors())

    def _read(self, cache: PolicyCache, tokens: np.ndarray) -> np.ndarray:
        """Logits (1, V) after the last."""
        if self._blocks is not None and len(tokens) <= self._blocks.most:
            with torch.inference_mode():
                return self._blocks.read(cache, tokens)[None]
        return _read(self._model, self._placement, cache, tokens[None], every=False)[0]

    def _check(self, rows: list[int], tokens: np.ndarray, count: int) -> None:
        check_tokens(tokens, self._model.config.vocabulary)
        for row in rows:
            check_row(row, self.rows)
            if self.length(row) + count > self.block_size:
                raise GenerateError(
                    f"row {row} has room for {self.block_size} tokens, {self.length(row) + count} are needed: shorten "
                    "the text or slide"
                )


def attention_maps(model: GPT, kv: KVConfig, tokens: np.ndarray, *, placement: Placement) -> np.ndarray:
    """What each token takes of each earlier one, (L, H, T, T); read through a cache policy token by token, as in
    decoding. Rows sum to 1, less what learned sinks take; what the policy has forgotten gets zeros.

    Raises:
        ConfigError: the model has no such attention, or cannot have this policy.
    """
    config, T = model.config, len(tokens)
    maps_LHTT = np.zeros((config.n_layer, config.n_head, T, T), dtype=np.float32)

    def watch(layer: int, old_BGS: Tensor, new_T: Tensor, shares_BHTS: Tensor) -> None:
        shares_HTS = shares_BHTS[0].float().cpu().numpy()
        old_GS, new = old_BGS[0].cpu().numpy(), new_T.cpu().numpy()
        group = config.n_head // len(old_GS)
        for head, shares_TS in enumerate(shares_HTS):
            seen = np.concatenate([old_GS[head // group], new])
            maps_LHTT[layer, head, new[:, None], seen] = shares_TS

    cache = PolicyCache(config, kv, watch=watch)
    step = T if kv.is_plain else 1
    for start in range(0, T, step):
        _read(model.eval(), placement, cache, tokens[None, start : start + step], every=False)
    return maps_LHTT


@torch.inference_mode()
def _read(model: GPT, placement: Placement, cache: PolicyCache, tokens_BT: np.ndarray, *, every: bool) -> np.ndarray:
    """Logits (B, T, V) after each token, or (B, 1, V) after the last."""
    tokens = torch.from_numpy(np.ascontiguousarray(tokens_BT, dtype=np.int64)).to(placement.device)
    with placement.autocast():
        hidden_BTD = model.hidden(tokens, cache=cache)
        logits_BTV = model.logits(hidden_BTD if every else hidden_BTD[:, -1:])
    return logits_BTV.float().cpu().numpy()
