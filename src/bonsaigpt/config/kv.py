"""What a key/value cache keeps of a text, and in how many bits: which tokens, what of them, in which format.

A policy is a pipeline, select -> transform -> quantise -> pack, and each layer may have its own, keys and values their
own formats. ``bonsaigpt.kv`` reads and writes the short form for the command line, e.g. ``sinks(4)+window(64), int4``.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from bonsaigpt.config.attention import SoftmaxAttention
from bonsaigpt.config.base import Config
from bonsaigpt.config.model import ModelConfig

__all__ = [
    "EvictingSelection",
    "ExactFormat",
    "Float8Format",
    "FullSelection",
    "H2OSelection",
    "IntFormat",
    "KVConfig",
    "KeyNormSelection",
    "KeysAndValues",
    "LayerInput",
    "LayerPolicy",
    "NarrowFormat",
    "QuantizedFormat",
    "RandomSelection",
    "SignFormat",
    "SnapKVSelection",
    "TOVASelection",
    "TensorFormat",
    "TernaryFormat",
    "TokenSelection",
    "WindowSelection",
]


class FullSelection(Config):
    """Every token."""

    kind: Literal["full"] = "full"
    """Which tokens stay."""


class EvictingSelection(Config):
    """Base of all that forget tokens. A query sees its own token as the newest one of the window, so between two steps
    a cache of ``window(64)`` holds 63."""

    sinks: int = Field(default=0, ge=0)
    """First tokens of the text that always stay (Xiao et al. 2024, StreamingLLM)."""
    window: int = Field(ge=1)
    """Newest tokens that always stay, that of the query included."""

    @property
    def most(self) -> int:
        """Tokens that a query sees at most when tokens are read one by one."""
        return self.sinks + self.window


class WindowSelection(EvictingSelection):
    """The newest tokens, and the first ones if asked; older ones are seen by no query, however many are read at
    once."""

    kind: Literal["window"] = "window"
    """Which tokens stay."""


class _Scored(EvictingSelection):
    budget: int = Field(ge=1)
    """Tokens that stay besides sinks and window: those of the highest score."""
    window: int = Field(default=8, ge=2)  # so that the newest token is never the first to go
    """Newest tokens that always stay, that of the query included."""

    @property
    def most(self) -> int:
        return self.sinks + self.window + self.budget


class H2OSelection(_Scored):
    """Heavy hitters: those that got the most attention so far, for each head (Zhang et al. 2023, H2O)."""

    kind: Literal["h2o"] = "h2o"
    """Which tokens stay."""
    mode: Literal["raw", "decay", "age"] = "age"
    """Sum the attention as it is, with older queries counting less, or as the mean over the queries that could see the
    token: a raw sum prefers the old ones."""
    decay: float = Field(default=0.98, gt=0.0, lt=1.0)
    """Of mode decay: factor for each token read."""


class SnapKVSelection(_Scored):
    """Those that the last queries looked at, smoothed over neighbours, for each head (Li et al. 2024, SnapKV), chosen
    anew after every so many tokens; what comes between two choices is held besides."""

    kind: Literal["snapkv"] = "snapkv"
    """Which tokens stay."""
    queries: int = Field(default=8, ge=1)
    """Queries that are looked at, and tokens between two choices; at most the window."""
    pool: int = Field(default=5, ge=1)
    """Neighbours that a score is averaged over, an odd number."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.queries > self.window:
            raise ValueError(
                f"snapkv looks at {self.queries} queries, whose tokens must stay: use window({self.queries}) at least"
            )
        if self.pool % 2 == 0:
            raise ValueError(f"snapkv pools over {self.pool} neighbours: use an odd number, e.g. {self.pool + 1}")
        return self


class TOVASelection(_Scored):
    """Those that the last query looked at, the same for all heads (Oren et al. 2024, TOVA)."""

    kind: Literal["tova"] = "tova"
    """Which tokens stay."""


class KeyNormSelection(_Scored):
    """Those whose keys are short, for each head (Devoto et al. 2024)."""

    kind: Literal["keynorm"] = "keynorm"
    """Which tokens stay."""


class RandomSelection(_Scored):
    """A random sample of the past, for each head: a floor that others must beat."""

    kind: Literal["random"] = "random"
    """Which tokens stay."""
    seed: int = 0
    """Same seed, same sample."""


TokenSelection: TypeAlias = Annotated[
    FullSelection
    | WindowSelection
    | H2OSelection
    | SnapKVSelection
    | TOVASelection
    | KeyNormSelection
    | RandomSelection,
    Field(discriminator="kind"),
]


class ExactFormat(Config):
    """The numbers as the model computes them."""

    kind: Literal["exact"] = "exact"
    """Which format."""


class NarrowFormat(Config):
    """16 bits a number."""

    kind: Literal["fp16", "bf16"] = "bf16"
    """Which format."""


