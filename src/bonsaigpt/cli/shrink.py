"""`bonsai shrink`: a run goes on with a smaller key/value cache, as a run of its own."""

from __future__ import annotations

from rich.console import Console

from bonsaigpt.adapt import shrunk_arrays, shrunk_config
from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli.common import Parser, add_settings, count_from, runs_folder, settings
from bonsaigpt.cli.going_on import new_run
from bonsaigpt.cli.train import train_made
from bonsaigpt.errors import ConfigError
from bonsaigpt.kv import read_policy
from bonsaigpt.measure.kv import numbers_per_token

__all__ = ["run", "shrink_run"]

_EXAMPLE = """  bonsai shrink runs/shakespeare-char-best --n-kv-head 1 --share-kv 2 --kv "window(24), int3(hadamard)"
  bonsai shrink shakespeare-char-best --kv "int4" --steps 100 --name coded --optim.lr 3e-4"""


def run(argv: list[str]) -> int:
    """The verb."""
    return shrink_run(argv)[1]


def shrink_run(argv: list[str]) -> tuple[RunDirectory, int]:
    """What the verb does; the new run, and the exit code of its training."""
    parser = Parser(
        "shrink",
        "Train a run on with a smaller key/value cache: fewer heads of keys and values, layers that share them, and "
        "what a cache policy will keep of them, as training sees it too. Heads are averaged, the optimizer's state is "
        "kept; the result is a run like any other, whose losses are those through the policy.",
        _EXAMPLE,
    )
    parser.add_argument("run", help="RUN (its last checkpoint), RUN@best or RUN@500")
    parser.add_argument(
        "--n-kv-head",
        type=count_from(1),
        metavar="N",
        help="heads of keys and values of each layer, 1: multi-query (default: as the run)",
    )
    parser.add_argument(
        "--share-kv",
        type=count_from(2),
        metavar="N",
        help="neighbouring layers that read the first one's (default: as the run)",
    )
    parser.add_argument(
        "--kv",
        default="",
        metavar="POLICY",
        help='what the cache will keep, e.g. "window(32), int4", see docs/kv.md (default: as the run)',
    )
    parser.add_argument(
        "--steps", type=count_from(1), default=300, metavar="N", help="optimizer steps that mend it (default: 300)"
    )
    parser.add_argument("--name", help="name of the new run (default: the run's, and -shrunk)")
    runs_folder(parser)
    source = add_settings(parser, "optim", "train")
    arguments = parser.parse(argv)
    overrides = settings(source, argv)
    if arguments.n_kv_head is None and arguments.share_kv is None and not arguments.kv:
        raise ConfigError("nothing is to become smaller: give --n-kv-head, --share-kv or --kv")
    if arguments.kv:
        read_policy(arguments.kv)  # a misspelt word is told before the data is read
    made = new_run(
        arguments,
        ["shrink", *argv],
        overrides,
        verb="shrunk",
        suffix="shrunk",
        config_of=lambda old: shrunk_config(
            old, n_kv_head=arguments.n_kv_head, share_kv=arguments.share_kv, kv=arguments.kv, steps=arguments.steps
        ),
        arrays_of=shrunk_arrays,
    )
    before, after = (numbers_per_token(config.model) for config in (made.before, made.config))
    policy = f", read through {made.config.train.kv}" if made.config.train.kv else ""
    Console().print(
        f"{made.path}: {made.origin} with {after:,} numbers of keys and values a token instead of {before:,}{policy}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return train_made(made.path, arguments)
