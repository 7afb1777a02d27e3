"""Decoding in programs of few shapes: a text of any length is read without compiling anew.

Prompts are read in pieces whose lengths are powers of two, the last one padded; a step computes all rows at once, those
that nobody asked for into a slot that nobody sees; and of the cache a power of two of slots is looked at. So there is a
program for each of some ten sizes, compiled when it is first needed. The cache's memory is handed from call to call.

The host chooses every token, by rules that need not be written twice; but where it takes the likeliest again and again
a step goes on by itself (``ahead``): the likeliest tokens of the next steps are read in one ``lax.scan``, and while
the host chooses them their logits are there already. The first other choice forgets what was read ahead.

Matrices are kept (in, out) here: see ``turned``.
"""

from __future__ import annotations

import functools
from collections import deque
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bonsaigpt.config import ModelConfig
from bonsaigpt.errors import GenerateError
from bonsaigpt.jax_engine.cache import Cache, bits, copied_row, empty, put_row, row_of
from bonsaigpt.jax_engine.compiling import Program, program
from bonsaigpt.jax_engine.device import Placement
from bonsaigpt.jax_engine.model import Model, Params, Past, flat, hidden, logits, narrowed
from bonsaigpt.jax_engine.rounding import rounded

__all__ = ["JaxDecoder", "ahead", "prefill", "step", "turned"]

_SMALLEST_PIECE = 16
_LARGEST_PIECE = 512
"""Tokens of a text that are read in one pass: more would hold more activations and be no faster."""
_AHEAD = 8
"""Steps that are taken at once where every choice is the likeliest token."""
_SURE = 4
"""Such choices in a row that begin it."""
_SMALLEST_WINDOW = 128
"""Slots of the cache that are looked at, at least."""


def turned(config: ModelConfig, params: Params) -> Params:
    """The parameters with every matrix that multiplies turned around, (in, out) for (out, in), or turned back.

    A program whose arguments are so turned, and which begins by turning them back, multiplies one token by them as they
    lie. Else XLA on a CPU turns them around within the loop over the outputs, and computes all that is fused there,
    such as a GELU, once for each output: 2.5 times slower at a width of 128. A decoder so has matrices of its own.
    """
    flipped = jax.tree.map(lambda leaf: leaf.T if leaf.ndim == 2 else leaf, params)
    tables = ("wpe",) if config.tie_embeddings else ("wpe", "wte")  # rows of these are taken, nothing is multiplied
    body = params["transformer"]
    return flipped | {"transformer": flipped["transformer"] | {name: body[name] for name in tables if name in body}}


def prefill(
    config: ModelConfig,
    params: Params,
    cache: Cache,
    row: Array,
    tokens_T: Array,
    start: Array,
    count: Array,
    *,
    seen: int,
    every: bool,
) -> tuple[Cache, Array]:
    """Append the first ``count`` of ``tokens_T`` to a row that holds ``start``; the cache, and logits (T, V) after each
    or (1, V) after the last. Parameters are ``turned``, here and below."""
    params = turned(config, params)
    one = row_of(cache, row)
    real_1T = (jnp.arange(len(tokens_T)) < count)[None]
    past = Past(kept=one, start_B=start[None], real_BT=real_1T, seen=seen)
    hidden_1TD, one = hidden(config, params, tokens_T[None], past=past)
    asked_TD = hidden_1TD[0] if every else jax.lax.dynamic_slice_in_dim(hidden_1TD[0], count - 1, 1)
    return put_row(cache, row, one), logits(config, params, asked_TD).astype(jnp.float32)


def step(
    config: ModelConfig, params: Params, cache: Cache, tokens_B: Array, start_B: Array, *, seen: int
) -> tuple[Cache, Array]:
    """One more token for each row that holds ``start_B``, those with a start beyond the block left as they were; the
    cache and logits (B, V)."""
    params = turned(config, params)
    real_B1 = (start_B < config.block_size)[:, None]
    past = Past(kept=cache, start_B=start_B, real_BT=real_B1, seen=seen)
    hidden_B1D, cache = hidden(config, params, tokens_B[:, None], past=past)
    return cache, logits(config, params, hidden_B1D[:, 0]).astype(jnp.float32)


