"""Tokenizers behind one interface: characters, bytes, and byte-level BPE (trained here, GPT-2's, or from a file).

A tokenizer is saved as one ``tokenizer.json`` that holds all it needs; it travels inside the corpus and the run, so
decoding never needs a network, a cache folder or another file. ``open_tokenizer`` takes whatever names one.
"""

from bonsaigpt.data.tokenizers.base import END_OF_TEXT, Tokenizer, smallest_dtype
from bonsaigpt.data.tokenizers.bpe import BpeTokenizer
from bonsaigpt.data.tokenizers.byte import ByteTokenizer
from bonsaigpt.data.tokenizers.chars import CharTokenizer
from bonsaigpt.data.tokenizers.opening import from_json, given_tokenizer, label_token, open_tokenizer, with_special

__all__ = [
    "END_OF_TEXT",
    "BpeTokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "Tokenizer",
    "from_json",
    "given_tokenizer",
    "label_token",
    "open_tokenizer",
    "smallest_dtype",
    "with_special",
]
