"""`bonsai study compress`: which structure a run should be stored in."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from rich.console import Console

from bonsaigpt.cli.common import Parser, count_from, number_above_zero, open_model, progress_bar, runs_folder
from bonsaigpt.cli.experiment import make_engine, open_data
from bonsaigpt.cli.studying import tell
from bonsaigpt.compress.pricing import KINDS, chosen_weights
from bonsaigpt.config import derive
from bonsaigpt.errors import CheckpointError, did_you_mean
from bonsaigpt.study.compress import SCRATCH, Bench, Cell
from bonsaigpt.study.compress_page import CompressStudy, compress_table, write_compress
from bonsaigpt.train.resume import check_data

__all__ = ["measure", "run"]

_EXAMPLE = """  bonsai study compress runs/shakespeare-char
  bonsai study compress runs/shakespeare-char --structure kronecker,lowrank --share 0.25 --heal 0,200,500 --seeds 5"""


def run(argv: list[str]) -> int:
    """The verb."""
    measure(argv)
    return 0


def measure(argv: list[str]) -> CompressStudy:
    """What the verb does, and what it found."""
    arguments = _parser().parse(argv)
    console = Console(stderr=True)
    opened = open_model(arguments.model, runs=arguments.runs)
    if opened.run is None:
        raise CheckpointError(
            f"{opened.label} brings no data to calibrate on: train a run with --init {arguments.model} first."
        )
    layers = tuple(arguments.layers.split(","))
    chosen_weights(opened.config, layers)
    teacher = None if arguments.plain else f"{opened.run.path}@{opened.step}"
    # The teacher's memory counts when the engine looks for room; see `bonsai compress`.
    distill = {"kind": "none"} if teacher is None else {"kind": "logits", "teacher": teacher}
    config = derive(opened.run.config, train={"workers": 1, "compile": "off"})
    engine = make_engine(derive(config, optim={"distill": distill}))
    source = open_data(config, arguments.corpora, console)
    check_data(opened.run.environment.get("data", source.fingerprint), opened.tokenizer, source)
    bench = Bench(engine, config, opened.weights, source, teacher, layers, arguments.calibrate, arguments.seconds)
    cells: list[Cell] = []
    total = sum(1 for kind in arguments.structure for steps in arguments.heal if kind != SCRATCH or steps)
    total *= len(arguments.share)
    with progress_bar(console) as advance:

        def follow(what: str, done: int, of: int) -> None:
            advance(f"cell {len(cells) + 1} of {total}: {what}", done, of)

        follow("the dense model", 0, 0)
        dense = bench.dense
        for cell in bench.cells(arguments.structure, arguments.share, arguments.heal, arguments.seeds, advance=follow):
            cells.append(cell)
    study = CompressStudy(
        label=opened.label,
        command=shlex.join(["bonsai", "study", "compress", *argv]),
        healed="the text alone" if teacher is None else "the text and the teacher's logits",
        dense=dense,
        cells=cells,
    )
    folder = arguments.out or opened.run.path / "studies"
    folder.mkdir(parents=True, exist_ok=True)
    tell(compress_table(study), study.verdict, write_compress(study, folder))
    return study


def _parser() -> Parser:
    parser = Parser(
        "study compress",
        "Compress a run to several structures at equal stored values, heal all alike, and draw what is lost against "
        "values, bytes and tokens a second, with intervals over seeds, paired. A seed is an order of the training "
        "text. A structure is chosen on one half of the validation split and reported on the other. No run is written.",
        _EXAMPLE,
    )
    parser.add_argument("model", help="the run (RUN, RUN@last, RUN@500)")
    parser.add_argument(
        "--structure",
        type=_kinds,
        metavar="KINDS",
        default=f"kronecker,lowrank,narrow,{SCRATCH}",
        help=f"with commas between: {', '.join(KINDS)}, or {SCRATCH}: a smaller MLP that knows nothing of the run's "
        f"weights (default: kronecker,lowrank,narrow,{SCRATCH})",
    )
    parser.add_argument(
        "--share", type=_shares, metavar="SHARES", default="0.5,0.25", help="of the weights' values (default: 0.5,0.25)"
    )
    parser.add_argument(
        "--heal", type=_steps, metavar="STEPS", default="0,200", help="steps of training afterwards (default: 0,200)"
    )
    parser.add_argument(
        "--seeds", type=count_from(1), default=3, metavar="N", help="orders of the training text (default: 3)"
    )
    parser.add_argument("--plain", action="store_true", help="heal from the text alone, without the run as a teacher")
    parser.add_argument(
        "--layers",
        default="*.mlp.*",
        metavar="GLOBS",
        help="the weights, by name, globs with commas between (default: *.mlp.*)",
    )
    parser.add_argument(
        "--calibrate",
        type=count_from(1),
        default=65_536,
        metavar="TOKENS",
        help="of training text, for activations (default: 65536)",
    )
    parser.add_argument(
        "--seconds",
        type=number_above_zero("is no time: use seconds, e.g. 1"),
        default=1,
        help="to decode for, each structure and share (default: 1)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: RUN/studies)")
    runs_folder(parser)
    return parser


def _kinds(words: str) -> tuple[str, ...]:
    known = (*KINDS, SCRATCH)
    for kind in words.split(","):
        if kind not in known:
            raise argparse.ArgumentTypeError(
                f"'{kind}' is no structure: use {', '.join(known)}.{did_you_mean(kind, known)}"
            )
    return tuple(dict.fromkeys(words.split(",")))


def _shares(words: str) -> tuple[float, ...]:
    try:
        shares = tuple(dict.fromkeys(float(word) for word in words.split(",")))
    except ValueError:
        shares = (-1.0,)
    if not all(0 < share < 1 for share in shares):
        raise argparse.ArgumentTypeError(f"'{words}' are no shares: use numbers between 0 and 1, e.g. 0.5,0.25")
    return shares


def _steps(words: str) -> tuple[int, ...]:
    if not all(word.isdecimal() for word in words.split(",")):
        raise argparse.ArgumentTypeError(f"'{words}' are no steps: use whole numbers from 0 on, e.g. 0,200")
    return tuple(dict.fromkeys(int(word) for word in words.split(",")))
