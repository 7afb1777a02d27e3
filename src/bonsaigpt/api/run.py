"""A model, and what can be made of it: by the parser of each verb, so that both ways know the same flags.

The keywords of these functions are the flags of their verbs; a test holds them in step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from bonsaigpt.api.model import Model
from bonsaigpt.api.words import Settings, commas, flags, leave_if_stopped, setting_flags, shown
from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli import study_compress, study_kv
from bonsaigpt.cli.common import home
from bonsaigpt.cli.compress import compress_run
from bonsaigpt.cli.finetune import finetune_run
from bonsaigpt.cli.shrink import shrink_run
from bonsaigpt.cli.stretch import stretch_run
from bonsaigpt.cli.task import task_result
from bonsaigpt.cli.train import train_run
from bonsaigpt.measure.tasks import TaskResult
from bonsaigpt.report import write_report
from bonsaigpt.study.compress_page import CompressStudy
from bonsaigpt.study.kv_answers import KVAnswersStudy
from bonsaigpt.study.kv_page import KVStudy

__all__ = ["Run", "train_words"]

T = TypeVar("T")


class Run(Model):
    """A trained model: what `train` made, or `load` opened."""

    def resume(self, steps: int | None = None, *, settings: Settings | None = None, quiet: bool = False) -> Run:
        """Go on training, to ``steps`` in all: `bonsai train RUN --resume`."""
        words = [str(self.directory.path), "--resume", *flags(corpora=self._corpora)]
        return train_words([*words, *setting_flags(settings, steps)], self._corpora, quiet)

    def compress(
        self,
        target_params: float | None = None,
        *,
        target_bytes: int | None = None,
        max_loss: float | None = None,
        structure: Sequence[str] | str | None = None,
        allocate: Literal["even", "measured"] | None = None,
        layers: Sequence[str] | str | None = None,
        init: Literal["activations", "distilled", "weight", "pruned", "random"] | None = None,
        plan: Path | str | None = None,
        max_block_loss: float | None = None,
        experts: int | None = None,
        active: int | None = None,
        heal: int | None = None,
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
            target_bytes: instead of it, bytes of the whole model in float32.
            max_loss: instead of both, how much validation loss may be added before healing, in nats.
            structure: what weights may become, e.g. ``["kronecker", "lowrank"]``.
            allocate: the same share of every weight, or by what each was measured to cost.
            layers: globs of the weights (default: the MLPs').
            init: where factors come from.
            plan: a file with a plan to carry out, or to write the one that is made.
            max_block_loss: what a block may add, in nats.
            experts: experts that every compressed MLP becomes.
            active: experts that a token goes through.
            heal: steps of training afterwards.
            distill: heal with this run as the teacher.
            calibrate: tokens of training text to fit activations on.
        """
        return self._made(compress_run, locals(), joined=("structure", "layers"))

    def finetune(
        self,
        data: Path | str | None = None,
        *,
        val: Path | str | None = None,
        template: str | None = None,
        label_tokens: bool = False,
        balance: bool = False,
        prompts: bool = False,
        no_pack: bool = False,
        beta: float | None = None,
        reward: bool = False,
        samples: int | None = None,
        epochs: float | None = None,
        freeze: Sequence[str] = (),
        layer_decay: float | None = None,
        adapter: Literal["lora", "dora", "lokr"] | None = None,
        rank: int | None = None,
        adapt: Sequence[str] = (),
        dropout: float | None = None,
        name: str | None = None,
        settings: Settings | None = None,
        quiet: bool = False,
    ) -> Run:
        """This model trained on with examples of a task, pairs of answers, or rewards: `bonsai finetune`.

        Args:
            data: a file of JSON lines; none with ``reward``.
            val: another to validate on (default: a tenth of ``data``).
            template: how their fields make an example, e.g. ``"{text}{intent}"``.
            label_tokens: each different answer becomes one new token.
            balance: show every answer equally often.
            prompts: count prompts in the loss as well.
            no_pack: each example has a row of its own.
            beta: with pairs, how closely the model is held to what it was.
            reward: reward the model's own answers to the toy that it was trained on.
            samples: answers to each problem, with ``reward``.
            epochs: how often to see every example.
            freeze: globs of weights that stay as they are.
            layer_decay: factor on the learning rate for each block further from the end.
            adapter: train small changes beside frozen weights, of this kind.
            rank: of adapters.
            adapt: globs of the weights that get one (default: those of the blocks).
            dropout: another rate.
        """
        return self._made(finetune_run, locals())

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
        return self._made(stretch_run, locals())

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
        return self._made(shrink_run, locals())

    # ------------------------------------------------------------------ tasks, studies and pages

    def task(
        self,
        data: Path | str,
        *,
        metric: str | None = None,
        labels: Path | str | None = None,
        template: str | None = None,
        tokens: int | None = None,
        limit: int | None = None,
        out: Path | str | None = None,
        quiet: bool = False,
    ) -> TaskResult:
        """What it answers to examples and how good that is, with a page of mistakes: `bonsai task`.

        Args:
            data: a file of JSON lines, as for ``finetune``.
            metric: ``accuracy``, ``exact``, ``f1``, ``rouge`` or a script.
            labels: choose between the answers of this file.
            template: how fields make an example (default: as the run was trained).
            tokens: of an answer at most.
            limit: the first examples alone.
            out: folder of the page (default: inside the run).
        """
        return self._told(task_result, locals() | vars(self._placement))

    def study_kv(
        self,
        policy: Sequence[str] = (),
        *,
        text: Path | str | None = None,
        variant: Sequence[str | Path] = (),
        max_bits: float | None = None,
        max_loss: float | None = None,
        length: int | None = None,
        rows: int | None = None,
        chunk: int | None = None,
        fast: bool = False,
        out: Path | str | None = None,
        quiet: bool = False,
    ) -> KVStudy | KVAnswersStudy:
        """What the cache costs, in bits and loss, or of a task in answers, through many policies: `bonsai study kv`,
        whose flags these are."""
        return self._told(study_kv.measure, locals() | vars(self._placement))

    def study_compress(
        self,
        *,
        structure: Sequence[str] | str | None = None,
        share: Sequence[float] | None = None,
        heal: Sequence[int] | None = None,
        seeds: int | None = None,
        plain: bool = False,
        layers: Sequence[str] | str | None = None,
        calibrate: int | None = None,
        seconds: float | None = None,
        out: Path | str | None = None,
        quiet: bool = False,
    ) -> CompressStudy:
        """Which structure the run should be stored in: `bonsai study compress`, whose flags these are."""
        return self._told(study_compress.measure, locals(), joined=("structure", "share", "heal", "layers"))

    def report(self) -> Path:
        """Write the run's report.html again: `bonsai report`."""
        return write_report(self.directory)

    def _told(
        self, verb: Callable[[list[str]], T], given: Mapping[str, Any], *, joined: Sequence[str] = (), **folders: Any
    ) -> T:
        """What a verb gives for this model and the arguments of one of the functions above.

        Args:
            given: the function's ``locals()``.
            joined: several values of these become one word, with commas between.
        """
        asked = {name: value for name, value in given.items() if name not in ("self", "settings", "quiet")}
        asked |= {name: commas(asked[name]) for name in joined}
        words = [*flags(**asked, corpora=self._corpora, **folders), *setting_flags(given.get("settings"))]
        with shown(given["quiet"]):
            return verb([self.address, *words])

    def _made(
        self,
        verb: Callable[[list[str]], tuple[RunDirectory | None, int]],
        given: Mapping[str, Any],
        *,
        joined: Sequence[str] = (),
    ) -> Run:
        """The run that a verb makes of this one, beside it, opened as this one is."""
        run = self.opened.run
        made, code = self._told(verb, given, joined=joined, runs=home("runs") if run is None else run.path.parent)
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
