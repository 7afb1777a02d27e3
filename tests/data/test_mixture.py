"""Mixtures: exact proportions, no gap in any part, each part's own validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonsaigpt.cli import main
from bonsaigpt.config import RunConfig, dump_toml, load_toml, validate
from bonsaigpt.data.mixture import MixtureBatches, Turns
from bonsaigpt.data.prepare import open_source
from bonsaigpt.errors import ConfigError, DataError
from bonsaigpt.measure import evaluate
from bonsaigpt.torch_engine.engine import TorchEngine
from bonsaigpt.torch_engine.model import build


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8))
def test_no_part_is_ever_a_whole_sample_off_its_share(weights: list[int]) -> None:
    turns = Turns(weights)
    samples = np.arange(2 * turns.period + 3)
    parts, numbers = turns.of(samples)
    for i, weight in enumerate(weights):
        mine = parts == i
        assert np.array_equal(numbers[mine], np.arange(mine.sum()))  # no gap, none twice
        drift = np.cumsum(mine) - (samples + 1) * weight / sum(weights)
        assert abs(drift).max() < 1.0


def test_a_share_is_what_was_written_and_far_samples_follow_the_same_pattern() -> None:
    turns = Turns([0.3, 0.7])
    assert (turns.period, turns.turns) == (10, [3, 7])
    near, far = turns.of(np.arange(10)), turns.of(np.arange(10) + 10**15)
    assert np.array_equal(near[0], far[0])
    assert np.array_equal(far[1] - near[1], np.where(near[0] == 0, 3, 7) * 10**14)
    with pytest.raises(ConfigError, match="repeat after 10,000,000 samples only"):
        Turns([0.1234567, 1 - 0.1234567])


def settings_of(folder: Path, *, weights: tuple[float, float] = (3, 1), **second: Any) -> dict[str, Any]:
    """Two folders of texts, the first all capitals."""
    parts = []
    for number, weight in enumerate(weights):
        home = folder / f"texts{number}"
        home.mkdir(exist_ok=True)
        for i in range(30):
            words = f"text {i} of folder {number}, " * (3 + i % 5)
            (home / f"{i}.txt").write_text(words if number else words.upper(), encoding="utf-8")
        data = {"kind": "files", "path": str(home), "tokenizer": {"kind": "bytes"}} | (second if number else {})
        parts.append({"weight": weight, "data": data})
    parts[0]["name"] = "capitals"
    return {
        "data": {"kind": "mixture", "parts": parts},
        "model": {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": 257},
        "train": {"batch_size": 8, "steps": 6, "eval_interval": 3, "compile": "off", "threads": 1},
    }


def mixture(folder: Path, **changes: Any) -> tuple[RunConfig, MixtureBatches, list[str]]:
    config, lines = validate(settings_of(folder, **changes), origin="t"), []
    source = open_source(config, folder / "corpora", say=lines.append)
    assert isinstance(source, MixtureBatches)
    return config, source, lines


def test_each_batch_holds_its_parts_own_next_samples(tmp_path: Path) -> None:
    _, source, lines = mixture(tmp_path)
    capitals, other = source.members.values()
    rows: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for step in range(4):
        batch = source.batch_at(step)
        assert batch.count == batch.targets_BT.size == 8 * 16
        for row in batch.tokens_BT:
            rows[not any(97 <= token <= 122 for token in row)].append(row)
    assert (len(rows[True]), len(rows[False])) == (24, 8)
    assert np.array_equal(rows[True], capitals.rows_at(np.arange(24)).tokens_BT)
    assert np.array_equal(rows[False], other.rows_at(np.arange(8)).tokens_BT)
    assert any(line.startswith("capitals: 75.00% of the samples, ") for line in lines)
    assert source.passes(4000)["2 files"] == pytest.approx(1000 / len(other.train))
    assert not np.array_equal(source.reordered(1).batch_at(0).tokens_BT, source.batch_at(0).tokens_BT)


def test_a_part_with_a_mask_and_one_without(tmp_path: Path) -> None:
    config, source, _ = mixture(tmp_path, order="packed", document_mask=True)
    assert config.data.document_mask  # type: ignore[union-attr]
    several = np.zeros(2, dtype=int)
    for step in range(30):
        batch = source.batch_at(step)
        assert batch.documents_BT is not None
        assert batch.count == (batch.targets_BT >= 0).sum()
        lower = ((batch.tokens_BT >= 97) & (batch.tokens_BT <= 122)).any(axis=1)
        several += [(batch.documents_BT.max(axis=1) > 0)[lower == side].sum() for side in (False, True)]
    assert several[0] == 0 < several[1]


def test_validation_is_the_weighted_mean_of_the_parts(tmp_path: Path) -> None:
    config, source, _ = mixture(tmp_path)
    engine, model = TorchEngine(device="cpu"), build(config.model, seed=1)
    seen: list[tuple[int, int]] = []
    whole = evaluate(engine, model, source, advance=lambda what, done, total: seen.append((done, total)))
    one, two = (evaluate(engine, model, part) for part in source.members.values())
    assert whole.parts == {"capitals": one.loss, "2 files": two.loss}
    assert whole.loss == pytest.approx(0.75 * one.loss + 0.25 * two.loss, rel=1e-12)
    assert one.loss != two.loss
    assert whole.tokens == one.tokens + two.tokens == source.validation_count() == seen[-1][0] == seen[-1][1]
    assert type(whole).from_dict(whole.as_dict()) == whole
    assert whole.scalars()["parts/capitals"] == one.loss


def test_a_run_on_a_mixture_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mixed.toml"
    config = validate(settings_of(tmp_path), origin="t")
    recipe.write_text(dump_toml(config), encoding="utf-8")
    assert validate(load_toml(recipe), origin="t") == config
    flags = ["--runs", str(tmp_path / "runs"), "--corpora", str(tmp_path / "corpora")]
    assert main(["train", str(recipe), "--name", "whole", *flags]) == 0
    assert "capitals" in capsys.readouterr().out
    assert main(["train", str(recipe), "--name", "cut", "--train.steps", "3", *flags]) == 0
    assert main(["train", str(tmp_path / "runs" / "cut"), "--resume", "--train.steps", "6", *flags]) == 0
    lines = [(tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()[-1] for name in ("whole", "cut")]
    one, two = (line.split('"val_loss": ')[1] for line in lines)
    assert one == two
    assert main(["eval", str(tmp_path / "runs" / "whole"), *flags]) == 0


def test_parts_with_different_tokenizers_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"parts 'capitals' and '2 files' of the mixture have different tokenizers \(bytes, 257 tokens; ",
    ):
        mixture(tmp_path, tokenizer={"kind": "chars"})


def test_a_mixture_by_a_flag_and_what_it_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["train", "stdlib", "--dry-run", "--data.kind", "mixture", "--data.parts"]
    path = tmp_path / "a.txt"
    path.write_text("some text, and more of it. " * 200, encoding="utf-8")
    part = (
        f'{{"weight": 1, "data": {{"kind": "files", "path": "{path.as_posix()}", "tokenizer": {{"kind": "bytes"}}}}}}'
    )
    small = ["--model.n_layer", "1", "--train.steps", "2", "--corpora", str(tmp_path / "c"), "--train.compile", "off"]
    assert main([*base, f"[{part}]", *small]) == 0
    cases = {
        '[{"weight": 0, "data": {"kind": "stdlib"}}]': "data.parts.0.weight = 0",
        '[{"weight": 1, "data": {"kind": "sort"}}]': "data.parts.0.data.kind = 'sort'",
        '[{"weight": 1, "data": {"kind": "stdlib", "order": "streams"}}]': "cannot have order = 'streams'",
        '[{"weight": 1, "data": {"kind": "files"}}]': "data.parts.0.data.path is missing",
        '[{"weight": 1, "dat": {}}]': "unknown setting 'data.parts.0.dat'",
        "[]": "data.parts",
    }
    for given_parts, words in cases.items():
        assert main([*base, given_parts, *small]) == 2
        assert words in capsys.readouterr().err, given_parts
