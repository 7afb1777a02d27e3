"""Codes of caches in C++ are those of the quantizers, bit for bit, and what they stand for as well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bonsaigpt.config import IntFormat, QuantizedFormat
from bonsaigpt.kv import read_policy
from bonsaigpt.torch_engine.kv.store import Store
from bonsaigpt.torch_engine.native.codes import has_codes

pytestmark = pytest.mark.usefixtures("cpp")

FORMATS = ["int8", "int6", "int5", "int4", "int3", "int2", "int4(hadamard)", "int3(group=4, hadamard)", "int8(group=4)"]


def format_of(words: str) -> QuantizedFormat:
    found = read_policy(f"full, {words}").policy.formats["k"]
    assert isinstance(found, QuantizedFormat)
    return found


def numbers(width: int, *, turned: bool) -> Tensor:
    """Of very different sizes, with zeros, equal numbers, ties between two codes, numbers that fp16 does not hold and,
    where no matrix would make something else of them, infinite ones."""
    draw = torch.Generator().manual_seed(width)
    x = torch.randn(2, 3, 40, width, generator=draw) * torch.randn(2, 3, 40, 1, generator=draw).exp() ** 4
    x[0, 0, 0] = 0
    x[0, 0, 1] = 1.5
    x[0, 0, 2] *= 1e30
    x[0, 0, 3] *= 1e-7
    x[0, 0, 4] = torch.arange(width) / 2
    if not turned:
        x[0, 0, 5, 0], x[0, 0, 6, 1] = torch.inf, -torch.inf
    return x


def stores(words: str, x: Tensor) -> tuple[Store, Store]:
    """Without and with the C++."""
    both = tuple(Store(format_of(words), width=x.shape[-1], native=native) for native in (False, True))
    for store in both:
        store.append(x)
    return both[0], both[1]


@pytest.mark.parametrize("width", [8, 12, 20, 64])
@pytest.mark.parametrize("words", FORMATS)
def test_codes_scales_and_numbers_are_those_of_the_quantizers(words: str, width: int) -> None:
    """Also where the last codes do not fill their bytes."""
    assert has_codes(format_of(words))
    x = numbers(width, turned="hadamard" in words)
    plain, native = stores(words, x)
    for ours, theirs in zip(native.tensors(), plain.tensors(), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))  # a zero has its sign
    none = x[:, :, :0]
    assert torch.equal(native.read(none), plain.read(none))


def test_one_number_more_or_less_is_seen() -> None:
    """The comparison above can fail: a number that is moved by two steps of its code changes the codes."""
    x = numbers(8, turned=False)
    moved = x.clone()
    moved[1, 1, 1, 1] += 2 * (x[1, 1, 1].max() - x[1, 1, 1].min()) / 15
    found = [list(store.tensors()) for store in (stores("int4", x)[0], stores("int4", moved)[1])]
    assert any(not torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("words", ["int8", "int4"])
def test_what_is_no_number_is_seen(words: str) -> None:
    x = torch.ones(1, 1, 2, 8)
    x[0, 0, 1, 3] = torch.nan
    for store in stores(words, x):
        found = store.read(x[:, :, :0])
        assert found[0, 0, 1].isnan().all()
        assert (found[0, 0, 0] - 1).abs().max() < 1e-2


def test_other_formats_are_left_to_the_quantizers() -> None:
    others = ["e4m3", "ternary", "sign", "int4(axis=channel, group=4)"]
    assert not any(has_codes(format_of(words)) for words in others)
    assert isinstance(format_of("int4"), IntFormat)
    x = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    for words in others:
        plain, native = stores(words, x)
        assert torch.equal(plain.read(x[:, :, :0]), native.read(x[:, :, :0]))
