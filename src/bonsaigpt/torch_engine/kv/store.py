"""The tokens of one tensor of one layer, coded as its format says.

Nothing that is held is ever changed in place, and nothing is held besides: every tensor is exactly as large as what it
stands for. So a copy of a store costs nothing, and going back to an earlier state is keeping it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bonsaigpt.config import ExactFormat, NarrowFormat, QuantizedFormat, TensorFormat
from bonsaigpt.torch_engine.kv.packing import pack, packed_bytes, unpack
from bonsaigpt.torch_engine.kv.quantizers import hadamard, narrow, quantizer
from bonsaigpt.torch_engine.native.codes import NativeCodes, has_codes

__all__ = ["Store", "rounded"]

Body = tuple[Tensor, ...]
"""Tensors (B, G, R, ...), where R counts tokens or groups of them."""


class Store:
    """Tokens in the order of the text: the first ones in 16 bits, then the coded ones, then the newest in 16 bits.

    Args:
        width: channels of a head.
        memory: keep what the codes stand for besides, so that it is not made again at every reading. For measuring
            losses alone: it changes no number, and what it takes is not counted as held.
        native: let the C++ code and pack, where it has the format: on a CPU. That changes no number either.
    """

    def __init__(self, form: TensorFormat, *, width: int, memory: bool = False, native: bool = False) -> None:
        self._code = _Coded(form, width, native=native) if isinstance(form, QuantizedFormat) else _Plain(form)
        self._form = form
        self._first: Tensor | None = None
        self._body: Body | None = None
        self._recent: Tensor | None = None
        self._memory = memory and isinstance(self._code, _Coded)
        self._decoded: Tensor | None = None

    def __len__(self) -> int:
        return self._in_first + self._in_body + self._in_recent

    @property
    def _in_first(self) -> int:
        return 0 if self._first is None else self._first.shape[2]

    @property
    def _in_body(self) -> int:
        return 0 if self._body is None else self._body[0].shape[2] * self._code.tokens

    @property
    def _in_recent(self) -> int:
        return 0 if self._recent is None else self._recent.shape[2]

    def append(self, x_BGTK: Tensor, *, start: int = 0, drop: int = 0) -> None:
        """Take the new tokens, and code those that are no longer among the newest; then forget ``drop`` tokens from
        ``start`` on, all of them coded; of a format of groups, whole groups."""
        x_BGTK = x_BGTK.detach()
        if not isinstance(self._form, QuantizedFormat):
            self._body = self._rolled(self._code.encode(x_BGTK), start, drop)
            return
        more = min(self._form.sinks - self._in_first, x_BGTK.shape[2])
        if more > 0:
            self._first = _cat(self._first, narrow(x_BGTK[:, :, :more])).clone()
            x_BGTK = x_BGTK[:, :, more:]
        waiting = x_BGTK if self._recent is None else _cat(self._recent.to(x_BGTK.dtype), x_BGTK)
        ripe = max(0, waiting.shape[2] - self._form.residual) // self._code.tokens * self._code.tokens
        fresh = self._code.encode(waiting[:, :, :ripe]) if ripe else None
        if fresh is not None and self._memory:
            self._decoded = _cat(self._decoded, self._code.decode(fresh))
        start = max(0, start - self._in_first)
        self._body = self._rolled(fresh, start, drop)
        if drop and self._decoded is not None:
            self._decoded = _rolled(self._decoded, None, start, drop)
        left = waiting[:, :, ripe:]
        self._recent = narrow(left).clone() if left.shape[2] else None  # a view would hold all of it

    def _rolled(self, fresh: Body | None, start: int, drop: int) -> Body | None:
        """The body with what is new, without what is to be forgotten: a token costs one copy of each tensor."""
        if self._body is None and fresh is not None:
            self._body, fresh = tuple(t.clone() for t in fresh), None
        if self._body is None or (fresh is None and not drop):
            return self._body
        start, drop = start // self._code.tokens, drop // self._code.tokens
        parts = fresh if fresh is not None else (None,) * len(self._body)
        return tuple(_rolled(t, part, start, drop) for t, part in zip(self._body, parts, strict=True))

    def read(self, then_BGTK: Tensor) -> Tensor:
        """All tokens as numbers and then these, (B, G, S + T, K), in the number format of the latter and on their
        device."""
        body = self._decoded
        if not self._memory:
            body = None if self._body is None else self._code.decode(self._body)
        parts = [part.to(then_BGTK.dtype) for part in (self._first, body, self._recent) if part is not None]
        return torch.cat((*parts, then_BGTK), dim=2)

    def keep(self, index_BGN: Tensor) -> None:
        """Keep these tokens alone, in this order; the first and the newest in 16 bits are among them."""
        assert self._body is not None
        assert self._code.tokens == 1
        index = index_BGN[:, :, self._in_first : index_BGN.shape[2] - self._in_recent] - self._in_first
        self._body = tuple(_gather(t, index) for t in self._body)
        if self._decoded is not None:
            self._decoded = _gather(self._decoded, index)

    def truncate(self, length: int) -> None:
        """Forget all but the first tokens; of a store without groups and newest tokens in 16 bits."""
        if self._first is not None:
            self._first = self._first[:, :, :length].clone()
        if self._body is not None:
            left = max(0, length - self._in_first)
            self._body = tuple(t[:, :, :left].clone() for t in self._body)
            if self._decoded is not None:
                self._decoded = self._decoded[:, :, :left]

    def tensors(self) -> Iterator[Tensor]:
        """All that is held; not what ``memory`` keeps besides."""
        yield from (t for t in (self._first, *(self._body or ()), self._recent) if t is not None)


def rounded(x_BGTK: Tensor, form: TensorFormat) -> Tensor:
    """What a store gives back of tokens that it has coded one by one, in the number format of ``x``. The gradient goes
    straight through (Bengio et al. 2013): it is that of ``x`` itself."""
    if isinstance(form, ExactFormat):
        return x_BGTK
    code = _Coded(form, x_BGTK.shape[-1]) if isinstance(form, QuantizedFormat) else _Plain(form)
    back = code.through(x_BGTK.detach()).to(x_BGTK.dtype)
    return x_BGTK + (back - x_BGTK).detach()


class _Plain:
    """Numbers as they are, or in 16 bits."""

    tokens = 1

    def __init__(self, form: TensorFormat) -> None:
        assert isinstance(form, ExactFormat | NarrowFormat)
        self._kind = form.kind

    def encode(self, x: Tensor) -> Body:
        return (x if self._kind == "exact" else narrow(x) if self._kind == "fp16" else x.to(torch.bfloat16),)

    def decode(self, body: Body) -> Tensor:
        return body[0]

    def through(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class _Coded:
    """Codes and scales of groups."""

    def __init__(self, form: QuantizedFormat, width: int, *, native: bool = False) -> None:
        self._quantizer, self._width = quantizer(form), width
        row_bytes = packed_bytes(width, self._quantizer.levels)
        self._native = NativeCodes(form, width, row_bytes) if native and has_codes(form) else None
        self._group = form.group_of(width)
        self._turn = hadamard(width) if form.hadamard else None
        self.tokens = self._group if form.axis == "channel" else 1
        """That one row of codes is of."""

    def encode(self, x_BGTK: Tensor) -> Body:
        if self._native is not None:
            return self._native.encode(self._turned(x_BGTK.float()))
        codes, *scales = self._codes(x_BGTK)
        return (pack(codes.flatten(-2), self._quantizer.levels), *scales)

    def decode(self, body: Body) -> Tensor:
        packed, *scales = body
        if self._native is not None:
            return self._turned(self._native.decode(packed, *scales))
        codes = unpack(packed, self._quantizer.levels, self._width * self.tokens)
        return self._numbers(codes.unflatten(-1, (-1, self._group)), *scales)

    def through(self, x_BGTK: Tensor) -> Tensor:
        """There and back, without packing what is not kept."""
        return self._numbers(*self._codes(x_BGTK))

    def _codes(self, x_BGTK: Tensor) -> Body:
        x = self._turned(x_BGTK.float())
        # Rows of groups (B, G, R, groups, g): a row is of one token, or of one group of tokens.
        rows = x.unflatten(2, (-1, self.tokens)).mT if self.tokens > 1 else x.unflatten(-1, (-1, self._group))
        return self._quantizer.encode(rows)

    def _numbers(self, codes: Tensor, *scales: Tensor) -> Tensor:
        x = self._quantizer.decode(codes, *scales)
        x = x.mT.flatten(2, 3) if self.tokens > 1 else x.flatten(-2)
        return self._turned(x)

    def _turned(self, x: Tensor) -> Tensor:
        """There, and back: the matrix is its own inverse."""
        return x if self._turn is None else x @ self._turn.to(x.device)


def _cat(before: Tensor | None, after: Tensor) -> Tensor:
    return after if before is None else torch.cat((before, after), dim=2)


def _rolled(t: Tensor, fresh: Tensor | None, start: int, drop: int) -> Tensor:
    """With new rows at the end, and then without some."""
    if start + drop > t.shape[2] and fresh is not None:
        t, fresh = torch.cat((t, fresh), dim=2), None
    kept = (t[:, :, :start], t[:, :, start + drop :]) if start else (t[:, :, drop:],)
    return torch.cat(kept if fresh is None else (*kept, fresh), dim=2)


def _gather(t: Tensor, index_BGN: Tensor) -> Tensor:
    B, G = t.shape[:2]
    index = index_BGN.expand(B, G, -1)
    tail = t.shape[3:]
    return t.gather(2, index[(...,) + (None,) * len(tail)].expand(B, G, -1, *tail))
