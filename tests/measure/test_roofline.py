"""The least time of a step's products, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from bonsaigpt.config import ModelConfig, validate
from bonsaigpt.measure.accounting import flops_per_token
from bonsaigpt.measure.anatomy import anatomy
from bonsaigpt.measure.roofline import Machine, Products, product_figures, product_rates, step_products
from bonsaigpt.trace import Span, Trace
from tests.torch_engine.variants import VARIANTS, variant


@pytest.mark.parametrize("name", VARIANTS)
def test_all_products_are_there(name: str) -> None:
    config = variant(name)
    found = step_products(config, rows=5, length=12, element=4)
    assert sum(p.flops for p in found) == 5 * 12 * flops_per_token(config, length=12)
    by_shape = [p.sides for p in found]
    assert len(set(by_shape)) == len(by_shape)


def test_bytes_by_hand() -> None:
    """Each of the three products of a matrix reads two operands and writes one result; attention keeps its scores."""
    config = variant("no bias", n_layer=1, n_head=2, n_embd=8, vocab_size=5)
    found = {p.kinds: p for p in step_products(config, rows=2, length=10, element=2)}
    qkv = found[("attn.c_attn",)]
    assert qkv.bytes == 2 * 3 * (20 * 8 + 8 * 24 + 20 * 24)
    assert qkv.flops == 3 * 2 * 20 * 8 * 24
    assert qkv.intensity == qkv.flops / qkv.bytes
    assert found[("mlp.c_fc", "mlp.c_proj")].count == 2
    attention = found[("attention scores", "attention values")]
    assert attention.flops == 12 * 10 * 8 * 20
    assert attention.bytes == 2 * 20 * 8 * 12  # 4 tensors forward; 4 read again, and 4 gradients


def test_the_nearer_limit_counts() -> None:
    work = Products(kinds=("x",), sides=(2, 2), count=1, tokens=1, flops=1000, bytes=100)
    assert work.bound(Machine(flops=100, bandwidth=1e9)) == 10
    assert work.bound(Machine(flops=1e9, bandwidth=10)) == 10
    machine = Machine(flops=50, bandwidth=5)
    assert machine.ridge == work.intensity == 10
    assert work.bound(machine) == work.flops / machine.flops == work.bytes / machine.bandwidth


class FakeEngine:
    """Multiplies at a rate of its own for each shape."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def product_rate(self, shape: tuple[int, int, int], *, seconds: float) -> float:
        self.asked.append(shape)
        return 1000.0 * max(shape)


def config() -> ModelConfig:
    """c_attn is 24 x 8 and the MLP 32 x 8: with 24 rows a product of the MLP has the sides of c_attn with 32."""
    sizes: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 16, "vocab_size": 5}
    return validate({"model": sizes | {"vocab_multiple": 7}}, origin="t").model


def test_recorded_products_find_their_matrices() -> None:
    rows = 24
    shapes = [(rows, 8, 24), (rows, 8, 8), (rows, 8, 32), (rows, 32, 8), (rows, 8, 5), (8, rows, 24), (99, 98, 97)]
    spans = [Span("step", 0, 7000, "thread 1", mark=True), Span("forward", 0, 7000, "thread 1", mark=True)]
    for i, (m, k, n) in enumerate(shapes):
        spans.append(Span("aten::mm", 1000 * i, 1000 * i + 100 * (i + 1), "thread 1", shapes=((m, k), (k, n))))
    spans.append(Span("aten::bmm", 6900, 7000, "thread 1"))
    found = anatomy(Trace(spans=tuple(spans)), wall=7e-6, steps=1)
    engine: Any = FakeEngine()
    products = step_products(config(), rows=2, length=16, element=4)
    rates = product_rates(config(), products, found, engine, seconds=0.0)
    assert {(rows, 32, 8), (rows, 8, 32), (32, rows, 8)} <= set(engine.asked)
    machine = Machine(flops=1e5, bandwidth=1e12)
    figures = {f.products.kinds[0]: f for f in product_figures(config(), products, found, machine, rates)}
    recorded = {kind: round(1e9 * (f.seconds or 0.0)) for kind, f in figures.items()}
    assert recorded == {
        "attn.c_attn": 100 + 600,
        "attn.c_proj": 200,
        "mlp.c_fc": 300 + 400,
        "lm_head": 500,  # though its seven rows were cut to the vocabulary's five
        "attention scores": 100,
    }
    head = figures["lm_head"]
    assert head.alone == pytest.approx(head.products.flops / 24_000)
    assert head.bound == pytest.approx(head.products.flops / 1e5)
