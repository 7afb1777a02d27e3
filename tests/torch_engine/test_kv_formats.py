"""Packing and number formats of caches: exact sizes, bounded errors, and nothing that becomes infinite."""

from __future__ import annotations

import pytest
import torch

from bonsaigpt.config import (
    Float8Format,
    IntFormat,
    LayerPolicy,
    QuantizedFormat,
    SignFormat,
    TensorFormat,
    TernaryFormat,
)
from bonsaigpt.kv import read_policy
from bonsaigpt.torch_engine.kv.packing import pack, packed_bytes, unpack
from bonsaigpt.torch_engine.kv.quantizers import hadamard, quantizer
from bonsaigpt.torch_engine.kv.store import Store

LEVELS = [2, 3, 4, 8, 16, 32, 64, 256]
FORMATS = ["int8", "int6", "int5", "int4", "int3", "int2", "e4m3", "e5m2", "e4m3(group=8)", "ternary", "sign"]


def format_of(text: str) -> QuantizedFormat:
    found: TensorFormat = read_policy(text).policy.formats["k"]
    assert isinstance(found, QuantizedFormat)
    return found


@pytest.mark.parametrize("count", [1, 5, 7, 8, 16, 33])
@pytest.mark.parametrize("levels", LEVELS)
def test_packed_codes_come_back_and_fill_their_bytes(levels: int, count: int) -> None:
    codes = torch.randint(0, levels, (3, 2, count), generator=torch.Generator().manual_seed(levels)).to(torch.uint8)
    packed = pack(codes, levels)
    assert packed.shape == (3, 2, packed_bytes(count, levels))
    assert packed.dtype == torch.uint8
    assert torch.equal(unpack(packed, levels, count), codes)
    damaged = packed.clone()
    damaged[0, 0, 0] ^= 1
    assert not torch.equal(unpack(damaged, levels, count), codes)


def test_bytes_of_packed_codes_are_those_of_the_bits() -> None:
    assert [packed_bytes(64, levels) for levels in LEVELS] == [8, 13, 16, 24, 32, 40, 48, 64]


@pytest.mark.parametrize("words", FORMATS)
def test_errors_are_within_the_format(words: str) -> None:
    """Half a step for whole numbers, a share of the number for floating point ones."""
    x = torch.randn(50, 4, 8, generator=torch.Generator().manual_seed(0))
    form = format_of(words)
    coder = quantizer(form)
    codes, *scales = coder.encode(x)
    error = (coder.decode(codes, *scales) - x).abs()
    assert len(scales) == coder.scales
    assert all(scale.dtype == torch.float16 for scale in scales)
    if isinstance(form, IntFormat):
        spread = 2 * x.abs().amax(-1) if form.kind == "int8" else x.amax(-1) - x.amin(-1)
        bound = spread[..., None] / (254 if form.kind == "int8" else 2**form.bits - 1) / 2 * 1.01 + 2e-3
        assert (error <= bound).all()
        assert error.max() > 0.3 * bound.min()  # the bound is not idle
    elif isinstance(form, Float8Format):
        share = 2**-4 if form.kind == "e4m3" else 2**-3
        assert (error <= share * x.abs() + 2e-3).all()
        assert error.max() > 0.3 * share
    else:
        assert isinstance(form, TernaryFormat | SignFormat)
        assert error.square().mean() < 0.5 * x.square().mean()


@pytest.mark.parametrize("words", FORMATS)
def test_constant_and_zero_groups_and_huge_numbers(words: str) -> None:
    coder = quantizer(format_of(words))
    for x in (torch.zeros(2, 8), torch.full((2, 8), 0.5), torch.full((2, 8), -3.0)):
        codes, *scales = coder.encode(x)
        assert torch.allclose(coder.decode(codes, *scales), x, atol=1e-3), words
    huge = torch.tensor([[1e30, -1e30, 1e5, 0, 1, 2, 3, 4]])
    codes, *scales = coder.encode(huge)
    found = coder.decode(codes, *scales)
    assert torch.isfinite(found).all()
    assert found[0, 0] > 400  # saturated, not wrapped around


@pytest.mark.parametrize("width", [8, 12, 64, 7])
def test_the_hadamard_matrix_is_its_own_inverse_and_spreads_an_outlier(width: int) -> None:
    matrix = hadamard(width)
    assert torch.allclose(matrix @ matrix, torch.eye(width), atol=1e-6)
    outlier = torch.zeros(width)
    outlier[1] = 8.0
    block = width & -width
    assert (outlier @ matrix).abs().max() == pytest.approx(8 / block**0.5)


def test_an_outlier_costs_less_when_turned() -> None:
    x = torch.randn(1, 2, 40, 64, generator=torch.Generator().manual_seed(1))
    x[..., 5] *= 30

    def error(words: str) -> float:
        store = Store(format_of(words), width=64)
        store.append(x)
        found = store.read(x[:, :, :0])
        return float((found - x).square().mean())

    assert error("int4(hadamard)") < 0.2 * error("int4")


@pytest.mark.parametrize("words", ["int4", "int8(sinks=2, residual=3)", "int3(axis=channel, group=4, residual=2)"])
def test_a_store_with_memory_reads_the_same(words: str) -> None:
    """However tokens come and go."""
    x = torch.randn(2, 3, 40, 16, generator=torch.Generator().manual_seed(2))
    stores = [Store(format_of(words), width=16, memory=memory) for memory in (False, True)]
    for start in range(0, 40, 5):
        for store in stores:
            drop = 4 if start >= 20 else 0
            store.append(x[:, :, start : start + 5], start=2 if "sinks" in words else 0, drop=drop)
        one, other = (store.read(x[:, :, :0]) for store in stores)
        assert torch.equal(one, other)
    assert sum(t.nbytes for t in stores[0].tensors()) == sum(t.nbytes for t in stores[1].tensors())


def test_first_and_newest_tokens_stay_in_16_bits() -> None:
    x = torch.randn(1, 1, 20, 16, generator=torch.Generator().manual_seed(3))
    store = Store(format_of("int2(sinks=3, residual=4)"), width=16)
    for t in range(20):
        store.append(x[:, :, t : t + 1])
    found = store.read(x[:, :, :0])
    error = (found - x).abs().amax((0, 1, 3))
    assert (error[:3] < 2e-3).all()
    assert (error[-4:] < 2e-3).all()
    assert (error[3:-4] > 0.05).all()


def test_a_group_of_tokens_waits_until_it_is_whole() -> None:
    """Coded one by one, tokens of a group would each be a group of one: exact, and counted as two bits."""
    form = format_of("int2(axis=channel, group=8, residual=4)")
    x = torch.randn(1, 1, 40, 16, generator=torch.Generator().manual_seed(4))
    store = Store(form, width=16)
    for t in range(40):
        store.append(x[:, :, t : t + 1])
        found = store.read(x[:, :, :0])
        error = (found - x[:, :, : t + 1]).abs().amax((0, 1, 3))
        coded = (t + 1 - 4) // 8 * 8 if t >= 4 else 0
        assert (error[coded:] < 2e-3).all()
        assert (error[:coded] > 0.01).all()


def test_a_whole_policy_is_plain_only_by_default() -> None:
    assert read_policy("full, exact").policy == LayerPolicy()
