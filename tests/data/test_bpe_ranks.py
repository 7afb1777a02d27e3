"""When merging by rank is not merging by rules: it is seen, and the ids are right all the same."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import tiktoken
from vocabularies import SAMPLES, border_seeing, rules, vocabulary

from bonsaigpt.data.tokenizers import BpeTokenizer
from bonsaigpt.data.tokenizers.presplit import PATTERNS, pre_tokenizer
from bonsaigpt.data.tokenizers.ranks import ranks_of
from bonsaigpt.data.tokenizers.vocabulary import read_vocabulary


def by_rank(data: dict[str, Any], text: str) -> list[int]:
    """What tiktoken would make of it if nobody looked."""
    read = read_vocabulary(data, origin="")
    ranks = {bytes([b]): b for b in range(256)}
    for number, (left, right) in enumerate(read.merges):
        ranks.setdefault(left + right, 256 + number)
    for piece in read.pieces:
        ranks.setdefault(piece, 10_000 + len(ranks))
    encoding = tiktoken.Encoding("", pat_str=PATTERNS["gpt2"][1], mergeable_ranks=ranks, special_tokens={})
    index = {piece: number for number, piece in enumerate(read.pieces)}
    return [index[encoding.decode_single_token_bytes(i)] for i in encoding.encode_ordinary(text)]


DIFFERENT = {
    # "bc" comes first everywhere, so (ab, c) can never happen: rules leave a, bc; ranks take the piece at once.
    "a rule that cannot happen": (vocabulary([("b", "c"), ("a", "b"), ("ab", "c")]), "abc"),
    "a token that no rule makes": (vocabulary([("a", "b")], extra=("xyz",)), "xyz"),
    "two rules for one token": (vocabulary([("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]), None),
    "a rule before its parts": (vocabulary([("ab", "c"), ("a", "b")]), None),
    "a token that only whole words are": (vocabulary([("a", "b")], extra=("xy",), ignore_merges=True), "xyab"),
    "leftmost first": (vocabulary([("a", "a"), ("a", "aa")]), "aaa"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_vocabularies_that_ranks_cannot_encode_are_seen(name: str) -> None:
    data, text = DIFFERENT[name]
    assert ranks_of(read_vocabulary(data, origin="")) is None
    tokenizer, reference = BpeTokenizer(data), rules(data)
    if text is not None:
        assert by_rank(data, text) != reference(text)  # so the check is needed
    for sample in ["abc", "aabbcc", "xyz", "xyzab", "aaaa", "abab cabc", *SAMPLES]:
        assert tokenizer.encode(sample).tolist() == reference(sample)
        assert tokenizer.decode(tokenizer.encode(sample)) == sample


def test_any_rules_are_encoded_as_their_library_does() -> None:
    """Random vocabularies of all sorts: whichever encoder is chosen, the ids are right; both are chosen often."""
    chosen = {True: 0, False: 0}
    for seed in range(150):
        rng = random.Random(seed)
        tokens, merges = list("abc"), []
        for _ in range(rng.randrange(1, 12)):
            pair = (rng.choice(tokens), rng.choice(tokens))
            if (
                len(pair[0] + pair[1]) < 8
                and pair not in merges
                and (rng.random() < 0.1 or "".join(pair) not in tokens)
            ):
                merges.append(pair)
                tokens.append("".join(pair))
        if rng.random() < 0.1:
            rng.shuffle(merges)
        data = vocabulary(merges)
        if rng.random() < 0.5:  # ids in another order than the merges
            names = list(data["model"]["vocab"])
            rng.shuffle(names)
            data["model"]["vocab"] = {name: number for number, name in enumerate(names)}
        tokenizer, reference = BpeTokenizer(data), rules(data)
        chosen[ranks_of(read_vocabulary(data, origin="")) is not None] += 1
        for _ in range(40):
            text = "".join(rng.choices("abc ", weights=[5, 4, 3, 1], k=rng.randrange(1, 25)))
            assert tokenizer.encode(text).tolist() == reference(text), (seed, merges, text)
    assert min(chosen.values()) >= 20, chosen


def test_what_ranks_can_encode_is_seen_too(gpt2: BpeTokenizer) -> None:
    for data in (json.loads(gpt2.to_json())["tokenizer"], vocabulary([("a", "a"), ("aa", "aa"), ("aaaa", "aa")])):
        assert ranks_of(read_vocabulary(data, origin="")) is not None


@pytest.mark.parametrize("split", list(PATTERNS))
def test_both_spellings_of_a_pattern_split_alike(split: str) -> None:
    data = border_seeing(split)
    assert ranks_of(read_vocabulary(data, origin="")) is not None  # or both would be the library's
    tokenizer, reference = BpeTokenizer(data), rules(data)
    rng = random.Random(5)
    for _ in range(3000):
        text = "".join(rng.choices("a1,'s \n\r", k=rng.randrange(1, 12)))
        assert tokenizer.encode(text).tolist() == reference(text), ascii(text)


@pytest.mark.parametrize(
    ("change", "sample"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "ABC abc"),
        ({"pre_tokenizer": pre_tokenizer("gpt2") | {"add_prefix_space": True}}, "ab"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, pre_tokenizer("gpt2")]}}, "ab 123"),
        ({"added_tokens": [{"id": 258, "content": "<think>", "single_word": False, "lstrip": False, "rstrip": False,
                            "normalized": False, "special": False}]}, "a<think>b"),
    ],
    ids=["normaliser", "prefix space", "other split", "added token that is text"],
)  # fmt: skip
def test_what_ranks_do_not_know_goes_to_the_library(change: dict[str, Any], sample: str) -> None:
    plain = vocabulary([("a", "b"), ("Ġ", "a")])
    data = plain | change
    assert BpeTokenizer(data).encode(sample).tolist() == rules(data)(sample)
    assert BpeTokenizer(data).encode(sample).tolist() != BpeTokenizer(plain).encode(sample).tolist() or "123" in sample
