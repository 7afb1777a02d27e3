"""Examples to fine-tune on: what is asked, and what should come."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bonsaigpt.config.base import Config, UserPath
from bonsaigpt.config.tokenizers import ByteTokenizerConfig, TokenizerConfig

__all__ = ["ExamplesData", "PairsData"]


class ExamplesData(Config):
    """Examples, one JSON object a line: a prompt and its completion, the messages of a dialogue, or plain text. The
    loss counts what the model is to say, and nothing else."""

    kind: Literal["examples"] = "examples"
    """Where the tokens come from."""
    path: UserPath
    """A file of JSON lines, also .gz .zst .bz2 .xz."""
    val: UserPath | None = None
    """Another one to validate on; none holds examples of the first out, by the hash of what they ask."""
    val_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the examples that is held out, where there is no file of them."""
    template: str = ""
    """How fields make an example, e.g. "{text} => {label}": the last one is to be said, all before it is the prompt.
    Empty: by the fields of the first line, {prompt}{completion}, messages, or {text}."""
    tokenizer: TokenizerConfig = ByteTokenizerConfig()
    prompts: bool = False
    """Count the prompts in the loss as well."""
    pack: bool = True
    """Fill rows with several whole examples, none of which sees another; else each has a row of its own."""
    balance: bool = False
    """Show every completion equally often in an epoch: as often as the most frequent one."""

    @property
    def document_mask(self) -> bool:
        """Whether attention has to stay inside an example."""
        return self.pack


class PairsData(Config):
    """Pairs of answers, one JSON object a line: a prompt, the answer that was chosen, and the one that was rejected.
    They take two rows of a batch each; what is validated are the chosen ones, their loss and how many the model would
    write itself."""

    kind: Literal["pairs"] = "pairs"
    """Where the tokens come from."""
    path: UserPath
    """A file of JSON lines with prompt, chosen and rejected, also .gz .zst .bz2 .xz."""
    val: UserPath | None = None
    """Another one to validate on; none holds pairs of the first out, by the hash of their prompts."""
    val_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the pairs that is held out, where there is no file of them."""
    tokenizer: TokenizerConfig = ByteTokenizerConfig()
