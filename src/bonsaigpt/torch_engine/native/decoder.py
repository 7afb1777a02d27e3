"""Decoding on a CPU by the C++ of this folder: one call a step, weights packed once, keys and values beside them."""

from __future__ import annotations

import ctypes
import os
import weakref

import numpy as np
import torch
from torch import nn

from bonsaigpt.config import GeluMLP, ModelConfig, RopePosition, SoftmaxAttention
from bonsaigpt.errors import GenerateError
from bonsaigpt.torch_engine.attention import Attention
from bonsaigpt.torch_engine.eager import check_row
from bonsaigpt.torch_engine.model import GPT, Block
from bonsaigpt.torch_engine.native.building import Missing
from bonsaigpt.torch_engine.native.library import MLPS, ROPES, Layer, Model, library
from bonsaigpt.torch_engine.native.packing import LANES, Packed, what_is_not_computed
from bonsaigpt.torch_engine.rounding import Weights
from bonsaigpt.torch_engine.structured import dense

__all__ = ["NativeDecoder", "closing", "fitting_threads", "structure_of"]

_WORTH_A_THREAD = 1 << 20
"""Bytes of weights for each thread: with less, threads wait for each other longer than they compute."""


class NativeDecoder:
    """See ``bonsaigpt.engines.Decoder``. One thread at a time may call it.

    Holds a packed copy of all matrices, a tied head too (so float32 doubles the model's memory and int8 adds a
    quarter), and 8 L G K bytes of keys and values for each slot of each row. Embeddings and norms are the model's own:
    it must not change as long as this is used.

    Raises:
        Missing: the library cannot be built here, or does not compute this variant.
    """

    @torch.no_grad()
    def __init__(self, model: GPT, *, rows: int, weights: Weights = "fp32", threads: int = 1) -> None:
        config = model.config
        if (unknown := what_is_not_computed(config)) is not None:
            raise Missing(unknown)
        self._library = library()
        self._most = int(self._library.bonsai_most_tokens())
        self.rows, self.block_size, self.vocabulary = rows, config.block_size, config.vocabulary
        slots = -(-config.block_size // LANES) * LANES
        shape = (rows, config.n_layer, config.n_kv_head)
        # Zeros, which the system gives when they are first touched: a row that nobody uses takes no memory.
        self._keys = np.zeros((*shape, slots // LANES, config.head_width, LANES), dtype=np.float32)
        self._values = np.zeros((*shape, slots, config.head_width), dtype=np.float32)
        self._lengths = np.zeros(rows, dtype=np.int64)
        self._packed = Packed(model, weights)
        structure = structure_of(model, self._packed)
        structure.rows, structure.slots = rows, config.block_size
        structure.keys, structure.values = self._keys.ctypes.data, self._values.ctypes.data
        structure.lengths = self._lengths.ctypes.data
        threads = fitting_threads(self._packed, threads)
        self._handle = self._library.bonsai_open(ctypes.byref(structure), threads)
        self._closing = closing(self, self._library, self._handle)
        # Of fixed place, so that a call has no address to look up.
        self._in_rows, self._in_tokens = (np.zeros(max(rows, self._most), dtype=np.int64) for _ in range(2))
        self._logits = np.zeros((rows, config.vocabulary), dtype=np.float32)
        self._in = self._in_rows.ctypes.data, self._in_tokens.ctypes.data
        self._out = self._logits.ctypes.data
        self.weight_bytes = self._packed.bytes
        several = f"up to {threads} threads, as many as pay" if threads > 1 else "1 thread"
        self.why = f"native: C++ built for this processor, {weights} weights, {several}"

    @property
    def threads(self) -> int:
        """With how many threads a step was fastest of late."""
        return self._library.bonsai_threads(self._handle)

    def length(self, row: int) -> int:
        return int(self._lengths[row])

    def prefill(self, row: int, tokens: np.ndarray) -> np.ndarray:
        return self._append(row, tokens, self._logits[:1], every=False)[0]

    def verify(self, row: int, tokens: np.ndarray) -> np.ndarray:
        logits = np.empty((len(tokens), self.vocabulary), dtype=np.float32)
        return self._append(row, tokens, logits, every=True)

    def step(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        count = len(rows)
        if count > self.rows or len(tokens) != count:
            raise GenerateError(f"{count} rows with {len(tokens)} tokens cannot be: the cache has {self.rows} rows")
        if count > 1 and len(set(rows.tolist())) < count:
            raise GenerateError(f"rows {rows.tolist()} cannot be: a step makes one token for each of some rows")
        before = self._lengths.copy() if count > self._most else None
        try:
            for start in range(0, count, self._most):
                part = min(self._most, count - start)
                self._in_rows[:part] = rows[start : start + part]
                self._in_tokens[:part] = tokens[start : start + part]
                self._call(part, 0, self._out + 4 * start * self.vocabulary)
        except GenerateError:
            if before is not None:  # earlier parts were done
                self._lengths[:] = before
            raise
        return self._logits[:count]

    def truncate(self, row: int, length: int) -> None:
        check_row(row, self.rows)
        if not 0 <= length <= self._lengths[row]:
            raise GenerateError(f"row {row} holds {self._lengths[row]} tokens: it cannot be cut to {length}")
        self._lengths[row] = length

    def reach(self, row: int, length: int) -> int:
        return length

    def copy_row(self, source: int, target: int) -> None:
        used = int(self._lengths[source])
        panels = -(-used // LANES)
        self._keys[target, :, :, :panels] = self._keys[source, :, :, :panels]
        self._values[target, :, :, :used] = self._values[source, :, :, :used]
        self._lengths[target] = used

    def bits(self) -> int:
        """Of the cache, all rows."""
        return 8 * (self._keys.nbytes + self._values.nbytes)

    def _append(self, row: int, tokens: np.ndarray, logits: np.ndarray, *, every: bool) -> np.ndarray:
        """The chunks of a text are of one size, not the last a small one: each reads all weights."""
        count = len(tokens)
        if count < 1:
            raise GenerateError("no tokens were given: a row goes on with one at least")
        if self.length(row) + count > self.block_size:
            raise _too_long(row, self.length(row) + count, self.block_size)
        before = self.length(row)
        size = -(-count // -(-count // self._most))
        out = logits.ctypes.data
        self._in_rows[:size] = row
        try:
            for start in range(0, count, size):
                part = min(size, count - start)
                self._in_tokens[:part] = tokens[start : start + part]
                # Until the last chunk nobody needs logits; its last token's go to the same place.
                self._call(part, 0 if every else part - 1, out + 4 * start * self.vocabulary * every)
        except GenerateError:
            self._lengths[row] = before
            raise
        return logits

    def _call(self, count: int, first: int, out: int) -> None:
        refused = self._library.bonsai_step(self._handle, *self._in, count, first, out)
        if refused == 1:
            raise GenerateError(
                f"there is no such row among {self._in_rows[:count].tolist()}: use 0 to {self.rows - 1}"
            )
        if refused == 2:
            raise GenerateError(
                f"a token of {self._in_tokens[:count].tolist()} is outside the vocabulary of {self.vocabulary}"
            )
        if refused == 3:
            row = next(r for r in self._in_rows[:count].tolist() if self._lengths[r] == self.block_size)
            raise _too_long(row, self.block_size + 1, self.block_size)


def _too_long(row: int, needed: int, slots: int) -> GenerateError:
    return GenerateError(f"row {row} has {slots} slots, {needed} are needed: shorten the text or slide")


def structure_of(model: GPT, packed: Packed) -> Model:
    """All of a model but its cache."""
    config, transformer = model.config, model.transformer
    assert isinstance(config.attention, SoftmaxAttention)
    layers = (Layer * config.n_layer)(*(_layer(block, packed) for block in transformer.h))  # the C++ makes a copy
    rope = isinstance(config.position, RopePosition)
    return Model(
        layers=config.n_layer,
        width=config.n_embd,
        heads=config.n_head,
        kv_heads=config.n_kv_head,
        head_width=config.head_width,
        hidden=max(config.hidden_of(layer) for layer in range(config.n_layer)),
        vocabulary=config.vocabulary,
        rms_norm=config.norm.kind == "rmsnorm",
        post_norm=config.norm_position == "post",
        mlp=_mlp(config),
        rope=ROPES[config.position.pairs] if isinstance(config.position, RopePosition) else ROPES["none"],
        qk_norm=bool(config.attention.qk_norm),
        eps=config.norm.eps,
        softcap=config.logit_softcap,
        head_scale=1.0 / config.width_ratio,
        wte=packed.pointer(transformer.wte.table),
        wpe=packed.pointer(transformer.wpe.table) if config.position.kind == "learned" else None,
        cos=packed.pointer(model.cos) if rope else None,
        sin=packed.pointer(model.sin) if rope else None,
        ln_f=packed.pointer(transformer.ln_f.weight),
        ln_f_bias=packed.pointer(transformer.ln_f.bias),
        layer=ctypes.cast(layers, ctypes.c_void_p),
        head=packed.matrix(dense(model.head_weight)[: config.vocabulary]),
    )


def _layer(block: nn.Module, packed: Packed) -> Layer:
    assert isinstance(block, Block)
    assert isinstance(block.attn, Attention)
    return Layer(
        packed.linear(block.attn.c_attn),
        packed.linear(block.attn.c_proj),
        packed.linear(block.mlp.c_gate if block.mlp.kind == "swiglu" else None),
        packed.linear(block.mlp.c_fc),
        packed.linear(block.mlp.c_proj),
        *(packed.pointer(norm) for n in (block.ln_1, block.ln_2) for norm in (n.weight, n.bias)),
        *(packed.pointer(each) for each in (block.attn.q_norm, block.attn.k_norm, block.attn.sinks)),
        block.attn.window or 0,
    )


def _mlp(config: ModelConfig) -> int:
    tanh = isinstance(config.one_mlp, GeluMLP) and config.one_mlp.approximate == "tanh"
    return MLPS["gelu tanh" if tanh else config.one_mlp.kind]


def fitting_threads(packed: Packed, most: int) -> int:
    """Threads that these weights are worth."""
    return max(1, min(most, packed.bytes // _WORTH_A_THREAD))


def closing(owner: object, library: ctypes.CDLL, handle: int) -> weakref.finalize:
    """Close a decoder of the C++ when its owner goes."""
    return weakref.finalize(owner, _close, library, handle, os.getpid())


def _close(library: ctypes.CDLL, handle: int, process: int) -> None:
    if os.getpid() == process:  # a forked child has no helpers to wait for
        library.bonsai_close(handle)
