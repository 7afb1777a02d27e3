"""`bonsai recipes`: list, show and diff."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bonsaigpt import recipes
from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli.common import Parser
from bonsaigpt.config import RunConfig, dump_toml
from bonsaigpt.errors import BonsaiError

__all__ = ["run"]

_EXAMPLE = """  bonsai recipes
  bonsai recipes show shakespeare-char
  bonsai recipes diff shakespeare-char runs/mine"""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser("recipes", "The experiments that come with bonsai; also of your own TOML files and runs.", _EXAMPLE)
    parser.add_argument("action", nargs="?", choices=["list", "show", "diff"], default="list")
    parser.add_argument("recipe", nargs="*", help="a recipe's name, a file.toml, or a run's folder")
    arguments = parser.parse(argv)
    wanted = {"list": 0, "show": 1, "diff": 2}[arguments.action]
    if len(arguments.recipe) != wanted:
        raise BonsaiError(f"`bonsai recipes {arguments.action}` takes {wanted} recipes, not {len(arguments.recipe)}.")
    console = Console()
    if arguments.action == "list":
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for name in recipes.names():
            table.add_row(f"[bold green]{name}[/]", escape(recipes.load(name).about))
        console.print(table)
    elif arguments.action == "show":
        print(dump_toml(_config(arguments.recipe[0])), end="")
    else:
        left, right = (recipes.flatten(_config(r).model_dump(mode="json")) for r in arguments.recipe)
        table = Table("setting", *map(escape, arguments.recipe), box=None, padding=(0, 2, 0, 0))
        for name in [*left, *(n for n in right if n not in left)]:
            if left.get(name) != right.get(name):
                table.add_row(name, *(escape(str(side.get(name, "-"))) for side in (left, right)))
        console.print(table)
    return 0


def _config(name: str) -> RunConfig:
    path = Path(name)
    return RunDirectory.open(path).config if (path / "config.toml").is_file() else recipes.load(name)
