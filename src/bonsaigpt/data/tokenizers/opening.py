"""From whatever names a tokenizer to the tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bonsaigpt.config import ByteTokenizerConfig, FileTokenizerConfig, Gpt2TokenizerConfig, TokenizerConfig
from bonsaigpt.data.tokenizers.base import END_OF_TEXT, Tokenizer
from bonsaigpt.data.tokenizers.bpe import BpeTokenizer
from bonsaigpt.data.tokenizers.byte import ByteTokenizer
from bonsaigpt.data.tokenizers.chars import CharTokenizer, of_single_characters
from bonsaigpt.data.tokenizers.presplit import pre_tokenizer
from bonsaigpt.errors import CheckpointError, DataError

__all__ = ["from_json", "given_tokenizer", "label_token", "open_tokenizer", "with_special"]

_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
"""The two names under which GPT-2's two files go about: OpenAI's and Hugging Face's."""
_GPT2 = "17acb4c5fec3d9985fcfd5304a801856bca70260c9b8a98596d79704d2a4158f"
"""SHA-256 of GPT-2's 50,257 tokens in the order of their ids, with zero bytes between."""


def from_json(text: str, *, origin: str = "the tokenizer") -> Tokenizer:
    """The tokenizer that ``to_json`` wrote, or a Hugging Face ``tokenizer.json``, byte-level or of single characters.

    Raises:
        CheckpointError: ``origin`` (named in the message) is damaged, of an unknown kind, or neither of these.
    """
    try:
        data: Any = json.loads(text)
        kind = data.get("kind", "bpe" if "model" in data else None)
        if kind == "chars":
            return CharTokenizer(data["characters"], data.get("special", ()))
        if kind == "bytes":
            return ByteTokenizer(data.get("special", ()))
        if "kind" not in data and kind == "bpe" and data["model"].get("type") == "WordLevel":
            return of_single_characters(data, origin=origin)
        if kind == "bpe":
            return BpeTokenizer(data["tokenizer"] if "kind" in data else _in_todays_form(text, origin), origin=origin)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{origin} is no tokenizer of ours or it is damaged ({error}): restore it") from None
    raise CheckpointError(f"{origin} has a tokenizer of unknown kind {kind!r}: it is from another version or program")


def open_tokenizer(address: str | Path) -> Tokenizer:
    """The tokenizer of a run's or corpus' folder, a ``tokenizer.json`` (ours or Hugging Face's), a folder with one, or
    with GPT-2's two files; ``bytes`` needs no file.

    Raises:
        DataError: nothing there, or not readable.
        CheckpointError: damaged, or of a kind that cannot be used; the message says why.
    """
    if str(address) == "bytes":
        return ByteTokenizer()
    path = Path(address)
    if path.is_dir() and (path / "tokenizer.json").is_file():
        path = path / "tokenizer.json"
    if path.is_file():
        return from_json(_read(path), origin=str(path))
    if not path.exists():
        raise DataError(
            f"there is no tokenizer at {path}: give a run, a corpus, a tokenizer.json, or a folder of GPT-2's"
        )
    for vocabulary, merges in _FILES:
        if (path / vocabulary).is_file() and (path / merges).is_file():
            return _from_two_files(path / vocabulary, path / merges)
    raise DataError(
        f"{path} has neither tokenizer.json nor encoder.json and vocab.bpe (nor vocab.json and merges.txt): "
        "give the folder that has them, e.g. as --data.tokenizer.path"
    )


def given_tokenizer(config: TokenizerConfig) -> Tokenizer | None:
    """The tokenizer of a configuration; None if it has to be learned from the text.

    Raises:
        DataError: it is not there, or not GPT-2's where that is asked for.
        CheckpointError: damaged, or of a kind that cannot be used.
    """
    match config:
        case ByteTokenizerConfig():
            return ByteTokenizer()
        case FileTokenizerConfig(path=path):
            return open_tokenizer(path)
        case Gpt2TokenizerConfig(path=path):
            tokenizer = open_tokenizer(path)
            if hashlib.sha256(b"\0".join(tokenizer.pieces())).hexdigest() != _GPT2:
                raise DataError(
                    f"{path} is not GPT-2's vocabulary but another of {tokenizer.vocab_size:,} tokens: "
                    "use it with --data.tokenizer.kind file"
                )
            return tokenizer
        case _:
            return None


def label_token(text: str) -> str:
    """The name of the special token that stands for a whole answer, where a vocabulary has one: ``<|refund|>``."""
    return f"<|{text}|>"


def with_special(tokenizer: Tokenizer, texts: Sequence[str]) -> Tokenizer:
    """The tokenizer with further tokens that no text is encoded to; ids that were there stay. What it has is not added
    again.

    Raises:
        DataError: one of them is an ordinary token already, which texts are encoded to.
    """
    new = [text for text in dict.fromkeys(texts) if text not in tokenizer.special_tokens]
    if not new:
        return tokenizer
    data = json.loads(tokenizer.to_json())
    if data["kind"] == "bpe":
        model = data["tokenizer"]
        if taken := [text for text in new if text in model["model"]["vocab"]]:
            raise DataError(f"{taken[0]!r} is an ordinary token of this vocabulary: choose another name for it")
        tokens = [_special(text, tokenizer.vocab_size + number) for number, text in enumerate(new)]
        model["added_tokens"] = [*(model.get("added_tokens") or []), *tokens]
    else:
        data["special"] = [*data.get("special", ()), *new]
    return from_json(json.dumps(data))


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no tokenizer: it is not UTF-8 (byte {error.start}).") from None


def _from_two_files(vocabulary: Path, merges: Path) -> BpeTokenizer:
    try:
        lines = _read(merges).splitlines()[1:]  # the first line names the version
        vocab = json.loads(_read(vocabulary))
        data = {
            "version": "1.0",
            "added_tokens": [_special(END_OF_TEXT, vocab.get(END_OF_TEXT, len(vocab)))],
            "pre_tokenizer": pre_tokenizer("gpt2"),
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "vocab": vocab, "merges": [line for line in lines if line]},
        }
        return BpeTokenizer(_in_todays_form(json.dumps(data), str(vocabulary.parent)), origin=str(vocabulary.parent))
    except (ValueError, KeyError, TypeError, AttributeError, CheckpointError) as error:
        raise DataError(f"{vocabulary.parent} holds no usable byte-pair vocabulary: {error}") from None


def _special(text: str, index: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": index, "content": text, **flags, "special": True}


def _in_todays_form(text: str, origin: str) -> dict[str, Any]:
    """A foreign file as today's library would write it: one spelling of one tokenizer, so that copies compare equal."""
    from tokenizers import Tokenizer as HFTokenizer

    try:
        tokenizer = HFTokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{origin} is not a tokenizer.json that `tokenizers` can read: {error}") from None
    return json.loads(tokenizer.to_str())
