"""Tokenizers behind one interface: characters, bytes, and byte-level BPE (trained here, or GPT-2's).

A tokenizer is saved as one ``tokenizer.json`` that holds all it needs; it travels inside the corpus and the run, so
decoding never needs a network, a cache folder or another file.
"""

from __future__ import annotations

import difflib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as HFTokenizer

from bonsaigpt.errors import CheckpointError, DataError, TokenizerError

__all__ = [
    "END_OF_TEXT",
    "BpeTokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "Tokenizer",
    "from_json",
    "smallest_dtype",
]

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """Text to ids and back. Ids are 0 .. vocab_size - 1."""

    @property
    def kind(self) -> str:
        """The name of the tokenizer's kind, as in the configuration."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of distinct ids."""
        ...

    @property
    def end_of_text(self) -> int | None:
        """The id that separates documents, where the vocabulary has one."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``, in the smallest unsigned dtype that holds the vocabulary.

        Raises:
            TokenizerError: a character outside the vocabulary.
        """
        ...

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """``encode`` of each text, in parallel where the library can."""
        ...

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The UTF-8 bytes that the ids stand for; a prefix of a text may end inside a character."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD."""
        ...

    def token_bytes(self) -> np.ndarray:
        """Bytes of text that each id stands for, (V,) int64. Special tokens stand for none."""
        ...

    def to_json(self) -> str:
        """Everything that ``from_json`` needs."""
        ...


def smallest_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned integer type that holds every id."""
    return np.dtype(np.min_scalar_type(vocab_size - 1))


class _Base:
    """What the three share."""

    vocab_size: int
    _pieces: list[bytes]

    def encode(self, text: str) -> np.ndarray:
        raise NotImplementedError

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        array = np.asarray(ids, dtype=np.int64)
        if array.size and (array.min() < 0 or array.max() >= self.vocab_size):
            bad = int(array[(array < 0) | (array >= self.vocab_size)][0])
            raise TokenizerError(
                f"token id {bad} is outside this tokenizer's vocabulary of {self.vocab_size}: "
                "the ids come from another tokenizer"
            )
        return b"".join([self._pieces[i] for i in array.tolist()])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        return np.array([len(piece) for piece in self._pieces], dtype=np.int64)


class CharTokenizer(_Base):
    """One id for each distinct character, in code-point order (nanoGPT's and minGPT's character models)."""

    kind = "chars"
    end_of_text = None

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = sorted(set(characters))
        if not self.characters:
            raise DataError("a character tokenizer needs at least one character: the text is empty")
        self.vocab_size = len(self.characters)
        self._pieces = [c.encode("utf-8") for c in self.characters]
        codes = np.array([ord(c) for c in self.characters])
        # One table look-up per character, over the code points that occur; -1 marks the unknown.
        self._table = np.full(int(codes.max()) + 2, -1, dtype=np.int32)
        self._table[codes] = np.arange(self.vocab_size)

    def encode(self, text: str) -> np.ndarray:
        if text.isascii():  # a quarter of the memory traffic of the general way
            codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
        else:
            codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
        ids = self._table[np.minimum(codes, np.uint32(self._table.size - 1))]
        if ids.size and ids.min() < 0:
            raise self._unknown(text, int(np.argmin(ids)))
        return ids.astype(smallest_dtype(self.vocab_size))

    def _unknown(self, text: str, index: int) -> TokenizerError:
        character = text[index]
        name = unicodedata.name(character, f"U+{ord(character):04X}")
        near = closest_characters(character, self.characters)
        hint = f" The closest it knows: {', '.join(repr(c) for c in near)}." if near else ""
        return TokenizerError(
            f"the character {character!r} ({name}) at position {index} is not among the {self.vocab_size} "
            f"characters this model was trained on.{hint}"
        )

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind, "characters": "".join(self.characters)})


_TYPOGRAPHY = dict.fromkeys("‘’‚‛′`´", "'") | dict.fromkeys("“”„‟″«»", "\"'") | dict.fromkeys("‐‑‒–—―−", "-")
"""What a typesetter makes of the keyboard's characters; Unicode has no decomposition for these."""


def closest_characters(character: str, known: Sequence[str], count: int = 3) -> list[str]:
    """The characters of ``known`` most like an unknown one: other case, without accents, or of a similar name."""
    plain = unicodedata.normalize("NFKD", character) + _TYPOGRAPHY.get(character, "")
    wanted = [character.swapcase(), *plain, *plain.swapcase()]
    near = [c for c in dict.fromkeys(wanted) if c in known]
    names = {unicodedata.name(c, ""): c for c in known}
    names.pop("", None)
    alike = difflib.get_close_matches(unicodedata.name(character, ""), names, n=count, cutoff=0.5)
    return list(dict.fromkeys([*near, *(names[n] for n in alike)]))[:count]