def ahead(
    config: ModelConfig, params: Params, cache: Cache, tokens_B: Array, start_B: Array, *, seen: int, steps: int
) -> tuple[Cache, Array, Array]:
    """As so many steps, each with the likeliest token after the one before; the cache, the tokens that were read (N, B)
    and the logits after each (N, B, V)."""

    def one(carry: tuple[Cache, Array, Array], _: None) -> tuple[tuple[Cache, Array, Array], tuple[Array, Array]]:
        cache, tokens_B, start_B = carry
        cache, logits_BV = step(config, params, cache, tokens_B, start_B, seen=seen)
        return (cache, logits_BV.argmax(axis=-1).astype(tokens_B.dtype), start_B + 1), (tokens_B, logits_BV)

    (cache, _, _), (tokens_NB, logits_NBV) = jax.lax.scan(one, (cache, tokens_B, start_B), length=steps)
    return cache, tokens_NB, logits_NBV


class JaxDecoder:
    """See ``bonsaigpt.engines.Decoder``.

    Args:
        weights: ``int8`` takes matrices as int8 would keep them; it is no faster here.
    """

    def __init__(
        self,
        model: Model,
        *,
        rows: int,
        placement: Placement,
        weights: Literal["fp32", "int8"] = "fp32",
    ) -> None:
        model = rounded(model) if weights == "int8" else model
        self.config = config = model.config
        self.rows, self.block_size, self.vocabulary = rows, config.block_size, config.vocabulary
        self._params = turned(config, jax.device_put(narrowed(model.params, placement.dtype), placement.device))
        self._cache = jax.device_put(empty(config, rows=rows, dtype=placement.dtype), placement.device)
        self._tokens: list[list[int]] = [[] for _ in range(rows)]
        self._read: deque[tuple[int, np.ndarray]] = deque()
        """Tokens of the only row that were read ahead, and the logits after each."""
        self._likely, self._likeliest = 0, -1
        rounding = ", int8's rounding without its speed" if weights == "int8" else ""
        self.why = f"XLA on {placement.device.platform}, {jnp.dtype(placement.dtype).name}{rounding}"
        self.weight_bytes = sum(
            w.size * w.dtype.itemsize
            for name, w in flat(self._params).items()
            if w.ndim > 1 and (config.tie_embeddings or "wte" not in name) and "wpe" not in name
        )

    @functools.cached_property
    def _prefill(self) -> Program:
        return program(prefill, self.config, few_rows=True, donate=(1,), static=("seen", "every"))

    @functools.cached_property
    def _step(self) -> Program:
        return program(step, self.config, few_rows=True, donate=(1,), static=("seen",))

    @functools.cached_property
    def _ahead(self) -> Program:
        return program(ahead, self.config, few_rows=True, donate=(1,), static=("seen", "steps"))

    @functools.cached_property
    def _copy(self) -> Program:
        return program(copied_row, self.config, donate=(0,))

    def length(self, row: int) -> int:
        return len(self._tokens[row])

    def prefill(self, row: int, tokens: np.ndarray) -> np.ndarray:
        logits_V = self._append(row, tokens, every=False)[-1]
        self._likeliest = int(logits_V.argmax())
        return logits_V

    def verify(self, row: int, tokens: np.ndarray) -> np.ndarray:
        return self._append(row, tokens, every=True)

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        asked = np.asarray(rows).tolist()
        if not asked or len(asked) != len(tokens) or len(set(asked)) != len(asked):
            raise GenerateError(f"rows {asked} with {len(tokens)} tokens cannot be: one token for each of some rows")
        self._check(asked, tokens, 1)
        if (logits_V := self._go_on(int(tokens[0])) if self.rows == 1 else None) is not None:
            return logits_V[None]
        alike: dict[int, list[int]] = {}
        for place, row in enumerate(asked):  # a sum over more slots has other bits, so each row has its own window
            alike.setdefault(self._window(self.length(row) + 1), []).append(place)
        found = np.empty((len(asked), self.vocabulary), np.float32)
        for seen, places in alike.items():
            those = [asked[place] for place in places]
            all_tokens, starts = np.zeros(self.rows, np.int32), np.full(self.rows, self.block_size, np.int32)
            all_tokens[those], starts[those] = tokens[places], [self.length(row) for row in those]
            self._cache, logits_BV = self._step(self._params, self._cache, all_tokens, starts, seen=seen)
            found[places] = np.asarray(logits_BV)[those]
        for row, token in zip(asked, tokens, strict=True):
            self._tokens[row].append(int(token))
        self._likeliest = int(found[0].argmax())
        return found

    def _go_on(self, token: int) -> np.ndarray | None:
        """Of the only row, logits after a token that was read ahead, or is now with those that are likely to follow."""
        start = self.length(0)
        if not (self._read and self._read[0][0] == token):
            self._read.clear()
            self._likely = self._likely + 1 if token == self._likeliest else 0
            if self._likely < _SURE or start + _AHEAD > self.block_size or self.config.attention.kind == "linear":
                return None  # a sum could not forget
            self._cache, tokens_NB, logits_NBV = self._ahead(
                self._params,
                self._cache,
                np.array([token], np.int32),
                np.array([start], np.int32),
                seen=self._window(start + _AHEAD),
                steps=_AHEAD,
            )
            self._read.extend(zip(np.asarray(tokens_NB)[:, 0].tolist(), np.asarray(logits_NBV)[:, 0], strict=True))
        _, logits_V = self._read.popleft()
        self._tokens[0].append(token)
        self._likeliest = int(logits_V.argmax())
        return logits_V

    def truncate(self, row: int, length: int) -> None:
        self._check_row(row)
        if not 0 <= length <= self.length(row):
            raise GenerateError(f"row {row} holds {self.length(row)} tokens: it cannot be cut to {length}")
        self._read.clear()
        tokens = self._tokens[row][:length]
        if self.config.attention.kind == "linear" and length < self.length(row):
            # A sum cannot go back: it is made again.
            self._cache = jax.tree.map(lambda state: state.at[row].set(0.0), self._cache)
            self._tokens[row] = []
            if tokens:
                self._append(row, np.array(tokens), every=False)
        self._tokens[row] = tokens

    def reach(self, row: int, length: int) -> int:
        return length

    def copy_row(self, source: int, target: int) -> None:
        self._check_row(source)
        self._check_row(target)
        self._cache = self._copy(self._cache, np.int32(source), np.int32(target))
        self._tokens[target] = list(self._tokens[source])

    def bits(self) -> int:
        """Of the cache, all rows."""
        return bits(self._cache)

    def _append(self, row: int, tokens: np.ndarray, *, every: bool) -> np.ndarray:
        if len(tokens) < 1:
            raise GenerateError("no tokens were given: a row goes on with one at least")
        self._check([row], tokens, len(tokens))
        self._read.clear()
        self._likely, self._likeliest = 0, -1
        found: list[np.ndarray] = []
        left = np.asarray(tokens, dtype=np.int32)
        while len(left):
            start = self.length(row)
            piece = _piece(len(left), self.block_size - start)
            part, left = left[:piece], left[piece:]
            self._cache, logits_TV = self._prefill(
                self._params,
                self._cache,
                np.int32(row),
                np.pad(part, (0, piece - len(part))),
                np.int32(start),
                np.int32(len(part)),
                seen=self._window(start + piece),
                every=every,
            )
            self._tokens[row] += part.tolist()
            found.append(np.asarray(logits_TV)[: len(part) if every else 1])
        return np.concatenate(found)

    def _window(self, slots: int) -> int:
        """The smallest bound, of few, on so many slots; a state has none."""
        if self.config.attention.kind == "linear":
            return _SMALLEST_WINDOW
        return min(self.block_size, max(_SMALLEST_WINDOW, 1 << (slots - 1).bit_length()))

    def _check(self, rows: list[int], tokens: np.ndarray, count: int) -> None:
        if any(not 0 <= token < self.vocabulary for token in np.asarray(tokens).tolist()):
            raise GenerateError(f"a token of {list(tokens)} is outside the vocabulary of {self.vocabulary}")
        for row in rows:
            self._check_row(row)
            if self.length(row) + count > self.block_size:
                raise GenerateError(
                    f"row {row} has {self.block_size} slots, {self.length(row) + count} are needed: shorten the text "
                    "or slide"
                )

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.rows:
            raise GenerateError(f"there is no such row as {row}: use 0 to {self.rows - 1}")


def _piece(tokens: int, room: int) -> int:
    """The length of the next piece: a power of two that holds all tokens if the room allows, else the largest that
    does not need more room than there is."""
    piece = min(_LARGEST_PIECE, max(_SMALLEST_PIECE, 1 << (tokens - 1).bit_length()))
    return piece if piece <= room else 1 << (room.bit_length() - 1)
