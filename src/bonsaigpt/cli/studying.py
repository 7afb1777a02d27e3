"""What the studies share: a recipe that is trained in several ways, its flags, and how the findings are told."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bonsaigpt.cli.common import Parser, add_recipe, add_settings, check_run_name, print_table
from bonsaigpt.cli.sweeping import add_sweep_flags, configurer
from bonsaigpt.config import RunConfig
from bonsaigpt.study.plan import Plan, Point, Settings, make_plan

__all__ = ["Asked", "read_study", "tell"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A study as it was typed."""

    arguments: argparse.Namespace
    base: RunConfig
    """The recipe with all flags, before anything varies."""
    folder: Path
    """Of all its runs."""
    recipe: str
    command: str
    configure: Callable[[Settings], RunConfig]

    def plan(self, points: Sequence[Point]) -> Plan:
        """The runs at these points."""
        return make_plan(
            points,
            recipe=self.recipe,
            command=self.command,
            seeds=self.arguments.seeds,
            configure=self.configure,
        )


def read_study(parser: Parser, name: str, argv: list[str], *, taken: Collection[str] = ()) -> Asked:
    """Add what every study takes to a parser with the flags of study ``name``, and read the line.

    Raises:
        ConfigError: a flag sets what the study is to vary (``taken``), or a setting cannot be.
    """
    add_recipe(parser)
    add_sweep_flags(parser)
    source = add_settings(parser)
    arguments = parser.parse(argv)
    recipe, configure = configurer(arguments, source, argv, taken=taken)
    return Asked(
        arguments=arguments,
        base=configure({}),
        folder=arguments.runs / check_run_name(arguments.name or f"{recipe}-{name}"),
        recipe=recipe,
        command=shlex.join(["bonsai", "study", name, *argv]),
        configure=configure,
    )


def tell(table: tuple[list[str], list[list[str]]], verdict: str, files: Iterable[Path]) -> None:
    """Table, verdict, and where more is."""
    print_table(*table)
    print(verdict)
    for file in files:
        print(file)
