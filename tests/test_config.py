"""Config and recipes: typed, frozen, explained in one sentence."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from bonsaigpt import recipes
from bonsaigpt.config import (
    PRESETS,
    Config,
    ModelConfig,
    RunConfig,
    SwiGLUMLP,
    derive,
    dump_toml,
    setting_names,
    validate,
)
from bonsaigpt.errors import ConfigError


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_is_valid_described_and_replays_from_its_own_dump(name: str) -> None:
    config = recipes.load(name)
    assert len(config.about) > 20
    assert validate(tomllib.loads(dump_toml(config)), origin="dump") == config


def test_a_config_cannot_be_changed() -> None:
    config = RunConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 2  # type: ignore[misc]


def test_every_setting_is_documented() -> None:
    def undocumented(model: type[Config], seen: set[type[Config]]) -> list[str]:
        missing = []
        for name, field in model.model_fields.items():
            members = [t for t in _leaves(field.annotation) if isinstance(t, type) and issubclass(t, Config)]
            if not members and not field.description:
                missing.append(f"{model.__name__}.{name}")
            for member in members:
                if member not in seen:
                    missing += undocumented(member, seen | {member})
        return missing

    def _leaves(annotation: object) -> list[object]:
        arguments = getattr(annotation, "__args__", None)
        return [leaf for a in arguments for leaf in _leaves(a)] if arguments else [annotation]

    assert undocumented(RunConfig, set()) == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"model": {"n_layr": 3}}, ["unknown setting 'model.n_layr'", "Did you mean 'model.n_layer'"]),
        ({"n_layer": 3}, ["unknown setting 'n_layer'", "Did you mean 'model.n_layer'"]),
        ({"model": {"mlp": {"kind": "swiglu", "hiden": 3}}}, ["'model.mlp.hiden'", "Did you mean 'model.mlp.hidden'"]),
        ({"model": {"mlp": {"kind": "swigl"}}}, ["model.mlp.kind = 'swigl'", "Did you mean 'swiglu'"]),
        ({"model": {"n_embd": 130}}, ["not divisible by model.n_head = 4", "use 128 or 132"]),
        ({"model": {"n_embd": 3}}, ["use 4"]),
        ({"model": {"attention": {"n_kv_head": 3}}}, ["does not divide", "[1, 2, 4]"]),
        ({"model": {"n_embd": 12, "position": {"kind": "rope"}}}, ["a head has 3", "even"]),
        ({"model": {"n_layer": "many"}}, ["model.n_layer = 'many'", "integer"]),
        ({"model": {"dropout": 1.5}}, ["model.dropout = 1.5", "less than 1"]),
        ({"model": {"preset": "gpt5"}}, ["model.preset = 'gpt5'", "gpt-nano"]),
        ({"data": {"kind": "files"}}, ["data.path is missing", "--data.path"]),
        ({"train": {"batch_ramp": {"kind": "staged", "sizes": [2], "until": [5, 9]}}}, ["1 sizes and 2 ends"]),
        ({"train": {"batch_ramp": {"kind": "staged", "sizes": [2, 4], "until": [9, 5]}}}, ["ends that grow"]),
        (
            {"train": {"batch_ramp": {"kind": "linear"}}, "data": {"kind": "zero_one", "order": "streams"}},
            ["batch_ramp", "streams"],
        ),
        (
            {"train": {"context_ramp": {"kind": "linear"}}, "data": {"kind": "sort"}},
            ["context_ramp", "sort"],
        ),
        ({"model": {"block_size": 8}, "data": {"kind": "sort", "length": 6}}, ["too short to sort 6", "at least 11"]),
        ({"train": {"eval_block_size": 65}}, ["eval_block_size = 65", "model.block_size = 64", "use that or less"]),
        ({"train": {"eval_block_size": 8}, "data": {"kind": "sort"}}, ["rows of `sort` are whole", "leave it out"]),
        ({"train": {"precision": "fp8"}}, ["train.precision = 'fp8'", "'bf16'"]),
    ],
)
def test_an_impossible_setting_is_one_sentence_with_the_remedy(data: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(data, origin="recipe mine")
    message = str(caught.value)
    assert "recipe mine" in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_presets_have_the_published_sizes() -> None:
    from bonsaigpt.spec import parameter_count

    # GPT-2 XL and its family as counted by Hugging Face's own models (tied head, biases, 1,024 positions).
    published = {
        "gpt2": 124_439_808,
        "gpt2-medium": 354_823_168,
        "gpt2-large": 774_030_080,
        "gpt2-xl": 1_557_611_200,
    }
    for name, count in published.items():
        assert parameter_count(ModelConfig(preset=name, vocab_size=50257, bias=True)) == count  # type: ignore[arg-type]
    assert ModelConfig(preset="gpt2", n_layer=3).n_layer == 3  # what is given as well wins
    assert set(PRESETS) >= {"gpt-nano", "gpt-micro", "gpt-mini", "baby"}


def test_swiglu_has_as_many_weights_as_gelu() -> None:
    gelu, swiglu = ModelConfig(n_embd=384, n_head=6), ModelConfig(n_embd=384, n_head=6, mlp=SwiGLUMLP())
    assert 2 * gelu.hidden == 3 * swiglu.hidden


def test_derive_checks_again() -> None:
    config = RunConfig()
    assert derive(config, model={"n_layer": 2}).model.n_layer == 2
    assert config.model.n_layer == 4
    with pytest.raises(ConfigError):
        derive(config, model={"n_head": 3})


def test_merge_replaces_a_variant_whole_and_an_equal_kind_field_by_field() -> None:
    base = {"mlp": {"kind": "gelu", "approximate": "tanh", "hidden": 7}}
    assert recipes.merge(base, {"mlp": {"kind": "swiglu"}}) == {"mlp": {"kind": "swiglu"}}
    assert recipes.merge(base, {"mlp": {"kind": "gelu", "hidden": 9}})["mlp"] == {
        "kind": "gelu",
        "approximate": "tanh",
        "hidden": 9,
    }
    assert base["mlp"]["hidden"] == 7  # untouched


def test_a_preset_on_top_wins_over_sizes_below_and_not_over_those_beside_it() -> None:
    config = recipes.load("shakespeare-char", {"model": {"preset": "baby", "n_layer": 5}})
    assert (config.model.n_layer, config.model.n_head, config.model.n_embd, config.model.block_size) == (5, 6, 384, 256)
    assert recipes.load("shakespeare-char").model.n_embd == 128


def test_extends(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('extends = "shakespeare-char"\n[model]\nn_layer = 2\n')
    (tmp_path / "top.toml").write_text('extends = "base.toml"\n[train]\nsteps = 7\n')
    config = recipes.load(str(tmp_path / "top.toml"), {"seed": 5})
    assert (config.model.n_layer, config.train.steps, config.seed) == (2, 7, 5)
    assert config.data.kind == "shakespeare"
    (tmp_path / "loop.toml").write_text(f'extends = "{tmp_path}/loop.toml"\n')
    with pytest.raises(ConfigError, match="extends itself"):
        recipes.load(str(tmp_path / "loop.toml"))


def test_setting_names_reach_into_unions() -> None:
    names = setting_names()
    assert "model.mlp.approximate" in names
    assert "data.tokenizer.vocab_size" in names
    assert "optim.schedule.final" in names


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"kind": "wikipedia", "pattern": "*"}, "unknown setting 'data.pattern' of kind 'wikipedia' in t."),
        ({"kind": "wikipedia", "paht": "x"}, "unknown setting 'data.paht' in t. Did you mean 'data.path'?"),
        ({"kind": "files", "path": "x", "nmae": "x"}, "unknown setting 'data.nmae' in t."),
        ({"kind": "stdlib", "tokenizer": {"kind": "bytes", "vocab_siz": 9}}, "'data.tokenizer.vocab_siz' in t."),
    ],
)
def test_only_settings_of_the_chosen_kind_are_suggested(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate({"data": data}, origin="t")
    assert words in str(caught.value)
    for foreign in ("'data.pattern'?", "'data.name'?", "vocab_size"):
        assert foreign not in str(caught.value)