class QuantizedFormat(Config):
    """Base of the formats of few bits: numbers in groups, each with a scale in fp16."""

    group: int | None = Field(default=None, ge=2)
    """Numbers with one scale: channels of a token, or tokens of a channel; none means all channels of a head, or 32
    tokens. One number is no group: it would be kept exactly and counted as few bits."""
    axis: Literal["token", "channel"] = "token"
    """Group the channels of a token, or the tokens of a channel, which suits keys (Liu et al. 2024, KIVI); tokens of a
    group are then forgotten together."""
    hadamard: bool = False
    """Turn each head by a Hadamard matrix first, which spreads outliers over the channels (Ashkboos et al. 2024)."""
    residual: int = Field(default=0, ge=0)
    """Newest tokens that stay in 16 bits (KIVI)."""
    sinks: int = Field(default=0, ge=0)
    """First tokens that stay in 16 bits (Hooper et al. 2024, KVQuant)."""

    def group_of(self, width: int) -> int:
        """Numbers with one scale, for heads of ``width`` channels."""
        return self.group or (32 if self.axis == "channel" else width)


class IntFormat(QuantizedFormat):
    """Whole numbers: int8 from -127 to 127 times a scale, the others between the least and the largest of the group."""

    kind: Literal["int8", "int6", "int5", "int4", "int3", "int2"] = "int8"
    """Which format."""

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return int(self.kind.removeprefix("int"))


class Float8Format(QuantizedFormat):
    """8-bit floating point numbers (Micikevicius et al. 2022), clamped to what the format can hold. Without a group
    they have no scale and exactly 8 bits."""

    kind: Literal["e4m3", "e5m2"] = "e4m3"
    """Which format: 4 bits of exponent and 3 of mantissa, or 5 and 2."""


class TernaryFormat(QuantizedFormat):
    """-1, 0 or 1 times a scale around the group's mean; five in a byte (thresholds after Li and Liu 2016)."""

    kind: Literal["ternary"] = "ternary"
    """Which format."""


class SignFormat(QuantizedFormat):
    """One bit: the group's mean, plus or minus a scale (Rastegari et al. 2016)."""

    kind: Literal["sign"] = "sign"
    """Which format."""


TensorFormat: TypeAlias = Annotated[
    ExactFormat | NarrowFormat | IntFormat | Float8Format | TernaryFormat | SignFormat, Field(discriminator="kind")
]


class KeysAndValues(Config):
    """Keys and values, each in its format."""

    kind: Literal["kv"] = "kv"
    """What is held of a token."""
    k: TensorFormat = ExactFormat()
    v: TensorFormat = ExactFormat()
    keys: Literal["rotated", "unrotated"] = "rotated"
    """Hold keys after RoPE, or before it and rotate them at every reading."""


class LayerInput(Config):
    """The input of the attention, from which keys and values are made again at every reading (Tomar et al. 2025,
    XQuant): half as many numbers where every head has keys of its own. Keys are rotated at reading."""

    kind: Literal["x"] = "x"
    """What is held of a token."""
    x: TensorFormat = ExactFormat()


class LayerPolicy(Config):
    """What one layer's cache keeps."""

    select: TokenSelection = FullSelection()
    hold: Annotated[KeysAndValues | LayerInput, Field(discriminator="kind")] = KeysAndValues()
    positions: Literal["true", "slot"] = "true"
    """RoPE's positions: where a token stood in the text, or its place among those that are held, so that no distance
    grows beyond the cache (StreamingLLM)."""

    @property
    def formats(self) -> dict[str, TensorFormat]:
        """By what they hold: ``k`` and ``v``, or ``x``."""
        return {"x": self.hold.x} if isinstance(self.hold, LayerInput) else {"k": self.hold.k, "v": self.hold.v}

    @model_validator(mode="after")
    def _check(self) -> Self:
        quantized = {name: f for name, f in self.formats.items() if isinstance(f, QuantizedFormat)}
        if not isinstance(self.select, EvictingSelection):
            return self
        select = self.select
        grouped = {name: f.group_of(0) for name, f in quantized.items() if f.axis == "channel"}
        if grouped and not isinstance(select, WindowSelection):
            raise ValueError(
                f"{select.kind} forgets single tokens, but axis=channel keeps groups of them: use axis=token, or a "
                "window"
            )
        if len(set(grouped.values())) > 1:
            raise ValueError(f"keys and values in groups of {sorted(grouped.values())} tokens: use the same for both")
        for name, held in quantized.items():
            if held.residual >= select.window:
                raise ValueError(
                    f"{name} keeps {held.residual} newest tokens in 16 bits, but the window has {select.window}, the "
                    f"query's own included: nothing would be {held.kind}; use residual={max(0, select.window - 2)} at "
                    "most"
                )
            if held.sinks > select.sinks:
                raise ValueError(
                    f"{name} keeps {held.sinks} first tokens in 16 bits, but only {select.sinks} of them stay: add "
                    f"sinks({held.sinks}) to the selection"
                )
            if name in grouped and held.sinks != select.sinks:
                raise ValueError(
                    f"{name} keeps groups of tokens, but the first {select.sinks} stay alone: add sinks={select.sinks} "
                    f"to {held.kind}"
                )
        return self

    @property
    def granularity(self) -> int:
        """Tokens that are forgotten together."""
        grouped = (f for f in self.formats.values() if isinstance(f, QuantizedFormat) and f.axis == "channel")
        return next((f.group_of(0) for f in grouped), 1)


