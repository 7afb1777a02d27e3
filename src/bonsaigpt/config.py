"""Every knob, typed, frozen and documented; the docstrings below the fields are the help of the command line.

A variant is a member of a tagged union with its own fields (``mlp = {kind = "swiglu", hidden = 512}``), never a
boolean that multiplies with others. Nothing changes a config after it was made: ``derive`` makes another one.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bonsaigpt.errors import ConfigError, did_you_mean

__all__ = [
    "PRESETS",
    "Config",
    "DataConfig",
    "ModelConfig",
    "OptimConfig",
    "RunConfig",
    "TokenizerConfig",
    "TrainConfig",
    "derive",
    "dump_toml",
    "load_toml",
    "setting_names",
    "validate",
]


class Config(BaseModel):
    """Base of all configuration: frozen, no unknown keys, documented fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# ------------------------------------------------------------------------------------------------ the model


class SoftmaxAttention(Config):
    """Causal multi-head attention (Vaswani et al. 2017), with grouped queries (Ainslie et al. 2023) if asked."""

    kind: Literal["softmax"] = "softmax"
    """Which attention."""
    n_kv_head: int | None = Field(default=None, ge=1)
    """Key/value heads, shared by groups of query heads; none means n_head (1 is multi-query attention)."""
    qk_norm: bool = False
    """RMS-normalise each query and key head before the positions are applied (Dehghani et al. 2023)."""


class GeluMLP(Config):
    """GPT-2's MLP: linear, GELU, linear."""

    kind: Literal["gelu"] = "gelu"
    """Which MLP."""
    hidden: int | None = Field(default=None, ge=1)
    """Hidden units; none means 4 * n_embd (swiglu: 8/3 * n_embd, up to a multiple of 16)."""
    approximate: Literal["none", "tanh"] = "none"
    """GELU exactly, or by OpenAI's tanh formula; checkpoints of GPT-2 use tanh."""


class SwiGLUMLP(Config):
    """Gated MLP, SwiGLU (Shazeer 2020): silu(x W_gate) * (x W_fc), then W_proj."""

    kind: Literal["swiglu"] = "swiglu"
    """Which MLP."""
    hidden: int | None = Field(default=None, ge=1)
    """Hidden units; none means 8/3 * n_embd, up to a multiple of 16: as many weights as gelu's default."""


class ReLU2MLP(Config):
    """Linear, squared ReLU (So et al. 2021, Primer), linear."""

    kind: Literal["relu2"] = "relu2"
    """Which MLP."""
    hidden: int | None = Field(default=None, ge=1)
    """Hidden units; none means 4 * n_embd."""


class LearnedPosition(Config):
    """One trained vector for each position, added to the token's (GPT-2)."""

    kind: Literal["learned"] = "learned"
    """Which positions."""


class RopePosition(Config):
    """Rotary positions (Su et al. 2021): queries and keys are turned by angles that grow with the position."""

    kind: Literal["rope"] = "rope"
    """Which positions."""
    theta: float = Field(default=10000.0, gt=1.0)
    """Base of the wavelengths, in positions."""


class NoPosition(Config):
    """No positions at all: the causal mask alone tells the order (Kazemnejad et al. 2023)."""

    kind: Literal["none"] = "none"
    """Which positions."""


class LayerNorm(Config):
    """Layer normalisation (Ba et al. 2016) with a scale, and a bias where model.bias is true."""

    kind: Literal["layernorm"] = "layernorm"
    """Which normalisation."""
    eps: float = Field(default=1e-5, gt=0.0)
    """Added to the variance."""


class RMSNorm(Config):
    """Root-mean-square normalisation (Zhang and Sennrich 2019) with a scale."""

    kind: Literal["rmsnorm"] = "rmsnorm"
    """Which normalisation."""
    eps: float = Field(default=1e-5, gt=0.0)
    """Added to the mean square."""


PRESETS: dict[str, dict[str, int]] = {
    "gpt-nano": {"n_layer": 3, "n_head": 3, "n_embd": 48},
    "gpt-micro": {"n_layer": 4, "n_head": 4, "n_embd": 128},
    "gpt-mini": {"n_layer": 6, "n_head": 6, "n_embd": 192},
    "baby": {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "block_size": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280, "block_size": 1024},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600, "block_size": 1024},
}
"""Sizes by name: minGPT's three small ones, nanoGPT's baby, and the four of GPT-2."""


