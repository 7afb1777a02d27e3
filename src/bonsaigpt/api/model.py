"""A trained model to be asked. Weights are read when they are first needed, and stay in memory."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

from rich.console import Console

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli.common import Opened, home, open_model, progress_bar
from bonsaigpt.cli.eval import memory_of, score_through, source_of, window_source
from bonsaigpt.config import ModelConfig
from bonsaigpt.engines import Engine
from bonsaigpt.errors import CheckpointError, GenerateError, did_you_mean
from bonsaigpt.generate import Completion, Request, Session
from bonsaigpt.kv import read_policy
from bonsaigpt.measure import Evaluation, evaluate
from bonsaigpt.measure.kv import KVScore
from bonsaigpt.measure.kv_answers import KVAnswers
from bonsaigpt.report.history import History, read_history
from bonsaigpt.sampling import Pattern, Sampling
from bonsaigpt.spec import parameter_count

__all__ = ["Model", "Rules"]

_ROWS = 16
"""Texts that are made at once; more wait for a row."""


class Rules(TypedDict, total=False):
    """The rules of sampling, as ``bonsaigpt.sampling.Sampling`` has them; temperature is 0.8 where it is not given."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]


class Model:
    """What can be asked of a model without making another, or a file."""

    def __init__(
        self,
        address: str | Path,
        *,
        corpora: Path | str | None = None,
        engine: Literal["torch", "jax"] = "torch",
        device: str = "auto",
        precision: str | None = None,
        threads: int = 0,
    ) -> None:
        self.address = str(address)
        self._corpora = corpora
        self._placement = argparse.Namespace(engine=engine, device=device, precision=precision, threads=threads)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.opened.label}: {parameter_count(self.config):,} parameters>"

    @cached_property
    def opened(self) -> Opened:
        """The checkpoint: configuration, weights as arrays by name, tokenizer."""
        return open_model(self.address)

    @property
    def config(self) -> ModelConfig:
        """Of the model; ``directory.config`` has the training's as well."""
        return self.opened.config

    @property
    def directory(self) -> RunDirectory:
        """The run on the disk.

        Raises:
            CheckpointError: it is no run, but the model of another library.
        """
        run = self.opened.run
        if run is None:
            raise CheckpointError(f"{self.address} is no run of ours: train one from it with init={self.address!r}")
        return run

    @property
    def history(self) -> History:
        """What the training wrote down: losses, rates, samples, health."""
        return read_history(self.directory)

    @cached_property
    def _placed(self) -> tuple[Engine, Any]:
        return self.opened.on(self._placement)

    def sample(
        self,
        prompt: str = "\n",
        *,
        tokens: int = 300,
        seed: int = 0,
        stop: Sequence[str] = (),
        kv: str | None = None,
        weights: Literal["fp32", "int8"] = "fp32",
        **rules: Unpack[Rules],
    ) -> str:
        """The prompt and how the model goes on: what `bonsai sample` prints.

        Args:
            tokens: new ones at most.
            seed: the same seed gives the same text.
            stop: end where one of these would begin.
            kv: what the cache keeps, e.g. ``"sinks(4)+window(60), int4"``.
            weights: how the decoder holds them.
        """
        [done] = self.complete(prompt, tokens=tokens, seed=seed, stop=stop, kv=kv, weights=weights, **rules)
        return prompt + done.text

    def complete(
        self,
        prompt: str,
        *,
        n: int = 1,
        tokens: int = 300,
        seed: int = 0,
        stop: Sequence[str] = (),
        stop_tokens: Sequence[int] = (),
        logprobs: int | None = None,
        pattern: Pattern | None = None,
        kv: str | None = None,
        weights: Literal["fp32", "int8"] = "fp32",
        **rules: Unpack[Rules],
    ) -> list[Completion]:
        """``n`` continuations without the prompt, with their tokens and why they ended; see ``sample``.

        Args:
            stop_tokens: end before one of these ids.
            logprobs: report each token's log-probability, in nats, and those of so many likeliest ones.
            pattern: what the text must match, from ``bonsaigpt.sampling``.
        """
        if n < 1:
            raise GenerateError(f"n = {n} cannot be: ask for 1 or more")
        for name in rules:
            if name not in Rules.__annotations__:
                raise GenerateError(f"there is no rule '{name}'.{did_you_mean(name, Rules.__annotations__)}")
        sampling = Sampling(**{"temperature": 0.8, **rules}, seed=seed)
        request = Request(
            prompt=self.opened.tokenizer.encode(prompt).tolist(),
            max_tokens=tokens,
            sampling=sampling,
            stop=stop,
            stop_tokens=stop_tokens,
            logprobs=logprobs,
            pattern=pattern,
        )
        engine, model = self._placed
        policy = read_policy(kv) if kv is not None else None
        decoder = engine.decoder(model, rows=min(n, _ROWS), weights=weights, tokens=tokens * n, kv=policy)
        requests = [replace(request, sampling=replace(sampling, row=row)) for row in range(n)]
        return Session(decoder, self.opened.tokenizer).run(requests)

    @overload
    def eval(self, *, text: Path | str | None = None, kv: None = None, memory: int | None = None) -> Evaluation: ...
    @overload
    def eval(self, *, text: Path | str | None = None, kv: str) -> KVScore | KVAnswers: ...
    def eval(
        self, *, text: Path | str | None = None, kv: str | None = None, memory: int | None = None
    ) -> Evaluation | KVScore | KVAnswers:
        """Loss, perplexity and bits per byte over the whole validation split: `bonsai eval`.

        Args:
            text: a file to score instead.
            kv: read through this cache policy; gives what it costs and what it holds.
            memory: tokens that are remembered from window to window (default: as the run was trained).
        """
        corpora = home("corpora", self._corpora)
        source = source_of(self.opened, None if text is None else Path(text), corpora)
        engine, model = self._placed
        with progress_bar(Console(stderr=True)) as advance:
            if kv is not None:
                return score_through(engine, model, self.config, read_policy(kv), source, advance=advance)
            remembered = self.config, memory_of(self.opened, memory)
            return evaluate(engine, model, source, advance=advance, memory=remembered)

    def loss(self, text: str) -> float:
        """Mean loss on a text, in nats a token.

        Raises:
            DataError: the text has not two tokens.
        """
        engine, model = self._placed
        return evaluate(engine, model, window_source(self.opened, text, origin="the text")).loss