class ByteTokenizer(_Base):
    """UTF-8 bytes as ids 0 .. 255, and 256 for the end of a text. It knows every text."""

    kind = "bytes"
    vocab_size = 257
    end_of_text = 256

    def __init__(self) -> None:
        self._pieces = [bytes([i]) for i in range(256)] + [b""]

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8", errors="surrogatepass"), dtype=np.uint8).astype(np.uint16)

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind})


class BpeTokenizer(_Base):
    """Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) by Hugging Face's ``tokenizers``."""

    kind = "bpe"

    def __init__(self, tokenizer: HFTokenizer) -> None:
        self._hf = tokenizer
        # Text that merely looks like a special token is text: only the shards' writer may put the token itself.
        tokenizer.encode_special_tokens = True
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)
        self.end_of_text = tokenizer.token_to_id(END_OF_TEXT)
        special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
        alphabet = _byte_alphabet()
        self._pieces = [b""] * self.vocab_size
        for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
            if token not in special:
                self._pieces[index] = bytes(alphabet[c] for c in token)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
        """Learn merges until the vocabulary has ``vocab_size`` entries; the same texts give the same merges."""
        tokenizer = _gpt2_pipeline(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(_byte_alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_gpt2_files(cls, path: Path) -> BpeTokenizer:
        """GPT-2's own vocabulary and merges, or any byte-level ``tokenizer.json``."""
        if path.suffix == ".json" and path.is_file():
            return cls(_parse_hf(path.read_bytes(), origin=str(path)))
        if (path / "tokenizer.json").is_file():
            return cls.from_gpt2_files(path / "tokenizer.json")
        for vocabulary, merges in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
            if (path / vocabulary).is_file() and (path / merges).is_file():
                try:
                    vocab = json.loads((path / vocabulary).read_text(encoding="utf-8"))
                    lines = (path / merges).read_text(encoding="utf-8").splitlines()
                    pairs = [(a, b) for a, _, b in (line.partition(" ") for line in lines[1:] if line)]
                    tokenizer = _gpt2_pipeline(models.BPE(vocab=vocab, merges=pairs))
                except Exception as error:  # the library raises bare Exception on a malformed vocabulary
                    raise DataError(f"{path} holds no usable byte-pair vocabulary: {error}") from None
                tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
                return cls(tokenizer)
        raise DataError(
            f"{path} has neither tokenizer.json nor encoder.json and vocab.bpe (nor vocab.json and merges.txt): "
            "give the folder that has them as --data.tokenizer.path"
        )

    def encode(self, text: str) -> np.ndarray:
        return self.encode_documents([text])[0]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        dtype = smallest_dtype(self.vocab_size)
        encodings = self._hf.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(e.ids, dtype=dtype) for e in encodings]

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind, "tokenizer": json.loads(self._hf.to_str())})


def from_json(text: str, *, origin: str) -> Tokenizer:
    """The tokenizer that ``to_json`` wrote, or a byte-level Hugging Face ``tokenizer.json``.

    Raises:
        CheckpointError: ``origin`` (named in the message) is damaged or of an unknown kind.
    """
    try:
        data: Any = json.loads(text)
        kind = data.get("kind", "bpe" if "model" in data else None)
        if kind == "chars":
            return CharTokenizer(data["characters"])
        if kind == "bytes":
            return ByteTokenizer()
        if kind == "bpe":
            return BpeTokenizer(_parse_hf(json.dumps(data.get("tokenizer", data)).encode(), origin=origin))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{origin} is no tokenizer of ours or it is damaged ({error}): restore it") from None
    raise CheckpointError(f"{origin} has a tokenizer of unknown kind {kind!r}: it is from another version or program")


def _gpt2_pipeline(model: Any) -> HFTokenizer:
    """Pre-split and decode as GPT-2 does; its byte alphabet needs no unknown token."""
    tokenizer = HFTokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer


def _parse_hf(raw: bytes, *, origin: str) -> HFTokenizer:
    try:
        tokenizer = HFTokenizer.from_buffer(raw)
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{origin} is not a tokenizer.json that `tokenizers` can read: {error}") from None
    special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    if not set().union(*(vocabulary.keys() - special)) <= _byte_alphabet().keys():
        raise CheckpointError(f"{origin} is not byte-level as GPT-2's tokenizer is: only such ones can be used")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise CheckpointError(f"the token ids of {origin} have gaps: only a vocabulary of 0, 1, 2, ... can be used")
    return tokenizer


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: character to byte. Printable bytes stand for themselves, the rest from U+0100."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
