"""Examples: what of them counts, which rows they share, and on which side of the split they are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bonsaigpt.config import ExamplesData, validate
from bonsaigpt.data.batches import IGNORE, Batch
from bonsaigpt.data.examples import example_batches, split_examples
from bonsaigpt.data.examples.batches import ExampleBatches
from bonsaigpt.data.examples.encoding import encode_examples
from bonsaigpt.data.examples.reading import example_of, read_examples
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.tokenizers import BpeTokenizer, ByteTokenizer, CharTokenizer, Tokenizer, from_json, with_special
from bonsaigpt.errors import ConfigError, DataError, TokenizerError

END = 256


def written(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def pairs(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"ask {n}:", "completion": " " + "yes" * (1 + n % 3)} for n in range(count)]


def batches_of(path: Path, *, block: int = 32, batch: int = 4, seed: int = 1, **settings: Any) -> ExampleBatches:
    plan = BatchPlan(batch_size=batch, block_size=block)
    return example_batches(ExamplesData(path=path, **settings), seed=seed, plan=plan)


def said(batch: Batch, row: int = 0) -> bytes:
    """What the targets of a row spell; a dot where nothing is asked."""
    ids = batch.targets_BT[row]
    return bytes(ord(".") if i == IGNORE else ord("$") if i == END else i for i in ids.tolist())


def test_only_what_is_to_be_said_counts(tmp_path: Path) -> None:
    path = written(tmp_path / "one.jsonl", [{"prompt": "2+2=", "completion": "4!"}] * 2)
    source = batches_of(path, val=path, pack=False)
    assert said(source.batch_at(0)) == b"....4!$"
    assert bytes(source.batch_at(0).tokens_BT[0, 1:].tolist()) == b"2+2=4!"
    assert source.batch_at(0).count == 4 * 3
    whole = batches_of(path, val=path, pack=False, prompts=True)
    assert said(whole.batch_at(0)) == b"2+2=4!$"
    [batch] = whole.validation()  # a task is scored by its answers, whatever was trained on
    assert said(batch) == b"....4!$"
    assert whole.validation_count() == 2 * 3
    assert whole.validation_bytes() == 2 * 2


def test_a_dialogue_counts_the_answers_and_where_they_end(tmp_path: Path) -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes"), ("user", "So?"), ("assistant", "No")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path = written(tmp_path / "chat.jsonl", [{"messages": messages}])
    source = batches_of(path, val=path, pack=False, block=128)
    text = b"Be brief.\nUser: Hi\nAssistant: Yes\nUser: So?\nAssistant: No\n$"
    start = text.index(b"Yes")
    expected = b"." * start + b"Yes\nUser: " + b"." * len(b"So?\nAssistant: ") + b"No\n$"
    assert said(source.batch_at(0)) == expected


def test_a_template_says_what_is_given(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"text": "hot", "label": 1}, {"text": "cold", "label": "x"}])
    examples, _ = read_examples(path, "[{text}] => {label};")
    assert [(e.prompt, e.completion) for e in examples] == [("[hot] => ", "1;"), ("[cold] => ", "x;")]
    assert read_examples(path, "{text}")[0][0].is_text


@pytest.mark.parametrize("block", [32, 48])
def test_rows_hold_whole_examples_once_an_epoch(tmp_path: Path, block: int) -> None:
    source = batches_of(written(tmp_path / "many.jsonl", pairs(60)), block=block, val_fraction=0.2)
    assert sorted(number for row in source.rows for number in row) == list(range(len(source.train)))
    assert len(source.rows) < len(source.train) / 1.2  # several share a row
    assert all(source.train.lengths[row].sum() <= block for row in source.rows)
    steps = len(source.rows)  # four epochs, in four rows a step
    found = [source.batch_at(step) for step in range(steps)]
    rows = Counter(row.tobytes() for batch in found for row in batch.tokens_BT)
    assert set(rows.values()) <= {4, 8, 12}
    assert sum(rows.values()) == 4 * len(source.rows)
    assert sum(batch.count for batch in found) == 4 * int(source.train.asked.sum())
    first, again = (
        b"".join(b.tokens_BT.tobytes() for b in found[: steps // 4]) for found in (found, found[steps // 4 :])
    )
    assert first != again  # each epoch has an order of its own
    assert np.array_equal(found[3].tokens_BT, source.batch_at(3).tokens_BT)


def test_a_packed_example_has_the_targets_it_has_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "many.jsonl", pairs(40))
    source = batches_of(path, block=48)
    for step in range(3):
        batch = source.batch_at(step)
        assert batch.documents_BT is not None
        for tokens, targets, documents in zip(batch.tokens_BT, batch.targets_BT, batch.documents_BT, strict=True):
            for document in range(documents[-1]):
                here = documents == document
                prompt = bytes(tokens[here][1:].tolist()).partition(b":")[0] + b":"
                asked = targets[here]
                assert tokens[here][0] == END
                assert np.all(asked[: len(prompt)] == IGNORE)
                assert np.array_equal(asked[len(prompt) : -1], tokens[here][len(prompt) + 1 :])
                assert asked[-1] == END


def test_no_prompt_is_on_both_sides(tmp_path: Path) -> None:
    examples, _ = read_examples(written(tmp_path / "many.jsonl", pairs(200) + pairs(200)))
    train, val = split_examples(examples, 0.25)
    assert len(train) + len(val) == 400
    assert 60 < len(val) < 140
    assert not {e.prompt for e in train} & {e.prompt for e in val}
    alone = split_examples(examples[:1], 0.25)
    assert (examples[0] in val) == bool(alone[1])


def test_balance_shows_every_completion_equally_often(tmp_path: Path) -> None:
    records = [{"prompt": f"{n}", "completion": "ab"[n % 7 == 0]} for n in range(70)]
    path = written(tmp_path / "skewed.jsonl", records)
    shown = Counter(records[number]["completion"] for number in batches_of(path, val=path, balance=True).shown.tolist())
    assert shown == {"a": 60, "b": 60}
    assert len(batches_of(path, val=path).shown) == 70


def test_balance_shows_every_piece_of_a_long_text(tmp_path: Path) -> None:
    texts = ["a" * 10, "b" * 70, "c" * 40, "c" * 40]
    path = written(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    batches = batches_of(path, val=path, balance=True, block=16)
    letters = Counter("".join(bytes(batches.train.example(n)[0][1:2].tolist()).decode() for n in batches.shown))
    assert letters == {"a": 2 * 1, "b": 2 * 5, "c": 2 * 3}


def test_what_is_too_long_loses_its_beginning(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    long = example_of({"prompt": "x" * 50, "completion": "yes"}, "{prompt}{completion}", "here")
    encoded = encode_examples([long], tokenizer, block_size=16)
    ids, asked = encoded.example(0)
    assert encoded.cut == 1
    assert bytes(ids[:-1].tolist()) == b"x" * 13 + b"yes"
    assert asked.sum() == 4
    with pytest.raises(DataError, match="example 1 is to end with 50 tokens"):
        encode_examples([example_of({"a": "", "b": "y" * 50}, "?{a}{b}", "here")], tokenizer, block_size=16)
    text = example_of({"text": "".join(map(chr, range(40, 90)))}, "{text}", "here")
    pieces = encode_examples([text], tokenizer, block_size=16)
    asked_for = np.concatenate([pieces.example(n)[0][pieces.example(n)[1]] for n in range(len(pieces))])
    assert asked_for.tolist() == [*range(40, 90), END]  # each token once
    assert pieces.lengths.tolist() == [16, 16, 16, 3]


@pytest.mark.parametrize(
    "tokenizer",
    [CharTokenizer("abc"), ByteTokenizer(), BpeTokenizer.train(["abc abc"], 300)],
    ids=lambda t: t.kind,
)
def test_special_tokens_are_added_behind_the_others(tokenizer: Tokenizer) -> None:
    more = with_special(tokenizer, ["<|yes|>", "<|no|>", "<|yes|>"])
    size = tokenizer.vocab_size
    assert (more.special_tokens["<|yes|>"], more.special_tokens["<|no|>"]) == (size, size + 1)
    assert more.vocab_size == size + 2
    assert tokenizer.special_tokens.items() <= more.special_tokens.items()
    assert more.encode("abcab").tolist() == tokenizer.encode("abcab").tolist()
    assert more.decode([*more.encode("ab"), size]) == "ab"
    assert len(more.token_bytes()) == size + 2
    assert from_json(more.to_json()).to_json() == more.to_json()
    assert with_special(more, ["<|no|>"]) is more
    if tokenizer.kind != "chars":  # text that merely looks like one is text
        assert more.encode("<|yes|>").max() < size


def test_a_label_is_one_target(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"prompt": "hot", "completion": "warm"}])
    tokenizer = with_special(ByteTokenizer(), ["<|warm|>"])
    plan = BatchPlan(batch_size=1, block_size=16)
    source = example_batches(ExamplesData(path=path, val=path, pack=False), seed=1, plan=plan, tokenizer=tokenizer)
    batch = source.batch_at(0)
    assert batch.tokens_BT.tolist() == [[END, *b"hot"]]
    assert batch.targets_BT.tolist() == [[IGNORE, IGNORE, IGNORE, 257]]


@pytest.mark.parametrize(
    ("lines", "template", "message"),
    [
        ("nonsense", "", "line 1 is no JSON"),
        ("[1]", "", "line 1 is a JSON list"),
        ('{"a": 1}', "", "neither prompt and completion"),
        ('{"a": 1}', "{b}", "no field 'b'"),
        ('{"a": [1]}', "{a}", "the field 'a' is a list"),
        ('{"prompt": "x", "completion": ""}', "", "nothing for the model to say"),
        ('{"messages": []}', "", "must be a list of objects"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "", "must be the assistant's"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "", "role 'robot'"),
        ('{"messages": [{"role": "user"}]}', "", "needs a role and a content"),
        ("\n\n", "", "has no examples"),
    ],
)
def test_bad_lines_are_refused_by_number(tmp_path: Path, lines: str, template: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(lines + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_examples(path, template)


def test_other_refusals(tmp_path: Path) -> None:
    path = written(tmp_path / "few.jsonl", pairs(1))
    with pytest.raises(ConfigError, match="has no field in braces"):
        read_examples(path, "nothing")
    with pytest.raises(DataError, match="leaves nothing to"):
        batches_of(path)
    with pytest.raises(DataError, match="a token that ends them"):
        encode_examples(read_examples(path)[0], CharTokenizer("ask 0:yes"), block_size=64)
    with pytest.raises(TokenizerError, match=r"example 1: the character 'k'"):
        encode_examples(read_examples(path)[0], with_special(CharTokenizer("as"), ["<|endoftext|>"]), block_size=64)
    data = {"kind": "examples", "path": str(path)}
    with pytest.raises(ConfigError, match="context_ramp cannot cut"):
        validate({"data": data, "train": {"context_ramp": {"kind": "linear"}}}, origin="here")
    with pytest.raises(ConfigError, match=r"train.best = 'exact' needs answers"):
        validate({"train": {"best": "exact"}}, origin="here")


def test_a_changed_file_changes_the_fingerprint(tmp_path: Path) -> None:
    one, other = (batches_of(written(tmp_path / f"{n}.jsonl", pairs(n))).fingerprint for n in (40, 41))
    assert one != other == batches_of(tmp_path / "41.jsonl").fingerprint
