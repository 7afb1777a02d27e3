"""Toys: known floors, no leak from training into validation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.config import SortData, ZeroOneData
from bonsaigpt.data.batches import IGNORE
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.prepare import prepare
from bonsaigpt.data.toys import task_batches, zero_one
from bonsaigpt.data.toys.task import TaskBatches, is_held_out, symbols
from bonsaigpt.errors import ConfigError, DataError


def test_zero_one_has_the_known_entropy_and_the_right_share(tmp_path: Path) -> None:
    assert zero_one.entropy(1 / 3) == pytest.approx(0.6365, abs=5e-5)
    corpus = prepare(ZeroOneData(sequences=1000), tmp_path, seed=3)
    symbols = np.concatenate([corpus.tokens("train"), corpus.tokens("val")])
    assert len(symbols) == 1_000_000
    assert corpus.count("val") == 100_000
    # Share of zeros in n draws: standard deviation sqrt(2 / 9 / n) = 0.00047: five of them.
    assert abs((symbols == 0).mean() - 1 / 3) < 0.0024
    assert corpus.tokenizer.decode(symbols[:5]) == "".join(map(str, symbols[:5]))


def test_zero_one_floor_is_the_loss_of_the_true_probabilities(tmp_path: Path) -> None:
    corpus = prepare(ZeroOneData(sequences=50), tmp_path)
    val = corpus.tokens("val")[1:]
    by_hand = -np.mean([math.log(1 / 3) if s == 0 else math.log(2 / 3) for s in val])
    assert corpus.notes["floor_nats"] == pytest.approx(by_hand, rel=1e-12)
    assert corpus.notes["floor_nats"] != corpus.notes["entropy_nats"]


def test_zero_one_depends_on_the_seed_alone(tmp_path: Path) -> None:
    config = ZeroOneData(sequences=30)
    one, two = prepare(config, tmp_path / "a", seed=1), prepare(config, tmp_path / "b", seed=1)
    other = prepare(config, tmp_path / "a", seed=2)
    assert one.fingerprint == two.fingerprint != other.fingerprint


def sorter(vocab: int = 10, length: int = 6, seed: int = 1) -> TaskBatches:
    """A source of lists."""
    return task_batches(
        SortData(vocab=vocab, length=length, val_examples=500),
        seed=seed,
        plan=BatchPlan(batch_size=64, block_size=2 * length - 1),
    )


def test_sort_rows_hold_the_list_and_its_sorted_answer() -> None:
    batch = sorter().batch_at(3)
    for tokens, targets in zip(batch.tokens_BT, batch.targets_BT, strict=True):
        assert targets[:5].tolist() == [IGNORE] * 5
        assert targets[5:].tolist() == sorted(tokens[:6].tolist())
        assert tokens[6:].tolist() == targets[5:-1].tolist()
    assert batch.count == 64 * 6 == (batch.targets_BT != IGNORE).sum()


def test_no_list_is_both_trained_on_and_held_out() -> None:
    small = sorter(vocab=3, length=4)  # 81 lists: everything turns up
    trained = {tuple(row[:4]) for s in range(60) for row in small.batch_at(s).tokens_BT.tolist()}
    held = {tuple(row[:4]) for b in small.validation() for row in b.tokens_BT.tolist()}
    assert trained
    assert held
    assert not trained & held
    assert len(trained | held) == 81
    assert is_held_out(np.array(sorted(held))).all()


def test_about_a_quarter_is_held_out() -> None:
    lists = np.random.default_rng(0).integers(0, 10, (20_000, 6))
    # Standard deviation of the share: sqrt(3 / 16 / n) = 0.003: five of them.
    assert abs(is_held_out(lists).mean() - 0.25) < 0.0154


def test_sort_batches_are_pure_and_differ() -> None:
    a, b = sorter(), sorter(seed=2)
    assert np.array_equal(a.batch_at(5).tokens_BT, a.batch_at(5).tokens_BT)
    assert not np.array_equal(a.batch_at(5).tokens_BT, a.batch_at(6).tokens_BT)
    assert not np.array_equal(a.batch_at(5).tokens_BT, b.batch_at(5).tokens_BT)
    assert sum(len(x.tokens_BT) for x in a.validation()) == 500
    assert a.validation_count() == 3000


def test_digits_are_numbered_as_the_tokenizer_numbers_them() -> None:
    for vocab in (2, 10, 37, 62, 500):
        assert sorter(vocab=vocab).tokenizer.characters == list(symbols(vocab, setting="data.vocab"))
    with pytest.raises(ConfigError, match="at most 20000"):
        symbols(30_000, setting="data.vocab")


def test_there_is_nothing_to_prepare_for_sort(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="made while training"):
        prepare(SortData(), tmp_path)
