"""A model to be asked, and what can be made of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

from rich.console import Console

from bonsaigpt.api.words import Settings, commas, flags, leave_if_stopped, setting_flags, shown
from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli import study_compress, study_kv
from bonsaigpt.cli.common import Opened, home, open_model, progress_bar
from bonsaigpt.cli.compress import compress_run
from bonsaigpt.cli.eval import memory_of, score_through, source_of, window_source
from bonsaigpt.cli.finetune import finetune_run
from bonsaigpt.cli.shrink import shrink_run
from bonsaigpt.cli.stretch import stretch_run
from bonsaigpt.cli.train import train_run
from bonsaigpt.config import ModelConfig
from bonsaigpt.engines import Engine
from bonsaigpt.errors import CheckpointError, GenerateError, did_you_mean
from bonsaigpt.generate import Completion, Request, Session
from bonsaigpt.kv import read_policy
from bonsaigpt.measure import Evaluation, evaluate
from bonsaigpt.measure.kv import KVScore
from bonsaigpt.measure.kv_answers import KVAnswers
from bonsaigpt.report import write_report
from bonsaigpt.report.history import History, read_history
from bonsaigpt.sampling import Pattern, Sampling
from bonsaigpt.spec import parameter_count
from bonsaigpt.study.compress_page import CompressStudy
from bonsaigpt.study.kv_answers import KVAnswersStudy
from bonsaigpt.study.kv_page import KVStudy

__all__ = ["Rules", "Run", "train_words"]

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


class Run:
    """A trained model: what `train` made, or `load` opened. Weights are read when they are first needed."""

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
        return f"<Run {self.opened.label}: {parameter_count(self.config):,} parameters>"

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

    # ------------------------------------------------------------------ asking the model

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

    # ------------------------------------------------------------------ making another run of it

    def resume(self, steps: int | None = None, *, settings: Settings | None = None, quiet: bool = False) -> Run:
        """Go on training, to ``steps`` in all: `bonsai train RUN --resume`."""
        words = [str(self.directory.path), "--resume", *flags(corpora=self._corpora)]
        return train_words([*words, *setting_flags(settings, steps)], self._corpora, quiet)

    def compress(
        self,
        target_params: float | None = None,
        *,
        max_loss: float | None = None,
        structure: Sequence[str] | str | None = None,
        layers: Sequence[str] | str | None = None,
        heal: int = 0,
        distill: bool = False,
        calibrate: int | None = None,
        name: str | None = None,
        settings: Settings | None = None,
        quiet: bool = False,
    ) -> Run:
        """A smaller run, block by block, healed by training if asked: `bonsai compress`.

        Args:
            target_params: values to keep: below 1 a share of those in ``layers``, from 1 on a count for the whole
                model.
            max_loss: instead of it, how much validation loss may be added before healing, in nats.
            structure: what weights may become, e.g. ``["kronecker", "lowrank"]``.
            layers: globs of the weights (default: the MLPs').
            heal: steps of training afterwards.
            distill: heal with this run as the teacher.
            calibrate: tokens of training text to fit activations on.
        """
        words = flags(
            target_params=target_params,
            max_loss=max_loss,
            structure=commas(structure),
            layers=commas(layers),
            heal=heal or None,
            distill=distill,
            calibrate=calibrate,
            **self._place(name),
        )
        return self._made(compress_run, [*words, *setting_flags(settings)], quiet)

    def finetune(
        self,
        data: Path | str,
        *,
        val: Path | str | None = None,
        template: str | None = None,
        label_tokens: bool = False,
        epochs: float | None = None,
        freeze: Sequence[str] = (),
        name: str | None = None,
        settings: Settings | None = None,
        quiet: bool = False,
    ) -> Run:
        """This model trained on with examples of a task: `bonsai finetune`.

        Args:
            data: a file of JSON lines.
            val: another to validate on (default: a tenth of ``data``).
            template: how their fields make an example, e.g. ``"{text}{intent}"``.
            label_tokens: each different answer becomes one new token.
            epochs: how often to see every example.
            freeze: globs of weights that stay as they are.
        """
        place = {"name": name, "runs": home("runs"), "corpora": self._corpora}
        if self.opened.run is not None:
            place = self._place(name)
        words = flags(data=data, val=val, template=template, label_tokens=label_tokens, epochs=epochs, **place)
        words += [f"--freeze={glob}" for glob in freeze]
        return self._made(finetune_run, [*words, *setting_flags(settings)], quiet)

    def stretch(
        self,
        block_size: int,
        *,
        rope: Literal["linear", "ntk", "yarn"] | None = None,
        steps: int | None = None,
        name: str | None = None,
        settings: Settings | None = None,
        quiet: bool = False,
    ) -> Run:
        """This run trained on at a longer context: `bonsai stretch`.

        Args:
            block_size: the longer context, in tokens.
            rope: how rotary positions are scaled.
            steps: at that context.
        """
        words = flags(block_size=block_size, rope=rope, steps=steps, **self._place(name))
        return self._made(stretch_run, [*words, *setting_flags(settings)], quiet)

    def shrink(
        self,
        *,
        n_kv_head: int | None = None,
        share_kv: int | None = None,
        kv: str | None = None,
        steps: int | None = None,
        name: str | None = None,
        settings: Settings | None = None,
        quiet: bool = False,
    ) -> Run:
        """This run trained on with a smaller key/value cache: `bonsai shrink`.

        Args:
            n_kv_head: heads of keys and values of each layer.
            share_kv: neighbouring layers that read the first one's.
            kv: what the cache will keep, e.g. ``"window(32), int4"``.
            steps: that mend it.
        """
        words = flags(n_kv_head=n_kv_head, share_kv=share_kv, kv=kv, steps=steps, **self._place(name))
        return self._made(shrink_run, [*words, *setting_flags(settings)], quiet)

    # ------------------------------------------------------------------ studies and pages

    def study_kv(
        self,
        policies: Sequence[str] = (),
        *,
        max_bits: float | None = None,
        max_loss: float | None = None,
        length: int | None = None,
        rows: int | None = None,
        chunk: int | None = None,
        variants: Sequence[str | Path] = (),
        fast: bool = False,
        quiet: bool = False,
    ) -> KVStudy | KVAnswersStudy:
        """What the cache costs, in bits and loss, or of a task in answers, through many policies: `bonsai study kv`,
        whose flags these are."""
        limits = flags(max_bits=max_bits, max_loss=max_loss, length=length, rows=rows, chunk=chunk, fast=fast)
        chosen = [f"--policy={policy}" for policy in policies] + [f"--variant={run}" for run in variants]
        with shown(quiet):
            return study_kv.measure([self.address, *chosen, *limits, *flags(corpora=self._corpora)])

    def study_compress(
        self,
        *,
        structure: Sequence[str] | str | None = None,
        share: Sequence[float] | None = None,
        heal: Sequence[int] | None = None,
        seeds: int | None = None,
        plain: bool = False,
        calibrate: int | None = None,
        quiet: bool = False,
    ) -> CompressStudy:
        """Which structure the run should be stored in: `bonsai study compress`, whose flags these are."""
        words = flags(
            structure=commas(structure),
            share=commas(share),
            heal=commas(heal),
            seeds=seeds,
            plain=plain,
            calibrate=calibrate,
            corpora=self._corpora,
        )
        with shown(quiet):
            return study_compress.measure([self.address, *words])

    def report(self) -> Path:
        """Write the run's report.html again: `bonsai report`."""
        return write_report(self.directory)

    def _place(self, name: str | None) -> dict[str, Any]:
        return {"name": name, "runs": self.directory.path.parent, "corpora": self._corpora}

    def _made(self, verb: Callable[[list[str]], tuple[RunDirectory | None, int]], words: list[str], quiet: bool) -> Run:
        """The run that a verb makes of this one, opened as this one is."""
        with shown(quiet):
            made, code = verb([self.address, *words])
        assert made is not None  # only a dry run makes none
        leave_if_stopped(code, _goes_on(made))
        return Run(made.path, corpora=self._corpora, **vars(self._placement))


def train_words(words: list[str], corpora: Path | str | None, quiet: bool) -> Run:
    """The run that `bonsai train` makes of these words.

    Raises:
        KeyboardInterrupt: Ctrl-C; the run is saved.
    """
    with shown(quiet):
        directory, code = train_run(words)
    leave_if_stopped(code, _goes_on(directory))
    return Run(directory.path, corpora=corpora)


def _goes_on(run: RunDirectory) -> str:
    return f"the run is saved: bonsai.load({str(run.path)!r}).resume() goes on with it"
