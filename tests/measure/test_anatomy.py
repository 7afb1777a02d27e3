"""Times add up to the clock, and go where they belong: on traces made by hand."""

from __future__ import annotations

import pytest

from bonsaigpt.measure.anatomy import GROUPS, PYTHON, UNACCOUNTED, WAITING, Anatomy, anatomy
from bonsaigpt.trace import Span, Trace

MS = 1_000_000
"""ns; and with one step a trace, milliseconds are what the figures are multiples of."""


def span(name: str, start: float, end: float, lane: str = "thread 1", **more: object) -> Span:
    return Span(name, round(start * MS), round(end * MS), lane, **more)  # type: ignore[arg-type]


def mark(name: str, start: float, end: float, lane: str = "thread 1") -> Span:
    return span(name, start, end, lane, mark=True)


def taken(*spans: Span, wall: float, steps: int = 1) -> Anatomy:
    return anatomy(Trace(spans=spans), wall=wall / 1e3, steps=steps)


def ms(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(1e3 * s, 6) for name, s in seconds.items() if round(1e3 * s, 6)}


STEP = (
    mark("step", 0, 100),
    mark("data", 0, 10),
    mark("forward", 12, 50),
    span("aten::linear", 12, 30),
    span("aten::mm", 15, 29),
    span("aten::gelu", 32, 40),
    mark("backward", 50, 90),
    span("autograd::engine::evaluate_function: GeluBackward0", 51, 60, cause=5),
    span("GeluBackward0", 52, 59, cause=5),
    span("aten::gelu_backward", 53, 58),
    mark("optimizer", 90, 99),
    span("aten::_foreach_add_", 91, 95),
)


def test_every_moment_counts_once_and_all_sum_to_the_clock() -> None:
    found = taken(*STEP, wall=101)
    assert ms(found.groups()) == {
        "matrix products": 18,
        "elementwise": 8 + 5,
        "optimizer": 9,
        "data": 10,
        "other": 4,  # autograd's bookkeeping
        PYTHON: 2 + 10 + 1 + 30,
        UNACCOUNTED: 1 + 2 + 1,  # outside the step's mark, and between its parts
    }
    assert ms(found.parts()) == {"data": 10, "forward": 38, "backward": 40, "optimizer": 9, "": 4}
    assert sum(found.groups().values()) == pytest.approx(0.101)
    assert sum(found.parts().values()) == pytest.approx(0.101)
    assert found.accounted == pytest.approx(1 - 4 / 101)
    assert found.in_operators == pytest.approx(54 / 101)  # the parts that are one group count whole
    assert found.threads == 1


def test_without_marks_less_is_accounted_for() -> None:
    """The negative control of the bar: operators are found all the same, Python is not."""
    bare = [s for s in STEP if not s.mark or s.name == "step"]
    numbers = {STEP.index(s): i for i, s in enumerate(bare)}
    bare = [span(s.name, s.start / MS, s.end / MS, cause=numbers.get(s.cause or 0), mark=s.mark) for s in bare]
    found = taken(*bare, wall=101)
    assert found.accounted == pytest.approx((18 + 8 + 9 + 4) / 101)
    assert found.accounted < taken(*STEP, wall=101).accounted - 0.5


def test_time_outside_the_steps_does_not_count() -> None:
    """A profiler also sees how it is started and stopped."""
    before, after = span("aten::mm", -50, -1), span("aten::mm", 101, 200)
    assert taken(before, *STEP, after, wall=101).groups() == taken(*STEP, wall=101).groups()


def test_several_steps_give_their_mean() -> None:
    second = [span(s.name, s.start / MS + 100, s.end / MS + 100, mark=s.mark) for s in STEP]
    found = taken(*STEP, *second, wall=202, steps=2)
    assert found.groups()["matrix products"] == pytest.approx(0.018)
    [product] = [o for o in found.operators if o.name == "aten::mm"]
    assert (product.calls, product.host) == (1, pytest.approx(0.014))


def test_what_is_made_of_operators_takes_them_along_and_so_does_its_backward_pass() -> None:
    """RMSNorm as torch computes it on a CPU: nothing but its parent says that this power is a norm's."""
    found = taken(
        mark("step", 0, 20),
        mark("forward", 0, 10),
        span("aten::rms_norm", 0, 5),
        span("aten::pow", 1, 4),
        span("aten::pow", 6, 8),
        mark("backward", 10, 20),
        span("PowBackward0", 10, 13, cause=3),
        span("aten::mul", 11, 13),
        span("PowBackward0", 14, 17, cause=4),
        span("aten::mul", 15, 17),
        wall=20,
    )
    assert ms(found.host["forward"]) == {"normalisation": 5, "elementwise": 2, PYTHON: 3}
    assert ms(found.host["backward"]) == {"normalisation": 3, "elementwise": 2, "other": 1, PYTHON: 4}


def test_a_fused_loss_still_multiplies() -> None:
    found = taken(
        mark("step", 0, 10),
        mark("forward", 0, 10),
        span("_FusedHeadLoss", 0, 10),
        span("aten::mm", 1, 5),
        span("aten::exp", 6, 8),
        wall=10,
    )
    assert ms(found.groups()) == {"matrix products": 4, "loss": 6}


