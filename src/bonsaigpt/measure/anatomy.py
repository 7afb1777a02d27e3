"""Where the time of a step goes: a trace, cut by parts of the step and by kinds of operators, that sums to the clock.

Time is thread-time: a step of 40 ms on two threads has 80 ms to account for. Each moment of a thread belongs to the
innermost span that runs then (its *self time*), so nothing counts twice. What no operator explains is Python, if the
code named that part of the step; waiting, if another thread is at work meanwhile; and otherwise it is unaccounted for.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from bonsaigpt.trace import STEP, Span, Trace

__all__ = ["GROUPS", "PYTHON", "UNACCOUNTED", "WAITING", "Anatomy", "Operator", "ProductTime", "anatomy"]

PYTHON, WAITING, UNACCOUNTED = "Python", "waiting", "unaccounted"

GROUPS = {
    "matrix products": "weights times activations, and the gradients of both",
    "attention": "scores, softmax and values",
    "normalisation": "LayerNorm, RMSNorm, QK-norm",
    "elementwise": "activations, residual sums, rotations, reductions",
    "fused kernels": "what a compiler made of several operators",
    "loss": "log-softmax and cross-entropy",
    "optimizer": "clipping and the update, with the Python around them",
    "data": "making a batch and bringing it to the device, with the Python around it",
    "copies": "copies, concatenations, look-ups",
    "other": "views, allocation, the bookkeeping of gradients",
    PYTHON: "the program between two operators",
    WAITING: "a thread for another one, the program for the device, or the device for the program",
    UNACCOUNTED: "outside every operator and every named part of the step",
}
"""Kinds of work, and what is in them."""

_PART_GROUPS = {"data": "data", "clip": "optimizer", "optimizer": "optimizer"}
"""Parts of the step whose whole content is one group, whatever the operators."""


def _aten(names: str) -> str:
    """Operators of PyTorch's tensor library with these names, in place or not, backward or not."""
    return rf"^aten::({'|'.join(names.split())})(?![a-z])"