class KVConfig(Config):
    """What a cache keeps, layer by layer."""

    policy: LayerPolicy = LayerPolicy()
    """Of every layer of which nothing else is said."""
    layers: dict[int, LayerPolicy] = Field(default={})
    """Of single layers, counted from 0."""
    chunk: int = Field(default=16, ge=1)
    """Tokens of a text that are read at once, with each other exactly, before what the cache keeps of them is
    chosen."""

    def of(self, layer: int) -> LayerPolicy:
        """One layer's policy, as it was given."""
        return self.layers.get(layer, self.policy)

    def held(self, config: ModelConfig, layer: int) -> LayerPolicy:
        """The policy of a layer with keys and values of its own in a model: what no layer that reads them sees any
        more, because of the model's own windows, is not held either."""
        policy, window = self.of(layer), _widest(config, layer)
        if window is None:
            return policy
        if isinstance(policy.select, WindowSelection):
            window = min(window, policy.select.window)
        select = {"kind": "window", "window": window}
        return LayerPolicy.model_validate(policy.model_dump() | {"select": select})

    @property
    def is_plain(self) -> bool:
        """Whether everything is kept as it is."""
        return all(policy == LayerPolicy() for policy in [self.policy, *self.layers.values()])

    def unbounded(self, config: ModelConfig) -> bool:
        """Whether a text may be longer than the model's block: every layer forgets, and positions have no table. Never
        of a model that can have no policy."""
        if not isinstance(config.attention, SoftmaxAttention) or config.position.kind == "learned":
            return False
        return all(isinstance(self.held(config, layer).select, EvictingSelection) for layer in config.kv_layers)

    def check(self, config: ModelConfig) -> None:
        """Raise ``ValueError`` if a model of this configuration cannot have it."""
        _check_attention(config)
        for layer in self.layers:
            if layer >= config.n_layer:
                raise ValueError(f"there is no layer {layer}: the model has 0 to {config.n_layer - 1}")
            if (source := config.kv_source(layer)) != layer:
                raise ValueError(
                    f"layer {layer} reads the keys and values of layer {source}: say of that one what is held"
                )
        for layer in config.kv_layers:
            select, window = self.of(layer).select, _widest(config, layer)
            chosen = isinstance(select, EvictingSelection) and (select.kind != "window" or select.sinks > 0)
            if window is not None and chosen:
                raise ValueError(
                    f"what layer {layer} holds is seen by layers whose own window is of {window} tokens "
                    "(model.attention.window): nothing beyond it is worth keeping; use full, or window(N)"
                )
            self.held(config, layer)  # a format may keep more tokens in 16 bits than the window lets it
        for policy in [self.policy, *self.layers.values()]:
            if policy.positions == "slot" and config.position.kind != "rope":
                raise ValueError(
                    f"positions=slot turns keys anew, but the model's positions are {config.position.kind}, not rope: "
                    "use positions=true"
                )
            for name, held in policy.formats.items():
                width = config.n_embd if name == "x" else config.head_width
                if not isinstance(held, QuantizedFormat) or held.axis == "channel":
                    continue
                if held.group is not None and width % held.group:
                    legal = ", ".join(str(d) for d in range(2, width + 1) if width % d == 0)
                    raise ValueError(
                        f"group={held.group} does not divide the {width} channels of {name}: use one of {legal}"
                    )

    def check_training(self, config: ModelConfig) -> None:
        """Raise ``ValueError`` if no one pass over whole rows computes what such a cache gives back, token by token."""
        self.check(config)
        for policy in [self.policy, *self.layers.values()]:
            if not isinstance(policy.select, FullSelection | WindowSelection):
                raise ValueError(
                    f"{policy.select.kind} chooses by what was read so far, which one pass over a row does not know: "
                    "train with full, or a window"
                )
            if policy.positions == "slot":
                raise ValueError("positions=slot turns keys anew for every token: train with positions=true")
            for name, held in policy.formats.items():
                if isinstance(held, QuantizedFormat) and (held.axis == "channel" or held.residual or held.sinks):
                    raise ValueError(
                        f"{name} has a format that changes as a token grows old (axis=channel, residual or sinks): "
                        "train with groups of one token's channels alone"
                    )


def _widest(config: ModelConfig, layer: int) -> int | None:
    """Tokens that the model itself lets the layers see which read this one's keys and values; None: all."""
    assert isinstance(config.attention, SoftmaxAttention)
    readers = [reader for reader in range(config.n_layer) if config.kv_source(reader) == layer]
    windows = [config.attention.window_of(reader) for reader in readers]
    return None if None in windows else max(window for window in windows if window is not None)


def _check_attention(config: ModelConfig) -> None:
    """A policy is of keys and values that a softmax looks at."""
    if not isinstance(config.attention, SoftmaxAttention):
        raise ValueError(
            f"model.attention.kind = '{config.attention.kind}' keeps no keys and values of each head that a policy "
            "could choose from or code: leave the policy out, its own cache is small already"
        )
