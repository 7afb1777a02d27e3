"""The blocks of a model in C++ around an attention that a cache with a policy computes: all products of a step are one
call, and in each layer it asks back for what tokens see of the past."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bonsaigpt.kv import AttendingCache
from bonsaigpt.torch_engine.attention import Attention, Where
from bonsaigpt.torch_engine.model import GPT, Block
from bonsaigpt.torch_engine.native.building import Missing
from bonsaigpt.torch_engine.native.decoder import closing, fitting_threads, structure_of
from bonsaigpt.torch_engine.native.library import ATTEND, ROPES, Buffers, library
from bonsaigpt.torch_engine.native.packing import Packed, what_is_not_computed
from bonsaigpt.torch_engine.rounding import Weights

__all__ = ["NativeBlocks"]

_ENDLESS = 1 << 40
"""Slots of a row whose cache is elsewhere."""


class NativeBlocks:
    """One row at a time; one thread at a time may call it. The weights are packed once, see ``NativeDecoder``.

    Args:
        model: its attentions make keys and values of what the cache holds, if that is their input.

    Raises:
        Missing: the library cannot be built here, or does not compute this variant.
    """

    @torch.no_grad()
    def __init__(self, model: GPT, *, weights: Weights, threads: int) -> None:
        if (unknown := what_is_not_computed(model.config)) is not None:
            raise Missing(unknown)
        self._library, self._model = library(), model
        self.most = int(self._library.bonsai_most_tokens())
        """Tokens of a call."""
        self._packed = Packed(model, weights)
        structure = structure_of(model, self._packed)
        structure.rows, structure.slots, structure.rope = 1, _ENDLESS, ROPES["none"]
        self._lengths, self._row = np.zeros(1, dtype=np.int64), np.zeros(self.most, dtype=np.int64)
        structure.lengths = self._lengths.ctypes.data
        self._asked = ATTEND(self._attend)  # as long as the C++ may call it
        structure.attend = ctypes.cast(self._asked, ctypes.c_void_p)
        threads = fitting_threads(self._packed, threads)
        self._handle = self._library.bonsai_open(ctypes.byref(structure), threads)
        self._closing = closing(self, self._library, self._handle)
        self._views = _views(self._library, self._handle, model, self.most)
        self._attentions = [_attention(block) for block in model.transformer.h]
        self._cache: AttendingCache | None = None
        self._where = Where(None, None, None)  # the cache knows where tokens stand
        self._count = 0
        self._failed: BaseException | None = None

    @property
    def weight_bytes(self) -> int:
        """What a step reads of the weights."""
        return self._packed.bytes

    def read(self, cache: AttendingCache, tokens: np.ndarray) -> np.ndarray:
        """Logits (V,) float32 after the last of these tokens (T,), which the cache takes in.

        Raises:
            BaseException: whatever the cache raised, some layers of which have taken the tokens in then.
        """
        tokens = np.ascontiguousarray(tokens, dtype=np.int64)
        logits = np.empty(self._model.config.vocabulary, dtype=np.float32)
        self._lengths[0], self._cache, self._count = cache.length, cache, len(tokens)
        refused = self._library.bonsai_step(
            self._handle, self._row.ctypes.data, tokens.ctypes.data, len(tokens), len(tokens) - 1, logits.ctypes.data
        )
        self._cache, failed, self._failed = None, self._failed, None
        if failed is not None:
            raise failed
        assert not refused, "rows, tokens and lengths were checked before"
        return logits

    def _attend(self, layer: int) -> None:
        """Called by the C++, through which nothing may be raised."""
        if self._failed is not None:
            return
        try:
            assert self._cache is not None
            x_TD, qkv_THK, mixed_THK = (view[: self._count] for view in self._views)
            x_BTD = x_TD[None]
            made = _Made(self._attentions[layer], x_BTD, qkv_THK[None])
            y_BHTK, _ = self._cache.attend(made, x_BTD, self._where, None)
            mixed_THK.copy_(y_BHTK[0].transpose(0, 1))
        except BaseException as error:
            self._failed = error


def _attention(block: nn.Module) -> Attention:
    assert isinstance(block, Block)
    assert isinstance(block.attn, Attention)
    return block.attn


class _Made:
    """An attention whose queries, keys and values of the present tokens have been made; of other inputs it makes them
    itself."""

    def __init__(self, attention: Attention, x_BTD: Tensor, qkv_BTHK: Tensor) -> None:
        self._attention, self._x, self._qkv = attention, x_BTD, qkv_BTHK

    def heads(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Attention.heads``."""
        if x_BTD is not self._x:
            return self._attention.heads(x_BTD)
        G = self._attention.n_kv_head
        return self._qkv[:, :, :-G], self._qkv[:, :, -G:]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._attention, name)


def _views(library: ctypes.CDLL, handle: int, model: GPT, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The C++'s buffers as tensors: the input of an attention (most, D), queries, keys and values (most, H + 2 G, K),
    and what it makes of them (most, H, K)."""
    found = Buffers()
    library.bonsai_buffers(handle, ctypes.byref(found))
    config = model.config

    def view(address: Any, stride: int, *shape: int) -> Tensor:
        memory = (ctypes.c_float * (most * stride)).from_address(address)
        rows = torch.from_numpy(np.ctypeslib.as_array(memory).reshape(most, stride))
        return rows[:, : int(np.prod(shape))].unflatten(1, shape)

    heads, width = config.n_head, config.head_width
    return (
        view(found.input, found.input_stride, config.n_embd),
        view(found.qkv, found.qkv_stride, heads + 2 * config.n_kv_head, width),
        view(found.mixed, found.mixed_stride, heads, width),
    )
