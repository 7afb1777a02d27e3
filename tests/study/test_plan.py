"""Plans: every combination once, readable names, and refusals before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from bonsaigpt.config import RunConfig, validate
from bonsaigpt.errors import ConfigError
from bonsaigpt.study.plan import Axis, Plan, Point, axis_word, grid, make_plan, parse_axis


def configure(more: Mapping[str, str]) -> RunConfig:
    """Nested dictionaries from dotted names; values are parsed by the configuration itself."""
    data: dict[str, Any] = {"seed": 7}
    for name, value in more.items():
        *sections, last = name.split(".")
        inner = data
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return validate(data, origin="the test")


def plan_of(*axes: str, seeds: int = 1) -> Plan:
    return make_plan(
        grid([parse_axis(axis) for axis in axes]), recipe="r", command="c", seeds=seeds, configure=configure
    )


def test_every_combination_with_every_seed_once() -> None:
    plan = plan_of("optim.lr=1e-3,2e-3", "model.mlp.kind=gelu,relu2,swiglu", seeds=2)
    assert [p.name for p in plan.points[:3]] == ["lr=1e-3,mlp=gelu", "lr=1e-3,mlp=relu2", "lr=1e-3,mlp=swiglu"]
    assert list(plan.seeds) == [7, 8]
    found = {(run.config.optim.lr, run.config.model.mlp.kind, run.config.seed) for run in plan.runs}
    assert found == {(lr, kind, seed) for lr in (1e-3, 2e-3) for kind in ("gelu", "relu2", "swiglu") for seed in (7, 8)}
    assert len(plan.runs) == 12
    assert len({run.name for run in plan.runs}) == 12
    assert [run.seed for run in plan.runs] == [7] * 6 + [8] * 6  # the first figures of all points come early
    assert plan.runs[0].name == "lr=1e-3,mlp=gelu,seed=7"


def test_seeds_alone_are_one_point() -> None:
    plan = plan_of(seeds=3)
    assert [run.name for run in plan.runs] == ["seed=7", "seed=8", "seed=9"]
    assert [p.name for p in plan.points] == ["recipe"]


def test_names_that_two_settings_would_share_are_whole() -> None:
    [point] = grid([Axis("optim.eps", ("1e-8",)), Axis("model.norm.eps", ("1e-5",))])
    assert point.name == "optim.eps=1e-8,model.norm.eps=1e-5"


def test_folder_names_are_fit_and_stay_different() -> None:
    points = [
        Point("about=a/b@c", {"about": "a/b@c"}),
        Point("about=a_b_c", {"about": "a_b_c"}),
        Point(long := "about=" + "x" * 300, {"about": long}),
    ]
    names = [r.name for r in make_plan(points, recipe="r", command="c", seeds=1, configure=configure).runs]
    assert len(set(names)) == 3
    assert names[1] == "about=a_b_c,seed=7"
    for name in names:
        assert not set(name) & set("/@ ")
        assert len(name) < 200


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optim.lrr=1,2", "Did you mean 'optim.lr'"),
        ("optim=1,2", "whole section"),
        ("model.mlp=gelu", "whole section"),
        ("optim.lr", "SETTING=VALUE"),
        ("=1,2", "SETTING=VALUE"),
        ("optim.lr=", "empty value"),
        ("optim.lr=1,,2", "empty value"),
        ("optim.lr=1,2,1", "lists 1 twice"),
        ("seed=1,2", "--seeds"),
        ("optim.lr_scale={},{a", "does not close"),
        ("optim.lr_scale={},{a)", "does not close"),
        ('train.kv="full,int8', "does not close"),
    ],
)
def test_a_grid_that_cannot_be(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_axis(text)


def test_commas_within_brackets_and_quotes_part_no_values() -> None:
    assert parse_axis('train.kv="window(4), int8", full').values == ("window(4), int8", "full")
    assert parse_axis('optim.lr_scale={},{"a,b": 2}').values == ("{}", '{"a,b": 2}')
    for text in ("1e-3", "[1, 2]", "window(4), int8", 'say "a"', 'a, "b', "(", '"x"', "a\\", " a "):
        assert parse_axis(f"train.sample_prompt=0,{axis_word(text)}").values == ("0", text)
    assert axis_word("window(4)") == "window(4)"


def test_one_setting_on_two_axes() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        grid([Axis("optim.lr", ("1",)), Axis("optim.lr", ("2",))])


def test_an_impossible_point_is_named() -> None:
    with pytest.raises(ConfigError, match=r"n_head=3 is impossible.*not divisible"):
        plan_of("model.n_head=4,3")


def test_points_that_are_the_same_run() -> None:
    with pytest.raises(ConfigError, match=r"lr=1e-3 and lr=0.001 are the same"):
        plan_of("optim.lr=1e-3,0.001")
