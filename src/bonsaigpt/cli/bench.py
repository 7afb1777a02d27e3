"""`bonsai bench`: how fast this machine is at what models do."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console

from bonsaigpt.cli.common import (
    Parser,
    add_placement,
    count_from,
    counts,
    number_above_zero,
    open_model,
    print_table,
    progress_bar,
    runs_folder,
    whisper,
)
from bonsaigpt.config import PRESETS, ModelConfig, validate
from bonsaigpt.engines import Engine, load_engine
from bonsaigpt.errors import BonsaiError, GenerateError
from bonsaigpt.measure.decoding import DecodeFigures, measure_decoding
from bonsaigpt.spec import initial_value, parameter_count, parameters

__all__ = ["run"]

_EXAMPLE = """  bonsai bench decode runs/shakespeare-char
  bonsai bench decode --preset baby --batch 1,16 --weights int8
  bonsai bench decode --preset gpt2 --prompt 200 --tokens 64 --json"""

_VOCABULARY = {"gpt2": 50257}
"""Tokens of a preset, by the start of its name; the others are for characters."""
_CHARACTERS = 65


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser(
        "bench",
        "How fast a model decodes here, one token after the other, with 1 row and with several: milliseconds to the "
        "first token, tokens a second (of prefill, and of all rows together), what is read of weights and cache a "
        "second in GB (10^9 bytes), and which share that is of what this machine's memory was measured to give; above "
        "100 % a cache held it. Computes greedily from random tokens; medians of rounds.",
        _EXAMPLE,
    )
    parser.add_argument("what", choices=["decode"], help="what to measure")
    parser.add_argument("model", nargs="?", help="a run (RUN, RUN@last, RUN@500) or a folder in Hugging Face's format")
    parser.add_argument(
        "--preset", choices=sorted(PRESETS), help="a size by name, with fresh weights, instead of a run"
    )
    parser.add_argument("--batch", type=counts, default=[1, 4, 16], help="rows (default: 1,4,16)")
    parser.add_argument("--prompt", type=count_from(1), metavar="N", help="tokens before (default: half of the block)")
    parser.add_argument(
        "--tokens", type=count_from(1), metavar="N", help="new ones a row (default: up to 128 that fit)"
    )
    parser.add_argument(
        "--weights", choices=["fp32", "int8"], default="fp32", help="how matrices are kept (default: fp32)"
    )
    parser.add_argument(
        "--seconds",
        type=number_above_zero("is no time: use more than 0 seconds"),
        default=3,
        help="for each number of rows, about (default: 3)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    add_placement(parser)
    runs_folder(parser)
    arguments = parser.parse(argv)
    errors = Console(stderr=True)
    with progress_bar(errors) as advance:
        advance("making ready", 0, 0)
        label, config, engine, model = _subject(arguments)
        prompt, new = _lengths(config.block_size, arguments)
        read_rate = engine.read_rate(seconds=min(1.0, arguments.seconds))
        decoder = engine.decoder(model, rows=max(arguments.batch), weights=arguments.weights, say=whisper(errors))
        found = measure_decoding(
            decoder,
            vocab_size=config.vocabulary,
            rows=arguments.batch,
            prompt=prompt,
            new=new,
            seconds=arguments.seconds,
            read_rate=read_rate,
            advance=advance,
        )
    about = {"model": label, "weights": arguments.weights, "why": decoder.why, "read_rate": read_rate}
    about["cache_bits"] = decoder.bits()
    if arguments.json:
        print(json.dumps(about | {"figures": [one.as_dict() for one in found]}))
    else:
        _show(about, found, parameter_count(config))
    return 0


def _subject(arguments: argparse.Namespace) -> tuple[str, ModelConfig, Engine, Any]:
    if (arguments.model is None) == (arguments.preset is None):
        raise BonsaiError("say what to measure: either a run, or --preset NAME.")
    if arguments.model is not None:
        opened = open_model(arguments.model, runs=arguments.runs)
        return opened.label, opened.config, *opened.on(arguments)
    name = arguments.preset
    vocabulary = next((size for start, size in _VOCABULARY.items() if name.startswith(start)), _CHARACTERS)
    config = validate({"model": {"preset": name, "vocab_size": vocabulary}}, origin="--preset").model
    values = {p.name: initial_value(p, 0) for p in parameters(config) if p.tied_to is None}
    precision = arguments.precision or "auto"
    engine = load_engine(arguments.engine, device=arguments.device, precision=precision, threads=arguments.threads)
    return f"preset {name}", config, engine, engine.model(config, values)


def _lengths(block: int, arguments: argparse.Namespace) -> tuple[int, int]:
    """Tokens before, and new ones: their sum fits into the block."""
    prompt = arguments.prompt or max(1, min(block // 2, block - (arguments.tokens or 1)))
    new = arguments.tokens or min(128, block - prompt)
    if new < 1 or prompt + new > block:
        raise GenerateError(
            f"a prompt of {prompt} and {max(new, 1)} new tokens do not fit the block of {block}: lower --prompt or "
            "--tokens."
        )
    return prompt, new


def _show(about: dict[str, Any], found: list[DecodeFigures], size: int) -> None:
    console = Console()
    first = found[0]
    for line in (
        f"{about['model']}: {size:,} parameters, prompts of {first.prompt}, {first.new} new tokens a row",
        about["why"],
        f"memory reads at {about['read_rate'] / 1e9:.1f} GB/s; weights {first.weight_bytes / 2**20:,.1f} MiB a step, "
        f"cache {about['cache_bits'] / 8 / 2**20:,.1f} MiB",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    header = ["rows", "first token ms", "prefill tokens/s", "step ms", "tokens/s", "best round", "GB/s", "roofline"]
    rows = [
        [
            str(one.rows),
            f"{one.first_token_ms:.2f}",
            f"{one.prefill:,.0f}",
            f"{one.step_ms:.3f}",
            f"{one.decode:,.0f}",
            f"{one.decode_best:,.0f}",
            f"{one.bandwidth / 1e9:.1f}",
            f"{one.roofline:.0%}",
        ]
        for one in found
    ]
    print()
    print_table(header, rows)
