"""Byte-level BPE: the ids are the right ones whichever encoder makes them, from whatever file they come."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import MADE, SAMPLES, border_seeing, rules, trained, vocabulary

from bonsaigpt.config import FileTokenizerConfig, Gpt2TokenizerConfig
from bonsaigpt.data.tokenizers import (
    BpeTokenizer,
    ByteTokenizer,
    CharTokenizer,
    from_json,
    given_tokenizer,
    open_tokenizer,
)
from bonsaigpt.data.tokenizers.presplit import LONGEST, PATTERNS, in_pieces, pattern_of, pre_tokenizer
from bonsaigpt.data.tokenizers.ranks import ranks_of
from bonsaigpt.data.tokenizers.vocabulary import read_vocabulary
from bonsaigpt.errors import CheckpointError, DataError, TokenizerError

GOLDENS = Path(__file__).parent / "goldens"
MEGABYTE = 1_000_000


# ------------------------------------------------------------------------------------------------ GPT-2's ids


@pytest.mark.parametrize("language", [*MADE, "English"])
def test_gpt2_ids_equal_tiktokens_on_a_megabyte(
    language: str, gpt2: BpeTokenizer, theirs: tiktoken.Encoding, shared_data: Path
) -> None:
    if language == "English":
        text = (shared_data / "wikitext2" / "valid.txt").read_text(encoding="utf-8")
    else:
        text = MADE[language](MEGABYTE)
    assert len(text.encode()) >= MEGABYTE
    ids = gpt2.encode(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == theirs.encode_ordinary(text)
    assert gpt2.decode(ids) == text
    assert gpt2.token_bytes()[ids].sum() == len(text.encode())


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=60))
def test_gpt2_ids_equal_tiktokens_on_any_unicode(gpt2: BpeTokenizer, theirs: tiktoken.Encoding, text: str) -> None:
    assert gpt2.encode(text).tolist() == theirs.encode_ordinary(text)
    assert gpt2.decode(gpt2.encode(text)) == text


def test_other_merges_give_other_ids(gpt2: BpeTokenizer, theirs: tiktoken.Encoding) -> None:
    data = json.loads(gpt2.to_json())["tokenizer"]
    model = data["model"]
    model["merges"] = model["merges"][:10_000]
    model["vocab"] = {token: index for token, index in model["vocab"].items() if index < 10_256}
    data["added_tokens"][0]["id"] = 10_256
    assert ranks_of(read_vocabulary(data, origin="")) is not None
    text = MADE["Python"](20_000)
    assert BpeTokenizer(data).encode(text).tolist() != theirs.encode_ordinary(text)


def test_gpt2_is_gpt2(gpt2: BpeTokenizer, tmp_path: Path) -> None:
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    (tmp_path / "tokenizer.json").write_text(trained(vocab_size=300).to_json(), encoding="utf-8")
    with pytest.raises(DataError, match=r"not GPT-2's vocabulary but another of 300 tokens.*kind file"):
        given_tokenizer(Gpt2TokenizerConfig(path=tmp_path))
    assert given_tokenizer(FileTokenizerConfig(path=tmp_path)) is not None


# ------------------------------------------------------------------------------- trained here, either encoder


@pytest.mark.parametrize("split", list(PATTERNS))
def test_a_trained_vocabulary_has_the_ids_of_its_library(split: str) -> None:
    tokenizer = trained(split, special=["<|user|>"])
    assert ranks_of(read_vocabulary(json.loads(tokenizer.to_json())["tokenizer"], origin="")) is not None
    reference = rules(tokenizer)
    for text in [*SAMPLES, *(make(30_000) for make in MADE.values()), "a<|user|>b<|endoftext|>"]:
        ids = tokenizer.encode(text)
        assert ids.tolist() == reference(text)
        assert tokenizer.decode(ids) == text
        assert not {0, 1} & set(ids.tolist())


def test_the_two_splits_differ_where_they_should() -> None:
    gpt2, gpt4 = (trained(split, vocab_size=600) for split in PATTERNS)
    digits = [split.pieces()[i] for split in (gpt2, gpt4) for i in range(split.vocab_size)]
    assert max(len(p) for p in digits if p.isdigit()) <= 6
    assert not [p for p in gpt4.pieces() if p.isdigit() and len(p) > 3]
    assert pattern_of(pre_tokenizer("gpt4")) == "gpt4"
    assert pattern_of(pre_tokenizer("gpt2")) == "gpt2"


def test_special_tokens_come_first_and_must_be_such() -> None:
    tokenizer = trained(vocab_size=300, special=["<|user|>", "<|bot|>"])
    assert tokenizer.special_tokens == {"<|endoftext|>": 0, "<|user|>": 1, "<|bot|>": 2}
    assert tokenizer.token_bytes()[:3].tolist() == [0, 0, 0]
    for special, words in (
        (["the"], "'the' could also be learned"),
        (["<|a|>"] * 2, "differ"),
        (["<|endoftext|>"], "differ"),
    ):
        with pytest.raises(DataError, match=words):
            BpeTokenizer.train(["text"], 300, special=special)
    with pytest.raises(DataError, match=r"a vocabulary of 258 is too small.*need 259"):
        BpeTokenizer.train(["text"], 258, special=["<|a|>", "<|b|>"])


def test_training_stops_reading_after_enough_bytes() -> None:
    read: list[int] = []

    def stream():
        for number in range(1000):
            read.append(number)
            yield "zlatý " * 1000  # 7,000 bytes

    enough = BpeTokenizer.train(stream(), 300, train_bytes=60_000)
    assert len(read) == 9
    assert enough.to_json() == BpeTokenizer.train(["zlatý " * 1000] * 9, 300).to_json()


def test_truncation_and_padding_of_a_file_are_switched_off() -> None:
    data = vocabulary([("a", "b")], extra=("xyz",)) | {
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    }
    assert BpeTokenizer(data).decode(BpeTokenizer(data).encode("a long text")) == "a long text"


# ------------------------------------------------------------------------------------------------- long texts


def test_parts_of_a_long_text_have_the_ids_of_the_whole(gpt2: BpeTokenizer, theirs: tiktoken.Encoding) -> None:
    text = (MADE["Python"](700_000) + MADE["Czech"](700_000) + MADE["Unicode"](700_000)).replace("\0", "")
    assert len(text) > LONGEST
    assert gpt2.encode(text).tolist() == theirs.encode_ordinary(text)


@pytest.mark.parametrize("split", list(PATTERNS))
@pytest.mark.parametrize("between", ["\n", " "])
def test_cuts_change_no_ids(split: str, between: str) -> None:
    """Cut as often as can be: no token crosses a lone line break between two characters, or a lone space."""
    tokenizer = BpeTokenizer(border_seeing(split))
    rng = random.Random(3)
    for _ in range(1000):
        words = [_word(rng) for _ in range(8)]
        text = between.join(words)
        parts = list(in_pieces(text, 12))
        assert "".join(parts) == text
        assert all(len(part) <= 12 for part in parts)
        joined = [i for part in parts for i in tokenizer.encode(part).tolist()]
        assert joined == tokenizer.encode(text).tolist(), ascii(text)


def _word(rng: random.Random) -> str:
    """No more than six characters, white space perhaps inside, but not at its ends."""
    ends = "a1,'s"
    inner = "".join(rng.choices(ends + " \n\r", k=rng.randrange(5)))
    return rng.choice(ends) + inner + rng.choice(ends)


def test_a_cut_elsewhere_would_change_ids(gpt2: BpeTokenizer) -> None:
    for text, place in (("a b", 2), ("words", 2), ("\n\n\ny", 1)):
        halves = [*gpt2.encode(text[:place]), *gpt2.encode(text[place:])]
        assert [int(i) for i in halves] != gpt2.encode(text).tolist()


@pytest.mark.parametrize("letter", ["a", "\n", "世"])
def test_one_enormous_line_is_cut_hard_and_comes_back(letter: str) -> None:
    text = letter * (LONGEST + 5)
    assert [len(part) for part in in_pieces(text)] == [LONGEST, 5]
    tokenizer = trained(vocab_size=300)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.tolist() == tokenizer.encode(text).tolist()


def test_pieces_of_short_and_empty_texts() -> None:
    assert list(in_pieces("")) == [""]
    assert list(in_pieces("abc", 3)) == ["abc"]
    assert list(in_pieces("ab\ncd\nef", 6)) == ["ab\ncd\n", "ef"]
    assert list(in_pieces("ab\nc efgh", 6)) == ["ab\n", "c efgh"]
    assert list(in_pieces("ab cd ef", 6)) == ["ab cd", " ef"]
    assert list(in_pieces("abcdefgh", 3)) == ["abc", "def", "gh"]


# --------------------------------------------------------------------------------------- threads, JSON, pickle


def test_threads_change_nothing() -> None:
    tokenizer = trained(vocab_size=500)
    many = [MADE["Czech"](900)[i : i + 100 + i] for i in range(60)] + [""]
    one, three = tokenizer.encode_documents(many), tokenizer.encode_documents(many, threads=3)
    assert len(one) == len(three) == len(many)
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(one, three, strict=True))
    assert tokenizer.encode_documents([], threads=2) == []


@pytest.mark.parametrize(
    "tokenizer", [CharTokenizer("abc"), ByteTokenizer(), trained(vocab_size=300)], ids=lambda t: t.kind
)
def test_tokenizers_travel_between_processes(tokenizer: CharTokenizer | ByteTokenizer | BpeTokenizer) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert type(again) is type(tokenizer)
    assert again.to_json() == tokenizer.to_json()
    assert again.encode("abcba").tolist() == tokenizer.encode("abcba").tolist()


def test_half_a_surrogate_pair_is_named() -> None:
    for tokenizer in (trained(vocab_size=300), BpeTokenizer(vocabulary([("a", "a"), ("a", "aa")]))):
        with pytest.raises(TokenizerError, match=r"'\\ud800'\) at position 3"):
            tokenizer.encode("abc\ud800")


def test_tokenizers_of_today_still_load() -> None:
    """Written before tokenizers became a package; the ids are what that version gave."""
    text = (GOLDENS / "tokenizer-bpe.json").read_text(encoding="utf-8")
    tokenizer = from_json(text)
    assert tokenizer.to_json() == text
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.end_of_text) == ("bpe", 300, 0)
    assert tokenizer.encode("plain café 世界 <|endoftext|>").tolist() == GOLDEN_IDS
    assert from_json('{"kind": "bytes"}').encode("é").tolist() == [0xC3, 0xA9]
    assert from_json('{"kind": "chars", "characters": "abc"}').encode("cab").tolist() == [2, 0, 1]


GOLDEN_IDS = [269, 221, 277, 293, 221, 295, 296, 235, 221, 28, 92, 279, 68, 79, 70, 257, 264, 92, 30]


# ----------------------------------------------------------------------------------------------------- files


def test_whatever_names_a_tokenizer_opens_it(tmp_path: Path, gpt2: BpeTokenizer, shared_data: Path) -> None:
    ours = trained(vocab_size=300)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tokenizer.json").write_text(ours.to_json(), encoding="utf-8")
    (tmp_path / "theirs.json").write_text(json.dumps(json.loads(ours.to_json())["tokenizer"]), encoding="utf-8")
    for address in (
        tmp_path / "run",
        tmp_path / "run" / "tokenizer.json",
        tmp_path / "theirs.json",
        str(tmp_path / "run"),
    ):
        assert open_tokenizer(address).to_json() == ours.to_json()
    assert open_tokenizer("bytes").kind == "bytes"
    source = shared_data / "gpt2-bpe"
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.json").write_bytes((source / "encoder.json").read_bytes())
    (tmp_path / "gpt2" / "merges.txt").write_bytes((source / "vocab.bpe").read_bytes())
    assert open_tokenizer(tmp_path / "gpt2").to_json() == gpt2.to_json()


def test_a_folder_without_a_vocabulary_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"encoder\.json and vocab\.bpe"):
        open_tokenizer(tmp_path)
    with pytest.raises(DataError, match="no tokenizer at"):
        open_tokenizer(tmp_path / "nowhere")
    (tmp_path / "encoder.json").write_text("{}")
    (tmp_path / "vocab.bpe").write_text("#version\na b\n")
    with pytest.raises(DataError, match="no usable byte-pair vocabulary"):
        open_tokenizer(tmp_path)
    (tmp_path / "x.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(DataError, match=r"x\.json is no tokenizer: it is not UTF-8 \(byte 7\)"):
        open_tokenizer(tmp_path / "x.json")


def spoilt(**changes: Any) -> dict[str, Any]:
    data = vocabulary([("a", "b")])
    return data | {"model": data["model"] | changes}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"}}, "its model is WordPiece"),
        ({"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}}, "its model is Unigram"),
        (
            {
                "model": {"type": "Unigram", "vocab": [["\u2581a", 0.0]], "unk_id": 0},
                "pre_tokenizer": {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first"},
            },
            "SentencePiece's",
        ),
        (
            {
                "model": {"type": "BPE", "vocab": {"\u2581a": 0}, "merges": [], "byte_fallback": True},
                "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            },
            "SentencePiece's",
        ),
        (spoilt(vocab={"▁the": 0}, merges=[]), r"its token '▁the' \(id 0\) has the character '▁'"),
        (spoilt(vocab={"a": 0, "b": 2}), "gaps or doubles"),
        (spoilt(vocab={"a": 0, "b": 1, "ab": 2}), "254 of the 256 bytes are no token, e.g. 0x21"),
        (spoilt(merges=[["a", "c"]]), "merge of 'a' and 'c' is of or to a token"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_why(data: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=f"x.json cannot be used: .*{words}.*byte-level"):
        BpeTokenizer(data, origin="x.json")
