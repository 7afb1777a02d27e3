"""The least time that the products of a step can take on a machine (Williams, Waterman and Patterson 2009, roofline).

Work that does ``f`` operations on ``b`` bytes of memory takes at least max(f / peak, b / bandwidth). Each operand
counts as read once and each result as written once, by one pass over the whole batch; attention counts as if its scores
never left the chip. No program can need less memory traffic, unless its operands still lie in a cache from before.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from bonsaigpt.config import ModelConfig
from bonsaigpt.engines import Engine
from bonsaigpt.measure.accounting import ATTENTION_KINDS, flops_by_kind, matrix_products
from bonsaigpt.measure.anatomy import Anatomy, ProductTime

__all__ = ["Machine", "ProductFigures", "Products", "product_figures", "product_rates", "step_products"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine was measured to do at most."""

    flops: float
    """Operations a second, in the best matrix product."""
    bandwidth: float
    """Bytes a second, read and written."""

    @property
    def ridge(self) -> float:
        """Operations for each byte from which on products, and not memory, are the limit."""
        return self.flops / self.bandwidth


@dataclass(frozen=True, kw_only=True)
class Products:
    """The products of a step, forward and both gradients, with all matrices of one shape."""

    kinds: tuple[str, ...]
    """``mlp.c_fc``, ``mlp.c_proj``; matrices and their transposes have one shape here."""
    sides: tuple[int, int] | None
    """The two sides of each matrix, the longer one first; None for attention, which has no weight."""
    count: int
    """Matrices; for attention, layers."""
    tokens: int
    """Vectors with which each matrix is multiplied; a factor of a structured one takes several of each token."""
    flops: int
    bytes: int

    @property
    def intensity(self) -> float:
        """Operations for each byte of memory traffic."""
        return self.flops / self.bytes

    def bound(self, machine: Machine) -> float:
        """Seconds that they take at least."""
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth)


@dataclass(frozen=True, kw_only=True)
class ProductFigures:
    """Products of one shape: what they take, and what they might."""

    products: Products
    bound: float
    """Seconds a step by the roofline."""
    alone: float | None
    """Seconds a step of the same products, one after another, with nothing between them."""
    seconds: float | None
    """Seconds in the recorded step; None if none of this shape was seen (a compiler may have hidden them)."""


def step_products(config: ModelConfig, *, rows: int, length: int, element: int) -> list[Products]:
    """All products of a step on ``rows`` sequences of ``length`` tokens, whose numbers take ``element`` bytes. Their
    operations sum to ``flops_per_token`` times the tokens."""
    tokens = rows * length
    groups: dict[tuple[int, int], list[tuple[str, int, int]]] = defaultdict(list)
    for (kind, product), count in matrix_products(config).items():
        sides = (max(product.out, product.into), min(product.out, product.into))
        groups[sides].append((kind, product.rows * tokens, count))
    found = [
        Products(
            kinds=tuple(dict.fromkeys(kind for kind, _, _ in group)),
            sides=sides,
            count=sum(count for _, _, count in group),
            tokens=max(rows for _, rows, _ in group),
            flops=sum(count * 6 * rows * math.prod(sides) for _, rows, count in group),
            bytes=sum(count * 3 * element * (rows * sum(sides) + math.prod(sides)) for _, rows, count in group),
        )
        for sides, group in groups.items()
    ]
    by_kind = flops_by_kind(config, length=length)
    # Forward: q, k, v in and the result out. Backward: those and its gradient in, the gradients of q, k, v out.
    turning = config.rope_width if config.attention.kind == "latent" else 0
    channels = 6 * (config.n_head + config.n_kv_head) * config.head_width + 3 * turning * (config.n_head + 1)
    found.append(
        Products(
            kinds=ATTENTION_KINDS,
            sides=None,
            count=config.n_layer,
            tokens=tokens,
            flops=tokens * sum(by_kind[kind] for kind in ATTENTION_KINDS),
            bytes=config.n_layer * element * tokens * channels,
        )
    )
    return found


def product_rates(
    config: ModelConfig, products: Sequence[Products], found: Anatomy, engine: Engine, *, seconds: float
) -> dict[tuple[int, int], tuple[float, ...]]:
    """Operations a second of the three products of each matrix shape, alone, with as many rows as the recorded step
    gave them; measured now, for about so many seconds in all."""
    matrices = [one for one in products if one.sides is not None]
    seen = _matched(config, products, found.products)
    rates: dict[tuple[int, int], tuple[float, ...]] = {}
    for one in matrices:
        assert one.sides is not None
        long, short = one.sides
        by_rows = seen.get(one.sides, {})
        rows = max(by_rows, key=lambda r: by_rows[r], default=one.tokens)
        shapes = (rows, long, short), (rows, short, long), (long, rows, short)
        rates[one.sides] = tuple(engine.product_rate(s, seconds=seconds / len(matrices) / 3) for s in shapes)
    return rates


def product_figures(
    config: ModelConfig,
    products: Sequence[Products],
    found: Anatomy,
    machine: Machine,
    rates: dict[tuple[int, int], tuple[float, ...]],
) -> tuple[ProductFigures, ...]:
    """What the products of a step take in a recording, alone and at least."""
    on_device = found.device is not None
    share = 1.0 if on_device else 1.0 / found.threads  # threads work side by side
    seen = _matched(config, products, found.products)
    figures: list[ProductFigures] = []
    for one in products:
        alone: float | None = None
        if one.sides is None:
            recorded: float | None = found.groups(device=on_device)["attention"] * share
        else:
            alone = sum(one.flops / 3 / rate for rate in rates[one.sides])
            recorded = sum(seen[one.sides].values()) * share if one.sides in seen else None
        figures.append(ProductFigures(products=one, bound=one.bound(machine), alone=alone, seconds=recorded))
    return tuple(figures)


def _matched(
    config: ModelConfig, products: Sequence[Products], times: Sequence[ProductTime]
) -> dict[tuple[int, int], dict[int, float]]:
    """Seconds of the recorded products of each matrix shape, by the number of rows that it was multiplied with.

    Forward and backward, the three sides of a product are the two of the matrix and the rows. Where that fits two
    matrices, the rows are the number that fits the most products.
    """
    known = {one.sides: one.sides for one in products if one.sides is not None}
    padded = sorted((config.vocabulary_rows, config.n_embd), reverse=True)
    cut = sorted((config.vocabulary, config.n_embd), reverse=True)  # a fused loss leaves the padding out
    known |= {(cut[0], cut[1]): (padded[0], padded[1])}
    fits = [(t, {_third(t.shape, sides): of for sides, of in known.items()}) for t in times]
    votes: Counter[int] = Counter()
    for t, by_rows in fits:
        votes.update({rows: t.calls for rows in by_rows if rows})
    found: dict[tuple[int, int], dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for t, by_rows in fits:
        by_rows.pop(0, None)
        if by_rows:
            rows = max(by_rows, key=lambda r: (votes[r], r))
            found[by_rows[rows]][rows] += t.seconds
    return found


def _third(shape: tuple[int, int, int], sides: tuple[int, int]) -> int:
    """The side of a product that is none of a matrix; 0 if the matrix is not in it."""
    rest = Counter(shape) - Counter(sides)
    return next(iter(rest)) if rest.total() == 1 else 0
