"""What the verbs share: parsers, settings as flags, terminals, and opening whatever a user points at."""

from __future__ import annotations

import argparse
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import create_model
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich_argparse import RawDescriptionRichHelpFormatter

from bonsaigpt import recipes
from bonsaigpt.checkpoint import Arrays, RunDirectory, split_address
from bonsaigpt.config import ModelConfig, RunConfig, setting_docs, setting_names
from bonsaigpt.data.tokenizers import Tokenizer, open_tokenizer
from bonsaigpt.engines import Engine, load_engine
from bonsaigpt.errors import BonsaiError, CheckpointError, ConfigError, did_you_mean
from bonsaigpt.interop import (
    is_hub_name,
    is_model_folder,
    is_torch_file,
    read_folder,
    read_torch_model,
    tokenizer_beside,
)
from bonsaigpt.progress import hushed, silent

__all__ = [
    "Opened",
    "Parser",
    "add_placement",
    "add_recipe",
    "add_settings",
    "check_run_name",
    "count_from",
    "counts",
    "home",
    "named_tokenizer",
    "number_above_zero",
    "open_model",
    "print_table",
    "progress_bar",
    "run_folder",
    "runs_folder",
    "settings",
    "tell",
    "whisper",
]


_ENDLESS = 10_000
"""Columns of a file or pipe."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours: one sentence, the nearest known flag, exit code 2."""

    def __init__(self, verb: str, description: str, example: str) -> None:
        super().__init__(
            prog=f"bonsai {verb}",
            description=description,
            epilog=f"example:\n{example}",
            formatter_class=RawDescriptionRichHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith((".", "?", "!")) else "."
        raise BonsaiError(f"{message}{end} `{self.prog} --help` lists all.")

    def parse(self, argv: list[str]) -> argparse.Namespace:
        """Parse; an unknown flag suggests the right one."""
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            flag = unknown[0].split("=")[0]
            hint = did_you_mean(flag.lstrip("-"), [o.lstrip("-") for o in self._option_string_actions])
            hint = hint.replace("'", "--", 1).replace("'?", "?") if flag.startswith("-") else hint
            kind = "unknown flag" if flag.startswith("-") else "unexpected argument"
            raise BonsaiError(f"{kind} {flag}.{hint} `{self.prog} --help` lists all.")
        return arguments


def add_settings(parser: Parser, *sections: str, **narrower: Any) -> CliSettingsSource[Any]:
    """Add a typed flag for every setting, e.g. ``--model.mlp.kind``; hand the result to ``settings``.

    Args:
        sections: which of them; none means all.
        narrower: for a section the type of what this verb takes of it.
    """
    chosen: Any = {
        name: (narrower.get(name, field.annotation), field)
        for name, field in RunConfig.model_fields.items()
        if not sections or name in sections
    }
    flags = create_model("flags", __base__=_Flags, **chosen)
    positional = " ".join(action.dest.upper() for action in parser._actions if not action.option_strings)
    parser.usage = f"{parser.prog} {positional} [options] [--SECTION.SETTING VALUE ...]"
    # "unset", because `none` is a kind of position.
    source = CliSettingsSource(flags, root_parser=parser, cli_parse_none_str="unset", cli_hide_none_type=True)
    _tell_the_truth(parser, setting_docs(flags))
    _shorten(parser, "--train.engine", "--engine")
    return source


def _shorten(parser: Parser, flag: str, short: str) -> None:
    """A second name for a flag, where the verb has it."""
    if (action := parser._option_string_actions.get(flag)) is not None:
        action.option_strings = [*action.option_strings, short]
        parser._option_string_actions[short] = action


def _tell_the_truth(parser: Parser, docs: dict[str, dict[str, list[str]]]) -> None:
    """pydantic-settings tells what a setting means, and is by default, in one member of a union. A flag tells all
    meanings, each with its kinds, and our default, or none if its variant is not the default one."""
    for group in parser._action_groups:
        if group.description is not None and "undefined" in group.description:
            group.description = None
    defaults = recipes.flatten(RunConfig().model_dump(mode="json"))
    for action in parser._actions:
        name = action.dest
        if name not in setting_names() or not isinstance(action.help, str):
            continue
        meanings = docs.get(name, {})
        if len(meanings) > 1:
            words = " ".join(f"{', '.join(dict.fromkeys(kinds))}: {doc}" for doc, kinds in meanings.items())
        else:
            words = re.sub(r"\s*\((default: |ifdef: |required).*\)$", "", action.help)
        words = escape(words.replace("%", "%%") if len(meanings) > 1 else words)
        value = defaults.get(name)
        action.help = f"{words} (default: {value})" if value not in (None, "") else words


class _Flags(BaseSettings):
    """Base of the flags: pydantic-settings reads the command line into it, never the environment."""

    model_config = SettingsConfigDict(extra="forbid")


def settings(source: CliSettingsSource[Any], argv: list[str]) -> dict[str, Any]:
    """The settings given as flags, as nested dictionaries; nothing that was not given."""
    try:
        source(args=argv)
        return source()
    except SettingsError as error:
        raise ConfigError(f"{error}: give single settings instead of a section, e.g. --model.n_layer 4.") from None


def home(what: Literal["runs", "corpora"], given: Path | str | None = None) -> Path:
    """The folder where runs or corpora live: the given one, else $BONSAI_RUNS or $BONSAI_CORPORA, else here."""
    return Path(given or os.environ.get(f"BONSAI_{what.upper()}", what))


def runs_folder(parser: argparse.ArgumentParser) -> None:
    """Add --runs and --corpora."""
    parser.add_argument(
        "--runs",
        type=Path,
        metavar="DIR",
        default=home("runs"),
        help="where runs live (default: $BONSAI_RUNS or ./runs)",
    )
    parser.add_argument(
        "--corpora",
        type=Path,
        metavar="DIR",
        default=home("corpora"),
        help="where token shards live (default: $BONSAI_CORPORA or ./corpora)",
    )


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Add --engine, --device, --precision and --threads, for verbs without settings."""
    parser.add_argument(
        "--engine", default="torch", help="torch or jax (extra `jax`), whichever a run was trained in (default: torch)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: auto)")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "tf32", "bf16", "fp16"],
        help="number format (default: fp32 for a run that was trained in it, else auto)",
    )
    parser.add_argument(
        "--threads", type=count_from(0), default=0, help="CPU threads; 0: as many as torch chooses (default: 0)"
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add what is to be trained."""
    parser.add_argument("recipe", help="a recipe's name, a file.toml, or a run's folder")


def count_from(least: int) -> Callable[[str], int]:
    """For argparse: a whole number, so many at least."""

    def count(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is no count: use {least} or more")
        return int(text)

    return count


def number_above_zero(remark: str) -> Callable[[str], float]:
    """For argparse: a finite number above 0; of anything else it says ``'TEXT' remark``."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"'{text}' {remark}")
        return value

    return number


def counts(text: str) -> list[int]:
    """For argparse: whole numbers from 1 on, with commas between."""
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is no list of counts: use whole numbers from 1 on, e.g. 8,16,32")
    return [int(part) for part in parts]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model that some verb was pointed at."""

    label: str
    config: ModelConfig
    weights: Arrays
    tokenizer: Tokenizer
    run: RunDirectory | None
    """None: it is of another program, and the label is its place."""
    step: int | None

    def on(self, placement: argparse.Namespace) -> tuple[Engine, Any]:
        """The engine, and the model placed on it as the flags of ``add_placement`` say."""
        trained_in = self.run.config.train.precision if self.run is not None else "auto"
        if trained_in not in ("auto", "fp32"):
            trained_in = "auto"  # this device need not have what the training device had
        engine = load_engine(
            placement.engine,
            device=placement.device,
            precision=placement.precision or trained_in,
            threads=placement.threads,
        )
        return engine, engine.model(self.config, self.weights)


def check_run_name(name: str) -> str:
    """The name, if a run can have it.

    Raises:
        ConfigError: it is not the name of one folder, or would read as the address of a checkpoint.
    """
    if name in ("", ".", "..") or "@" in name or Path(name).name != name:
        raise ConfigError(f"a run cannot be named '{name}': choose the name of one folder, without @, with --name.")
    return name


def run_folder(place: str, runs: Path) -> Path:
    """The folder that a user means by a path, or by the mere name of a run."""
    path = Path(place)
    return runs / place if not path.exists() and len(path.parts) == 1 else path


def named_tokenizer(address: str, runs: Path) -> Tokenizer:
    """The tokenizer that a user means: the folder or mere name of a run, a corpus, a tokenizer.json, GPT-2's, bytes.

    Raises:
        DataError: nothing there, or not readable.
        CheckpointError: damaged, or of a kind that cannot be used.
    """
    return open_tokenizer(address if Path(address).exists() or not (runs / address).exists() else runs / address)


def open_model(address: str, *, runs: Path = Path("runs")) -> Opened:
    """``runs/NAME`` (best, else last), ``runs/NAME@last``, ``runs/NAME@500``, or a model of another program: a folder
    in Hugging Face's format, a ``.pt`` of nanoGPT or minGPT.

    Raises:
        CheckpointError: nothing there, damaged, or of a kind that cannot be read.
    """
    place, which = split_address(address)
    path = run_folder(place, runs)
    if is_model_folder(path) or is_torch_file(path):
        is_folder = path.is_dir()
        config, weights = read_folder(path) if is_folder else read_torch_model(path)
        tokenizer = open_tokenizer(path) if is_folder else tokenizer_beside(path)
        _check_tokenizer(tokenizer, config, path)
        if tokenizer.vocab_size < config.vocabulary:  # rows that no token has are padding, never seen nor written
            padded = {"vocab_size": tokenizer.vocab_size, "vocab_multiple": config.vocabulary}
            config = config.model_copy(update=padded)
        return Opened(label=str(path), config=config, weights=weights, tokenizer=tokenizer, run=None, step=None)
    if not path.exists() and not path.parent.exists() and is_hub_name(address):
        raise CheckpointError(f"there is no model at {path}. If you mean one of the hub: bonsai fetch {address}")
    run = RunDirectory.open(path)
    checkpoint = run.load(which, optimizer=False)
    tokenizer = run.tokenizer
    config = run.config.model
    _check_tokenizer(tokenizer, config, path)
    return Opened(
        label=f"{path}@{checkpoint.state['step']}",
        config=config,
        weights=checkpoint.model,
        tokenizer=tokenizer,
        run=run,
        step=checkpoint.state["step"],
    )


def _check_tokenizer(tokenizer: Tokenizer, config: ModelConfig, path: Path) -> None:
    if tokenizer.vocab_size > config.vocabulary:
        raise CheckpointError(
            f"{path}/tokenizer.json has {tokenizer.vocab_size} tokens, the model {config.vocabulary}: restore it"
        )


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, words: bool = False) -> None:
    """A table on the terminal: names on the left, figures to the right; where it is narrow, cells take more lines. An
    empty header is left out; ``words``: the last column is words on the figures."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=any(header))
    for column, name in enumerate(header):
        left = column == 0 or (words and column + 1 == len(header))
        table.add_column(escape(name), justify="left" if left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    if not console.is_terminal:
        console.width = _ENDLESS
    console.print(table)


@contextmanager
def progress_bar(console: Console) -> Iterator[Callable[..., None]]:
    """A bar that follows ``advance(what, done, total, note)``; total 0 means nobody knows how long, and the note, which
    may be left out, stands behind it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    unseen = hushed.get() or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=unseen) as progress:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int, note: str = "") -> None:
            if what not in tasks:
                for task in tasks.values():
                    progress.remove_task(task)
                tasks.clear()
                # What was done before does not count as speed.
                tasks[what] = progress.add_task(what, total=total or None, completed=done, note=note)
            progress.update(tasks[what], completed=done, total=total or None, note=note)

        yield advance


def tell(line: str) -> None:
    """Print a line for people, beside what a program may read from standard output."""
    if hushed.get():
        return
    Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)


def whisper(console: Console) -> Callable[[str], None]:
    """What prints a line in passing: what is under way, and why."""
    if hushed.get():
        return silent
    return lambda line: console.print(f"[dim]{escape(line)}[/]", highlight=False, soft_wrap=True)