# Operators that are made of others: all inside them, and their backward pass, belongs to the group.
_WHOLES = {
    "optimizer": r"^Optimizer\.",
    "attention": r"scaled_dot_product|flash_attention|efficient_attention|flex_attention",
    "normalisation": r"(?i)(layer|rms)_?norm",
    "loss": r"(?i)cross_?entropy|nll_?loss|log_?softmax|loss(backward)?$",
}
# The others: the first that matches, for the operator's own name or else for the nearest one around it.
_LEAVES = {
    "fused kernels": "Compiled|inductor|triton|cpp_fused",
    "other": r"Backward\d*$|AccumulateGrad|^autograd::",
    "attention": _aten("baddbmm bmm _?softmax"),
    "matrix products": _aten("_?addmm addmv linear matmul mm mv _scaled_mm") + "|gemm",
    WAITING: _aten("item _local_scalar_dense") + "|[sS]ynchronize",
    "copies": _aten("cat clone contiguous copy embedding gather index index_select repeat stack _to_copy")
    + "|^Mem(cpy|set)",
    "elementwise": _aten(
        "_foreach abs add addcdiv addcmul all amax amin any argmax bernoulli bitwise clamp cos cumsum div dropout eq "
        "erf exp fill ge gelu gt isfinite le lerp linalg_vector_norm log lt masked_fill max maximum mean min minimum "
        "mul native_dropout ne neg norm normal ones pow reciprocal relu round rsqrt rsub sigmoid sign silu sin sqrt "
        "square sub sum tanh threshold tril triu where zero zeros"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator, summed over its calls. Times are in seconds for one step."""

    name: str
    group: str
    calls: float
    """For one step."""
    host: float
    """Self time on the threads: what it calls is not in it."""
    device: float
    """Time of the kernels that it launched itself."""


@dataclass(frozen=True, kw_only=True)
class ProductTime:
    """All products of matrices (m, k) and (k, n) in a step, those of the optimizer left out."""

    shape: tuple[int, int, int]
    """m, k, n."""
    calls: float
    seconds: float
    """On the device, or of all threads together."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A mean step under the profiler; all times in seconds."""

    wall: float
    """By the clock."""
    threads: int
    """Threads that work in a step; the parts on the host sum to ``wall * threads``."""
    host: dict[str, dict[str, float]]
    """Thread-time of each part of the step, of each group in it. What has no part is under ``""``."""
    device: dict[str, dict[str, float]] | None
    """The same of the device, summing to ``wall``; waiting is its idle time. None on a CPU."""
    operators: tuple[Operator, ...]
    """By self time, the longest first."""
    products: tuple[ProductTime, ...]
    """Of every shape, as far as shapes were recorded."""

    @property
    def accounted(self) -> float:
        """Share of the thread-time that a group other than ``unaccounted`` explains."""
        return 1.0 - self.groups()[UNACCOUNTED] / (self.wall * self.threads)

    @property
    def in_operators(self) -> float:
        """Share of the thread-time inside operators of the engine."""
        groups = self.groups()
        return 1.0 - sum(groups[g] for g in (PYTHON, WAITING, UNACCOUNTED)) / (self.wall * self.threads)

    def groups(self, *, device: bool = False) -> dict[str, float]:
        """Time of each group over the whole step."""
        table = (self.device or {}) if device else self.host
        return {group: sum(part.get(group, 0.0) for part in table.values()) for group in GROUPS}

    def parts(self, *, device: bool = False) -> dict[str, float]:
        """Time of each part of the step."""
        table = (self.device or {}) if device else self.host
        return {part: sum(groups.values()) for part, groups in table.items()}


@dataclass(frozen=True)
class _Place:
    """Where a span belongs."""

    part: str
    whole: str | None
    leaf: str
    span: Span

    @property
    def group(self) -> str:
        if self.part in _PART_GROUPS:
            return _PART_GROUPS[self.part]
        if self.span.mark:
            return PYTHON
        if self.whole == "loss" and self.leaf == "matrix products":
            return self.leaf  # a head that is fused with its loss still multiplies by a matrix
        return self.whole or self.leaf


def anatomy(trace: Trace, *, wall: float, steps: int) -> Anatomy:
    """Add up what a trace of ``steps`` steps holds.

    Args:
        wall: seconds of all steps together by a clock of its own, against which the sum is held.
    """
    spans = _inside_steps(trace.spans)
    lanes = _lanes(spans)
    parents, own = _nest(spans, lanes)
    places = _places(spans, parents)

    host: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    device: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for i, place in places.items():
        if not _is_step(place.span):
            table = device if place.span.device else host
            table[place.part][place.group] += own[i] / 1e9 / steps
    threads = [lane for lane in lanes.values() if not spans[lane[0]].device]
    mean_wall = wall / steps
    host[""][WAITING] += _waiting(spans, threads) / 1e9 / steps
    found = sum(t for part in host.values() for t in part.values())
    host[""][UNACCOUNTED] = mean_wall * len(threads) - found
    if device:
        device[""][WAITING] = mean_wall - sum(t for part in device.values() for t in part.values())
    return Anatomy(
        wall=mean_wall,
        threads=len(threads),
        host={part: dict(groups) for part, groups in host.items()},
        device={part: dict(groups) for part, groups in device.items()} or None,
        operators=_operators(places, own, steps),
        products=_products(places, own, steps, device=bool(device)),
    )


def _inside_steps(spans: Sequence[Span]) -> dict[int, Span]:
    """Spans between the start of the first step and the end of the last, under their numbers in the trace."""
    steps = [s for s in spans if _is_step(s)]
    if not steps:
        raise ValueError("the trace has no step")
    first, last = min(s.start for s in steps), max(s.end for s in steps)
    return {i: s for i, s in enumerate(spans) if first <= s.start and (s.device or s.end <= last)}


def _lanes(spans: dict[int, Span]) -> dict[str, list[int]]:
    """Numbers of the spans of each lane. A thread without a mark works for one that waits for it inside its own (as
    autograd's thread does for a GPU), so its spans are laid onto the lane of the steps."""
    main = next(s.lane for s in spans.values() if _is_step(s))
    marked = {s.lane for s in spans.values() if s.mark}
    lanes: dict[str, list[int]] = {main: []}
    for i, span in spans.items():
        lane = span.lane if span.device or span.lane in marked else main
        lanes.setdefault(lane, []).append(i)
    for numbers in lanes.values():
        numbers.sort(key=lambda i: (spans[i].start, -spans[i].end))
    return lanes


def _nest(spans: dict[int, Span], lanes: dict[str, list[int]]) -> tuple[dict[int, int | None], dict[int, int]]:
    """The span around each span, and the ns in which it is itself the innermost one. They sum to the time in which
    anything ran on the lane, also where kernels of two streams overlap."""
    parents: dict[int, int | None] = {}
    own: dict[int, int] = {}
    for numbers in lanes.values():
        open_: list[tuple[int, int]] = []
        for i in numbers:
            start, end = spans[i].start, spans[i].end
            while open_ and open_[-1][1] <= start:
                open_.pop()
            if open_ and spans[i].device:  # kernels call nothing: this one counts from where the earlier one ends
                start, end = min(open_[-1][1], end), max(open_[-1][1], end)
                open_.clear()
            parents[i] = open_[-1][0] if open_ else None
            if open_:
                end = min(end, open_[-1][1])
                own[open_[-1][0]] -= end - start
            own[i] = end - start
            open_.append((i, end))
    return parents, own


def _places(spans: dict[int, Span], parents: dict[int, int | None]) -> dict[int, _Place]:
    """Part and group of every span: from what is around it, from what caused it, and from its own name."""
    places: dict[int, _Place] = {}
    for i in sorted(spans, key=lambda i: (spans[i].device, spans[i].start, -spans[i].end)):
        span, parent = spans[i], parents[i]
        around = places.get(parent) if parent is not None else None
        cause = places.get(span.cause) if span.cause is not None else None
        if span.mark:
            part = "" if span.name == STEP else span.name
        else:
            part = next((p.part for p in (around, cause) if p is not None and p.part), "")
        inherited = next((p.whole for p in (around, cause) if p is not None and p.whole), None)
        # A kernel's caller is what surrounds it; a backward node's is not: it is another computation.
        leaf = _leaf(span.name) or next(
            (p.leaf for p in (around, cause if span.device else None) if p is not None), "other"
        )
        places[i] = _Place(part, inherited or _whole(span.name), leaf, span)
    return places


@cache
def _whole(name: str) -> str | None:
    return _first(_WHOLES, name)


@cache
def _leaf(name: str) -> str | None:
    return _first(_LEAVES, name)


def _first(table: dict[str, str], name: str) -> str | None:
    return next((group for group, pattern in table.items() if re.search(pattern, name)), None)


def _waiting(spans: dict[int, Span], threads: list[list[int]]) -> int:
    """Nanoseconds in which threads run nothing and are in no named part: the first, whose steps these are, while
    another one is in a part; the others always, for nobody but the first gives them work."""
    steps = [(s.start, s.end) for s in spans.values() if _is_step(s)]
    lanes = [[spans[i] for i in lane if not _is_step(spans[i])] for lane in threads]
    parts = [(s.start, s.end) for lane in lanes[1:] for s in lane if s.mark]
    waiting = 0
    for lane, others in zip(lanes, [parts, *[steps] * (len(lanes) - 1)], strict=True):
        busy = _union((s.start, s.end) for s in lane)
        waiting += _length(_union([*others, *busy])) - _length(busy)
    return waiting


def _is_step(span: Span) -> bool:
    return span.mark and span.name == STEP


def _union(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _length(intervals: Iterable[tuple[int, int]]) -> int:
    return sum(end - start for start, end in intervals)


def _operators(places: dict[int, _Place], own: dict[int, int], steps: int) -> tuple[Operator, ...]:
    """Every operator by name; one that is called in several groups counts for the one where it spends the most."""
    host: dict[str, int] = defaultdict(int)
    device: dict[str, int] = defaultdict(int)
    calls: dict[str, int] = defaultdict(int)
    by_group: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for i, place in places.items():
        span = place.span
        if span.mark:
            continue
        if span.device:
            caller = places.get(span.cause) if span.cause is not None else None
            name = caller.span.name if caller is not None else span.name
            device[name] += own[i]
        else:
            name = span.name
            host[name] += own[i]
            calls[name] += 1
        by_group[name][place.group] += own[i]
    unit = 1e9 * steps
    found = [
        Operator(
            name=name,
            group=max(groups, key=lambda g: groups[g]),
            calls=calls[name] / steps,
            host=host[name] / unit,
            device=device[name] / unit,
        )
        for name, groups in by_group.items()
    ]
    return tuple(sorted(found, key=lambda o: -(o.host + o.device)))


def _products(places: dict[int, _Place], own: dict[int, int], steps: int, *, device: bool) -> tuple[ProductTime, ...]:
    """Times of the matrix products by shape: of the kernels where there are any, else of the operators themselves."""
    calls: dict[tuple[int, int, int], int] = defaultdict(int)
    time: dict[tuple[int, int, int], int] = defaultdict(int)
    for i, place in places.items():
        operator = i
        if place.span.device and place.span.cause in places:
            operator = place.span.cause
        shape = _product_shape(places[operator])
        if shape is None:
            continue
        calls[shape] += operator == i
        if place.span.device == device:
            time[shape] += own[i]
    return tuple(
        ProductTime(shape=shape, calls=calls[shape] / steps, seconds=time[shape] / 1e9 / steps)
        for shape in sorted(calls, key=lambda s: -time[s])
    )


def _product_shape(place: _Place) -> tuple[int, int, int] | None:
    """m, k, n; ``aten::mm`` multiplies its first two arguments, ``aten::addmm`` adds its first one to their product."""
    first = {"aten::mm": 0, "aten::addmm": 1}.get(place.span.name)
    if first is None or place.group != "matrix products":
        return None
    factors = place.span.shapes[first : first + 2]
    if [len(shape) for shape in factors] != [2, 2]:
        return None
    return factors[0][0], factors[0][1], factors[1][1]