class ModelConfig(Config):
    """The GPT itself: GPT-2's blocks by default, each part a switch."""

    preset: Literal[
        "gpt-nano", "gpt-micro", "gpt-mini", "baby", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", None
    ] = None
    """A size by name; fields that are given as well win over it."""
    n_layer: int = Field(default=4, ge=1)
    """Transformer blocks."""
    n_head: int = Field(default=4, ge=1)
    """Query heads of each attention."""
    n_embd: int = Field(default=128, ge=1)
    """Width of the residual stream; divisible by n_head."""
    block_size: int = Field(default=64, ge=1)
    """Longest context, in tokens."""
    vocab_size: int | None = Field(default=None, ge=1)
    """Size of the vocabulary; none means the tokenizer's."""
    bias: bool = False
    """Biases in the linear maps and LayerNorms, as GPT-2 has."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Probability of dropping an activation while training (embeddings, attention, residual branches)."""
    tie_embeddings: bool = True
    """The output head reads the token embedding's matrix instead of one of its own."""
    norm_position: Literal["pre", "post"] = "pre"
    """Normalise the input of each branch (GPT-2), or the sum after it (GPT-1; trains worse, see the handbook)."""
    attention: SoftmaxAttention = SoftmaxAttention()
    mlp: Annotated[GeluMLP | SwiGLUMLP | ReLU2MLP, Field(discriminator="kind")] = GeluMLP()
    position: Annotated[LearnedPosition | RopePosition | NoPosition, Field(discriminator="kind")] = LearnedPosition()
    norm: Annotated[LayerNorm | RMSNorm, Field(discriminator="kind")] = LayerNorm()

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("preset"), str):
            return PRESETS.get(data["preset"], {}) | data
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.n_embd % self.n_head:
            below = self.n_embd - self.n_embd % self.n_head
            near = " or ".join(str(n) for n in (below, below + self.n_head) if n)
            raise ValueError(
                f"model.n_embd = {self.n_embd} is not divisible by model.n_head = {self.n_head}: use {near}"
            )
        if self.n_head % self.n_kv_head:
            divisors = [d for d in range(1, self.n_head + 1) if self.n_head % d == 0]
            raise ValueError(
                f"model.attention.n_kv_head = {self.n_kv_head} does not divide model.n_head = {self.n_head}: "
                f"use one of {divisors}"
            )
        if self.position.kind == "rope" and self.head_width % 2:
            raise ValueError(
                f"rope turns pairs of channels, but a head has {self.head_width} (model.n_embd / model.n_head): "
                "choose them so that it is even"
            )
        return self

    @property
    def head_width(self) -> int:
        """K: channels of one head."""
        return self.n_embd // self.n_head

    @property
    def n_kv_head(self) -> int:
        """G: key/value heads."""
        return self.attention.n_kv_head or self.n_head

    @property
    def hidden(self) -> int:
        """F: hidden units of each MLP."""
        if self.mlp.hidden is not None:
            return self.mlp.hidden
        return -(-8 * self.n_embd // 3 // 16) * 16 if self.mlp.kind == "swiglu" else 4 * self.n_embd

    @property
    def vocabulary(self) -> int:
        """V, once it is known: a model cannot be built before."""
        if self.vocab_size is None:
            raise ConfigError("model.vocab_size is not set: give it, or train on data, whose tokenizer sets it")
        return self.vocab_size


# ------------------------------------------------------------------------------------------------- the data


class CharTokenizerConfig(Config):
    """One token for each distinct character of the training text."""

    kind: Literal["chars"] = "chars"
    """Which tokenizer."""


class ByteTokenizerConfig(Config):
    """One token for each byte of UTF-8, plus one end-of-text token: 257, and no text is ever unknown."""

    kind: Literal["bytes"] = "bytes"
    """Which tokenizer."""


class BpeTokenizerConfig(Config):
    """Byte-level byte-pair encoding, trained on the training text."""

    kind: Literal["bpe"] = "bpe"
    """Which tokenizer."""
    vocab_size: int = Field(default=1024, ge=257)
    """Size of the vocabulary: 256 bytes, the end-of-text token, and merges."""


class Gpt2TokenizerConfig(Config):
    """GPT-2's byte-pair encoding (50,257 tokens), from its own two files or a tokenizer.json."""

    kind: Literal["gpt2"] = "gpt2"
    """Which tokenizer."""
    path: Path
    """Folder with encoder.json and vocab.bpe (or vocab.json and merges.txt), or a tokenizer.json."""


TokenizerConfig = Annotated[
    CharTokenizerConfig | ByteTokenizerConfig | BpeTokenizerConfig | Gpt2TokenizerConfig,
    Field(discriminator="kind"),
]


class TokenData(Config):
    """What every source of tokens on disk shares."""

    order: Literal["shuffled", "streams", "random"] = "shuffled"
    """Every window once an epoch; consecutive segments in each row; or nanoGPT's draw with replacement."""
    val_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the text that is held out for validation."""


class TextData(TokenData):
    """What every source of text shares."""

    tokenizer: TokenizerConfig = CharTokenizerConfig()
    split: Literal["auto", "hash", "tail"] = "auto"
    """Hold out whole documents by the hash of their content, or the tail of each; auto: hash from 20 documents on."""


class FilesData(TextData):
    """Any text file, or all text files below a folder."""

    kind: Literal["files"] = "files"
    """Where the tokens come from."""
    path: Path
    """A text file or a folder."""
    pattern: str = "**/*.txt"
    """Which files of a folder (glob)."""


class ShakespeareData(TextData):
    """Tiny Shakespeare, 1.1 MB, split as nanoGPT does: the last tenth validates."""

    kind: Literal["shakespeare"] = "shakespeare"
    """Where the tokens come from."""
    path: Path | None = None
    """The text if it is on this disk already; otherwise `bonsai prepare shakespeare --download` fetches it."""


class StdlibData(TextData):
    """The Python standard library's own source on this disk: real text that needs no network."""

    kind: Literal["stdlib"] = "stdlib"
    """Where the tokens come from."""
    path: Path | None = None
    """The folder of the library; none means the running Python's."""


class ZeroOneData(TokenData):
    """Sequences of independent symbols, 0 with probability 1/3 and 1 with 2/3: a loss floor known exactly."""

    kind: Literal["zero_one"] = "zero_one"
    """Where the tokens come from."""
    sequences: int = Field(default=10_000, ge=1)
    """Number of sequences."""
    length: int = Field(default=1_000, ge=2)
    """Symbols in a sequence."""
    p_zero: float = Field(default=1 / 3, gt=0.0, lt=1.0)
    """Probability of a 0."""


class SortData(Config):
    """minGPT's toy: read a list of digits, write it sorted. Made from (seed, step), held out by hash."""

    kind: Literal["sort"] = "sort"
    """Where the tokens come from."""
    vocab: int = Field(default=10, ge=2)
    """Number of different digits."""
    length: int = Field(default=6, ge=2)
    """Digits in a list."""
    val_examples: int = Field(default=10_000, ge=1)
    """Held-out lists that are sorted at each evaluation."""


DataConfig = Annotated[FilesData | ShakespeareData | StdlibData | ZeroOneData | SortData, Field(discriminator="kind")]


# ------------------------------------------------------------------------------------------ the optimisation


class CosineSchedule(Config):
    """Linear warmup, then half a cosine down to a share of the peak (Loshchilov and Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    """Which schedule."""
    warmup: int = Field(default=100, ge=0)
    """Steps of linear warmup."""
    final: float = Field(default=0.1, ge=0.0, le=1.0)
    """Learning rate at the last step, as a share of the peak."""


class ConstantSchedule(Config):
    """Linear warmup, then the peak for ever."""

    kind: Literal["constant"] = "constant"
    """Which schedule."""
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warmup."""


class OptimConfig(Config):
    """AdamW (Loshchilov and Hutter 2019); which parameters decay is written in spec.py."""

    lr: float = Field(default=1e-3, gt=0.0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.1, ge=0.0)
    """Decoupled decay of matrices and embeddings, per unit of learning rate."""
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Memory of the gradient's mean."""
    beta2: float = Field(default=0.99, ge=0.0, lt=1.0)
    """Memory of the gradient's square."""
    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the root of the second moment."""
    grad_clip: float = Field(default=1.0, ge=0.0)
    """Largest global norm of the gradient; 0 means no clipping."""
    schedule: Annotated[CosineSchedule | ConstantSchedule, Field(discriminator="kind")] = CosineSchedule()


class TrainConfig(Config):
    """The loop: how long, how much at once, how often it looks up."""

    steps: int = Field(default=2000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(default=12, ge=1)
    """Sequences in one optimizer step, over all micro-batches and processes."""
    grad_accum: int = Field(default=1, ge=1)
    """Micro-batches into which a batch is cut to save memory; the gradient is the same."""
    eval_interval: int = Field(default=250, ge=1)
    """Steps between evaluations of the whole validation split; each one also saves a checkpoint."""
    log_interval: int = Field(default=10, ge=1)
    """Steps between lines of metrics."""
    keep_every: int = Field(default=0, ge=0)
    """Keep the checkpoint of every so many steps for good; 0 keeps best and last alone."""
    sample_tokens: int = Field(default=0, ge=0)
    """Tokens to write after each evaluation, into samples/; 0 writes none."""
    sample_prompt: str = "\n"
    """What those samples go on from."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the matrix products; auto takes bf16 only where the device computes in it natively."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 means as many as torch chooses."""
    tensorboard: bool = True
    """Write TensorBoard files into the run."""
    wandb: str = ""
    """Project on Weights & Biases to log to (extra `wandb`); empty means none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.batch_size % self.grad_accum:
            raise ValueError(
                f"train.batch_size = {self.batch_size} cannot be cut into train.grad_accum = {self.grad_accum} "
                f"equal parts: use a batch size of {-(-self.batch_size // self.grad_accum) * self.grad_accum}"
            )
        return self


class RunConfig(Config):
    """A whole experiment: `bonsai train` needs nothing else."""

    about: str = ""
    """One line for `bonsai recipes`: what the run shows and the number to expect."""
    seed: int = Field(default=1337, ge=0, lt=2**63)
    """Seed of weights, order of data, dropout and samples."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = StdlibData()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.data, SortData) and self.model.block_size < 2 * self.data.length - 1:
            raise ValueError(
                f"model.block_size = {self.model.block_size} is too short to sort {self.data.length} digits: "
                f"use at least {2 * self.data.length - 1} (2 * data.length - 1)"
            )
        return self


# ------------------------------------------------------------------------------------- reading and checking


def validate(data: dict[str, Any], *, origin: str) -> RunConfig:
    """Make a ``RunConfig`` from nested dictionaries; ``origin`` says in errors where they came from.

    Raises:
        ConfigError: names the setting, what is wrong with it, and the remedy.
    """
    try:
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e, origin) for e in error.errors())) from None


def derive(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    """A copy with some fields changed, checked again: ``derive(config, model={"vocab_size": 65})``."""
    data = config.model_dump(exclude_none=True)
    for section, changes in sections.items():
        data[section] = data[section] | changes
    return validate(data, origin="the derived configuration")


def load_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file; errors name the file and the line."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Check the path.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}. `bonsai recipes show NAME` prints one.") from None


def dump_toml(config: Config) -> str:
    """The whole configuration as TOML. Unset optional fields are left out: absent means unset, so it replays."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def setting_names(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """The dotted names of all settings, members of unions included, e.g. ``model.mlp.hidden``."""
    names: dict[str, None] = {}
    for name, field in model.model_fields.items():
        members = [t for t in _members(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]
        names[prefix + name] = None
        for member in members:
            names.update(dict.fromkeys(setting_names(member, f"{prefix}{name}.")))
    return list(names)


def _members(annotation: Any) -> list[Any]:
    arguments = getattr(annotation, "__args__", None)
    return [m for a in arguments for m in _members(a)] if arguments else [annotation]


def _explain(error: Any, origin: str) -> str:
    """One sentence for one of pydantic's errors."""
    # The tag of a union ('model', 'mlp', 'swiglu', 'hidden') is no part of the name that a user wrote.
    known = setting_names()
    parts: list[str] = []
    for part in map(str, error["loc"]):
        if not parts or ".".join([*parts, part]) in known or error["type"] == "extra_forbidden":
            parts.append(part)
    name = ".".join(parts)
    if error["type"] == "extra_forbidden":
        name = ".".join(p for i, p in enumerate(parts) if i == len(parts) - 1 or ".".join(parts[: i + 1]) in known)
        return f"unknown setting '{name}' in {origin}.{did_you_mean(name, known)} `bonsai train --help` lists all."
    if error["type"] == "value_error":
        return f"{error['ctx']['error']!s} (in {origin})."
    if error["type"] == "union_tag_invalid":
        expected = error["ctx"]["expected_tags"]
        tag = error["ctx"]["tag"]
        near = did_you_mean(tag, [t.strip(" '") for t in expected.split(",")])
        return f"{name}.kind = '{tag}' in {origin} is not known: use one of {expected}.{near}"
    if error["type"] == "union_tag_not_found":
        return f"{name} in {origin} does not say which kind it is: add {name}.kind."
    if error["type"] == "missing":
        return f"{name} is missing in {origin}: give it, e.g. --{name} VALUE."
    return f"{name} = {error['input']!r} in {origin} cannot be used: {error['msg'][0].lower()}{error['msg'][1:]}."
