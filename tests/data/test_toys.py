"""Toys: known floors, no leak from training into validation."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest

from bonsaigpt.config import AddData, CopyData, RecallData, SortData, TaskData, ZeroOneData, validate
from bonsaigpt.data.batches import IGNORE
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.prepare import prepare
from bonsaigpt.data.toys import task_batches, zero_one
from bonsaigpt.data.toys.recall import chance
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


TASKS: list[TaskData] = [
    SortData(vocab=5, length=4, val_examples=50),
    AddData(digits=2, val_examples=50),
    AddData(digits=2, reverse=False, val_examples=50),
    CopyData(vocab=4, length=3, val_examples=30),
    RecallData(keys=6, values=7, pairs=3, gap=2, queries=2, val_examples=50),
]


def written(config: TaskData, rows: int = 40) -> list[str]:
    """Whole rows as characters, the last token taken from the targets."""
    data = task_batches(config, seed=4, plan=BatchPlan(batch_size=rows, block_size=config.row - 1))
    batch = data.batch_at(2)
    whole = np.concatenate([batch.tokens_BT, batch.targets_BT[:, -1:]], axis=1)
    return [data.tokenizer.decode(row) for row in whole]


def test_add_rows_are_true_sums() -> None:
    for line in written(AddData(digits=3)):
        left, _, total = line.partition("=")
        first, second = left.split("+")
        assert len(first) == len(second) == 3
        assert int(first) + int(second) == int(total[::-1])
        assert len(total) == 4
    for line in written(AddData(digits=3, reverse=False)):
        left, _, total = line.partition("=")
        assert sum(map(int, left.split("+"))) == int(total)


def test_copy_rows_repeat_what_stands_before_the_mark() -> None:
    for line in written(CopyData(vocab=4, length=6)):
        assert line[6] == "4"
        assert line[:6] == line[7:]
        assert set(line[:6]) <= set("0123")


def test_recall_rows_answer_each_key_with_its_value() -> None:
    config = RecallData(keys=6, values=7, pairs=3, gap=2, queries=2)
    asked = set()
    for line in written(config):
        shown = dict(zip(line[0:6:2], line[1:6:2], strict=True))
        assert len(shown) == len(set(shown.values())) == 3
        assert line[6:8] == "dd"  # the filler is the 14th symbol
        assert all(shown[key] == value for key, value in zip(line[8::2], line[9::2], strict=True))
        assert len(set(line[8::2])) == 2
        asked.add(line[8])
    assert len(asked) > 3
    assert chance(config) == {"blind_nats": math.log(7), "unbound_nats": math.log(3)}


@pytest.mark.parametrize("config", TASKS, ids=lambda c: f"{c.kind}")
def test_every_task_is_pure_complete_and_keeps_its_held_out_problems_apart(config: TaskData) -> None:
    plan = BatchPlan(batch_size=16, block_size=config.row - 1)
    data, other = (task_batches(config, seed=seed, plan=plan) for seed in (1, 2))
    one, again = data.batch_at(5), data.batch_at(5)
    assert np.array_equal(one.tokens_BT, again.tokens_BT)
    assert not np.array_equal(one.tokens_BT, other.batch_at(5).tokens_BT)
    assert not np.array_equal(one.tokens_BT, data.reordered(1).batch_at(5).tokens_BT)
    assert data.fingerprint != other.fingerprint
    assert one.count == (one.targets_BT != IGNORE).sum()
    assert one.tokens_BT.max() < data.tokenizer.vocab_size == len(data.tokenizer.characters)
    assert data.tokenizer.characters == list(data.task.alphabet)
    asked = one.targets_BT != IGNORE
    assert np.array_equal(one.targets_BT[:, :-1][asked[:, :-1]], one.tokens_BT[:, 1:][asked[:, :-1]])
    held = [row for batch in data.validation() for row in batch.tokens_BT.tolist()]
    assert len(held) == config.val_examples
    assert sum(batch.count for batch in data.validation()) == data.validation_count()
    trained = {tuple(row) for step in range(40) for row in data.batch_at(step).tokens_BT.tolist()}
    assert not trained & set(map(tuple, held))


def test_settings_of_toys_are_checked() -> None:
    for data, words in {
        (("kind", "recall"), ("pairs", 9), ("keys", 8)): "use at most 8 pairs",
        (("kind", "recall"), ("queries", 5)): "more keys than data.pairs = 4",
        (("kind", "zero_one"), ("p_zero_after", (0.1, 0.2, 0.3))): "has 3 probabilities.*e.g. 4",
        (("kind", "add"), ("digits", 30)): "data.digits = 30",
        (("kind", "copy"), ("length", 40)): "too short to copy 40 symbols: use at least 80 .2 . data.length.",
    }.items():
        with pytest.raises(ConfigError, match=words):
            validate({"data": dict(data)}, origin="t")


CHAIN = (0.9, 0.2, 0.7, 0.4, 0.1, 0.8, 0.3, 0.6)


def test_the_entropy_rate_of_a_chain_by_hand() -> None:
    """Order 1 with P(0|0) = a and P(0|1) = b: P(0) = b / (1 - a + b)."""
    a, b = 0.9, 0.2
    share = b / (1 - a + b)
    by_hand = share * zero_one.entropy(a) + (1 - share) * zero_one.entropy(b)
    config = ZeroOneData(p_zero_after=(a, b))
    assert zero_one.entropy_rate(config) == pytest.approx(by_hand, rel=1e-12)
    assert zero_one.stationary((a, b)) == pytest.approx([share, 1 - share], rel=1e-12)
    # A chain that does not look back is the independent one.
    flat = ZeroOneData(p_zero_after=(1 / 3,) * 8)
    assert zero_one.entropy_rate(flat) == pytest.approx(zero_one.entropy(1 / 3), rel=1e-12)


def test_a_chain_has_its_probabilities_across_the_seams_of_sequences_too(tmp_path: Path) -> None:
    config = ZeroOneData(sequences=4000, length=25, p_zero_after=CHAIN)
    corpus = prepare(config, tmp_path, seed=5)
    symbols = np.concatenate([corpus.tokens("train"), corpus.tokens("val")]).astype(np.int64)
    assert len(symbols) == 100_000
    states = 4 * symbols[:-3] + 2 * symbols[1:-2] + symbols[2:-1]
    for state, p in enumerate(CHAIN):
        here = states == state
        zeros, n = (symbols[3:][here] == 0).sum(), here.sum()
        # Binomial: five standard deviations.
        assert abs(zeros / n - p) < 5 * math.sqrt(p * (1 - p) / n), state
        share = zero_one.stationary(CHAIN)[state]
        assert abs(n / len(states) - share) < 0.02
    seams = np.arange(25, 100_000, 25)  # a sequence's first symbol follows from the end of the one before
    zero = symbols[seams] == 0
    likely = np.array(CHAIN)[4 * symbols[seams - 3] + 2 * symbols[seams - 2] + symbols[seams - 1]]
    assert abs((zero - likely).mean()) < 5 * 0.5 / math.sqrt(len(seams))
    assert abs((zero * (likely > 0.5)).sum() / (likely > 0.5).sum() - likely[likely > 0.5].mean()) < 0.05
    assert corpus.notes["entropy_nats"] == pytest.approx(zero_one.entropy_rate(config))
    assert corpus.notes["floor_nats"] == pytest.approx(zero_one.entropy_rate(config), abs=0.02)


def test_the_floor_of_a_chain_is_the_loss_of_its_true_probabilities() -> None:
    config = ZeroOneData(p_zero_after=CHAIN)
    symbols = np.random.default_rng(0).integers(0, 2, 300).astype(np.uint8)
    by_hand = 0.0
    for at in range(101, 300):
        p = CHAIN[4 * symbols[at - 3] + 2 * symbols[at - 2] + symbols[at - 1]]
        by_hand -= math.log(p if symbols[at] == 0 else 1 - p)
    assert zero_one.floor(config, symbols, 101) == pytest.approx(by_hand / 199, rel=1e-12)


def test_what_was_made_before_is_made_still() -> None:
    """Runs of older versions go on with the same symbols and lists, bit for bit."""

    def digest(*arrays: np.ndarray) -> str:
        return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()[:16]

    assert hashlib.sha256(zero_one.text(ZeroOneData(sequences=300), 1337)).hexdigest()[:16] == "874bb47512bd77d0"
    lists = task_batches(SortData(val_examples=100), seed=1337, plan=BatchPlan(batch_size=8, block_size=11))
    held = next(lists.validation())
    assert digest(held.tokens_BT, held.targets_BT) == "a5c21c83cdea50d0"
    each = [digest(b.tokens_BT, b.targets_BT) for b in map(lists.batch_at, (0, 5, 1000))]
    assert hashlib.sha256("".join(each).encode()).hexdigest()[:16] == "414b03916acd4166"
    assert lists.fingerprint == "sort-10-6-1337-8"
