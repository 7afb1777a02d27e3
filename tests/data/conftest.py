"""GPT-2's byte pairs, by this package and by tiktoken."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from bonsaigpt.config import Gpt2TokenizerConfig
from bonsaigpt.data.tokenizers import BpeTokenizer, given_tokenizer


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> BpeTokenizer:
    """GPT-2's own."""
    found = given_tokenizer(Gpt2TokenizerConfig(path=shared_data / "gpt2-bpe"))
    assert isinstance(found, BpeTokenizer)
    return found


@pytest.fixture(scope="module")
def theirs(shared_data: Path) -> tiktoken.Encoding:
    """tiktoken's own `gpt2`, from the same files: what it does at first use, without the download."""
    folder = shared_data / "gpt2-bpe"
    return tiktoken.Encoding(
        "gpt2",
        explicit_n_vocab=50257,
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        mergeable_ranks=data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json")),
        special_tokens={"<|endoftext|>": 50256},
    )