WORKERS = (
    mark("step", 0, 100),
    mark("data", 0, 10),
    mark("forward", 10, 30),
    span("aten::mm", 10, 30),
    mark("backward", 30, 50),
    mark("forward", 12, 40, "thread 2"),
    span("aten::mm", 12, 40, "thread 2"),
    mark("backward", 40, 80, "thread 2"),
    mark("optimizer", 85, 98),
)


def test_threads_wait_for_each_other() -> None:
    """The first waits from 50 to 80, the other before 12 and after 80; from 80 to 85 and from 98 on the first did
    something that nobody named."""
    found = taken(*WORKERS, wall=100)
    assert found.threads == 2
    assert ms(found.groups()) == {
        "matrix products": 20 + 28,
        "data": 10,
        "optimizer": 13,
        PYTHON: 20 + 40,
        WAITING: 30 + 12 + 20,
        UNACCOUNTED: 5 + 2,
    }
    assert sum(found.groups().values()) == pytest.approx(0.2)
    assert found.accounted == pytest.approx(1 - 7 / 200)


def test_a_thread_without_marks_works_for_the_one_that_waits_for_it() -> None:
    """Autograd's thread for a GPU: what it does counts for the backward pass of the step's own thread."""
    found = taken(
        mark("step", 0, 10),
        mark("backward", 1, 9),
        span("MmBackward0", 2, 8, "thread 7"),
        span("aten::mm", 3, 8, "thread 7"),
        wall=10,
    )
    assert found.threads == 1
    assert ms(found.groups()) == {"matrix products": 5, "other": 1, PYTHON: 2, UNACCOUNTED: 2}


def test_kernels_belong_to_the_operator_that_launched_them() -> None:
    found = taken(
        mark("step", 0, 10),
        mark("forward", 0, 2),
        span("aten::mm", 0, 1),
        span("cudaLaunchKernel", 0.2, 0.8),
        span("aten::gelu", 1, 2),
        span("sm90_xmma_gemm", 1, 5, "cuda:0", device=True, cause=2),
        span("elementwise_kernel", 4, 6, "cuda:0", device=True, cause=4),  # on another stream, meanwhile
        mark("backward", 2, 4),
        span("cudaStreamSynchronize", 3, 4),
        span("Memcpy DtoH", 7, 7.5, "cuda:0", device=True),
        wall=10,
    )
    assert found.device is not None
    assert ms(found.groups(device=True)) == {"matrix products": 4, "elementwise": 1, "copies": 0.5, WAITING: 4.5}
    assert ms(found.parts(device=True)) == {"forward": 5, "": 5}
    assert ms(found.groups()) == {"matrix products": 1, "elementwise": 1, PYTHON: 1, WAITING: 1, UNACCOUNTED: 6}
    operators = {o.name: (o.host, o.device) for o in found.operators}
    assert operators["aten::mm"] == (pytest.approx(4e-4), pytest.approx(4e-3))
    assert operators["cudaLaunchKernel"] == (pytest.approx(6e-4), 0)


def test_products_are_told_by_their_shapes() -> None:
    spans = [
        mark("step", 0, 30),
        mark("forward", 0, 10),
        span("aten::mm", 0, 4, shapes=((6, 2), (2, 3))),
        span("aten::addmm", 4, 6, shapes=((3,), (6, 2), (2, 3))),
        span("aten::mm", 6, 7, shapes=((3, 6), (6, 2), (3, 2))),  # into a result that was there before
        mark("optimizer", 20, 30),
        span("aten::mm", 20, 30, shapes=((2, 2), (2, 2))),  # Muon's
    ]
    found = {p.shape: (p.calls, 1e3 * p.seconds) for p in taken(*spans, wall=30).products}
    assert found == {(6, 2, 3): (2, pytest.approx(6)), (3, 6, 2): (1, pytest.approx(1))}


@pytest.mark.parametrize(
    ("operator", "group"),
    [
        ("aten::mm", "matrix products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("aten::_softmax_backward_data", "attention"),
        ("aten::bmm", "attention"),
        ("aten::_log_softmax_backward_data", "loss"),
        ("aten::nll_loss_forward", "loss"),
        ("_FusedHeadLossBackward", "loss"),
        ("aten::native_layer_norm_backward", "normalisation"),
        ("_RMSNormBackward", "normalisation"),
        ("aten::gelu_backward", "elementwise"),
        ("aten::add_", "elementwise"),
        ("aten::zeros_like", "elementwise"),
        ("aten::copy_", "copies"),
        ("aten::embedding_dense_backward", "copies"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("Optimizer.step#AdamW.step", "optimizer"),
        ("triton_poi_fused_add_3", "fused kernels"),
        ("triton_per_fused_native_layer_norm_0", "normalisation"),
        ("cudaDeviceSynchronize", WAITING),
        ("aten::item", WAITING),
        ("aten::expand", "other"),
        ("aten::new_empty", "other"),
        ("torch::autograd::AccumulateGrad", "other"),
        ("MulBackward0", "other"),
    ],
)
def test_groups_of_operators(operator: str, group: str) -> None:
    assert group in GROUPS
    found = taken(mark("step", 0, 2), mark("forward", 0, 2), span(operator, 0, 2), wall=2)
    assert ms(found.groups()) == {group: 2}
