"""The fit of final losses: it finds what is known, bears a wild point, and knows what it does not speak of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bonsaigpt import recipes
from bonsaigpt.config import RunConfig
from bonsaigpt.measure.scaling import Scaling, compared_settings, fit, leave_one_out

SHIPPED = Scaling.shipped()
TRUE = (1.3, 60.0, 0.45, 3000.0, 0.62)
Runs = list[tuple[int, int, float]]


def law(n: float, d: float) -> float:
    E, A, a, B, b = TRUE
    return E + A / n**a + B / d**b


def made(noise: float = 0.0) -> Runs:
    draws = np.random.default_rng(0)
    sizes = [(n, d) for n in (100_000, 600_000, 800_000, 1_800_000) for d in (200_000, 400_000, 800_000, 1_500_000)]
    return [(n, d, law(n, d) * (1 + noise * draws.standard_normal())) for n, d in sizes]


def recipe(**changes: object) -> RunConfig:
    return recipes.load("shakespeare-char-best", dict(changes))


def test_a_known_law_is_found() -> None:
    """Exponents are searched on a grid to 1e-4 or so; the loss inside the runs' range is far closer."""
    assert fit(made()) == pytest.approx(TRUE, rel=1e-3)
    E, A, a, B, b = fit(made(noise=0.002))
    for n, d, _ in made():
        assert E + A / n**a + B / d**b == pytest.approx(law(n, d), rel=2 * 0.002)


def test_one_wild_run_hardly_moves_it_and_is_found_by_leaving_it_out() -> None:
    runs = made(noise=0.002)
    runs[5] = (*runs[5][:2], runs[5][2] + 0.2)
    E, A, a, B, b = fit(runs)
    for n, d, _ in [*runs[:5], *runs[6:]]:
        assert E + A / n**a + B / d**b == pytest.approx(law(n, d), rel=4 * 0.002)
    errors = leave_one_out(runs)
    assert int(np.argmax(np.abs(errors))) == 5
    assert errors[5] == pytest.approx(-0.2, abs=0.02)


def test_the_shipped_fit_is_that_of_its_runs() -> None:
    assert len(SHIPPED.runs) >= 12
    again = Scaling.of(SHIPPED.runs, recipe(), corpus=SHIPPED.corpus, text=SHIPPED.text)
    for name in ("E", "A", "a", "B", "b", "spread"):
        assert getattr(again, name) == pytest.approx(getattr(SHIPPED, name), rel=1e-6), name
    # Negative control: it is not that of other runs.
    other = [(n, d, loss + 0.01 * (n > 500_000)) for n, d, loss in SHIPPED.runs]
    assert fit(other) != pytest.approx(fit(SHIPPED.runs), rel=1e-3)
    assert SHIPPED.spread < 0.03
    assert max(abs(SHIPPED.loss(n, d) - loss) for n, d, loss in SHIPPED.runs) < 4 * SHIPPED.spread


def test_it_survives_json() -> None:
    assert Scaling.from_json(SHIPPED.to_json()) == SHIPPED


def test_it_speaks_of_its_recipe_at_any_size_seed_and_length() -> None:
    sizes = {"n_layer": 3, "n_embd": 192, "n_head": 3, "vocab_size": 65}
    loop = {"steps": 700, "threads": 1, "micro_batch": 3, "eval_interval": 7, "tensorboard": False}
    for config in (recipe(), recipe(model=sizes), recipe(seed=5, train=loop)):
        assert SHIPPED.why_not(config, SHIPPED.corpus + "-shuffled-1337-12") is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"mlp": {"kind": "gelu"}}}, "model.mlp.kind is gelu, the fit's relu2"),
        ({"model": {"block_size": 128}}, "model.block_size is 128, the fit's 64"),
        ({"model": {"n_head": 4}}, "model.head_width is 32, the fit's 64"),
        ({"model": {"dropout": 0.1}}, "model.dropout is 0.1, the fit's 0.0"),
        ({"train": {"batch_size": 24}}, "train.batch_size is 24"),
        ({"train": {"batch_ramp": {"kind": "linear"}}}, "train.batch_ramp.kind is linear"),
        ({"optim": {"lr": 1e-4}}, "optim.lr is 0.0001"),
        ({"optim": {"matrices": {"kind": "adamw"}}}, "optim.matrices.kind is adamw, the fit's muon, and 4 more"),
        ({"data": {"order": "random"}}, "data.order is random"),
    ],
)
def test_it_says_why_it_does_not_speak_of_others(changes: dict[str, object], says: str) -> None:
    reason = SHIPPED.why_not(recipe(**changes), SHIPPED.corpus)
    assert reason is not None
    assert says in reason


def test_it_knows_its_text_and_its_range() -> None:
    assert "other data" in (SHIPPED.why_not(recipe(), "0" * 64) or "")
    low, high = (f(n for n, _, _ in SHIPPED.runs) for f in (min, max))
    longest = max(d for _, d, _ in SHIPPED.runs)
    middle = SHIPPED.runs[len(SHIPPED.runs) // 2][0]
    inside = SHIPPED.predict(middle, longest // 2)
    assert inside.beyond == ""
    assert inside.margin == 2 * SHIPPED.spread
    assert inside.loss == SHIPPED.loss(middle, longest // 2)
    assert "parameters, the runs had" in SHIPPED.predict(2 * high, longest).beyond
    assert "tokens, the runs had" in SHIPPED.predict(low, longest + 1).beyond
    assert all(SHIPPED.predict(n, d).beyond == "" for n, d, _ in SHIPPED.runs)


def test_a_large_model_at_a_long_run_is_beyond_the_runs_though_each_is_within() -> None:
    largest = max(n for n, _, _ in SHIPPED.runs)
    longest = max(d for _, d, _ in SHIPPED.runs)
    assert max(d for n, d, _ in SHIPPED.runs if n == largest) < longest  # the grid lacks that corner
    assert "not both together" in SHIPPED.predict(largest, longest).beyond
    assert "not both together" in SHIPPED.predict(largest - 1000, longest - 1000).beyond


def test_the_region_by_hand() -> None:
    """A triangle whose corners are powers of ten: the third side is straight on logarithmic axes alone."""
    corners = [(100, 100), (10_000, 100), (100, 10_000)]
    runs = [(n, d, law(n, d)) for n, d in corners]
    triangle = replace(SHIPPED, runs=runs)
    for n, d in [*corners, (1000, 1000), (999, 999), (100, 5000), (300, 200)]:
        assert triangle.predict(n, d).beyond == "", (n, d)
    for n, d in [(1010, 1010), (2500, 2500), (9000, 200), (99, 99)]:
        assert triangle.predict(n, d).beyond != "", (n, d)


def test_settings_are_compared_by_name() -> None:
    names = compared_settings(recipe()).keys()
    assert {"model.mlp.kind", "optim.schedule.final", "train.batch_size", "data.order"} <= names
    assert not {"seed", "model.n_layer", "train.steps", "data.path", "about"} & names
    assert replace(SHIPPED, settings={}).why_not(recipe(), SHIPPED.corpus) is not None
