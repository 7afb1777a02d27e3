"""`bonsai harness`: tasks of lm-evaluation-harness over a live model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bonsaigpt.cli.common import Parser, add_placement, count_from, open_model, print_table, runs_folder
from bonsaigpt.interop.harness import harness_model, run_harness

__all__ = ["run"]

_EXAMPLE = """  bonsai harness runs/wiki --tasks my_task --include my-tasks
  bonsai harness runs/wiki --tasks lambada_openai,arc_easy --limit 200 --download"""


def run(argv: list[str]) -> int:
    """The verb."""
    parser = Parser(
        "harness",
        "Run tasks of EleutherAI's lm-evaluation-harness (extra `eval`) on a model as it is: nothing is exported. "
        "Nothing is fetched either, unless --download allows it.",
        _EXAMPLE,
    )
    parser.add_argument("model", help="a run (RUN, RUN@last, RUN@500) or a folder of Hugging Face format")
    parser.add_argument("--tasks", required=True, metavar="NAMES", help="with commas between (default: none)")
    parser.add_argument(
        "--include", type=Path, metavar="DIR", help="folder of YAML files that define further tasks (default: none)"
    )
    parser.add_argument(
        "--shots", type=count_from(0), metavar="N", help="examples before each question (default: the task's)"
    )
    parser.add_argument("--limit", type=count_from(1), metavar="N", help="questions of each task (default: all)")
    parser.add_argument("--download", action="store_true", help="let it fetch data sets from the hub")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    add_placement(parser)
    runs_folder(parser)
    arguments = parser.parse(argv)
    opened = open_model(arguments.model, runs=arguments.runs)
    engine, model = opened.on(arguments)
    found = run_harness(
        harness_model(engine, model, opened.tokenizer),
        arguments.tasks.split(","),
        include=arguments.include,
        shots=arguments.shots,
        limit=arguments.limit,
        download=arguments.download,
    )
    results: dict[str, dict[str, Any]] = found["results"]
    if arguments.json:
        print(json.dumps({"model": opened.label, "results": results, "versions": found["versions"]}, default=str))
        return 0
    rows: list[tuple[str, ...]] = []
    for task, values in results.items():
        for name, value in values.items():
            metric, _, filtered = name.partition(",")
            if isinstance(value, float) and not metric.endswith("_stderr"):
                error = values.get(f"{metric}_stderr,{filtered}")
                rows.append((task, metric, f"{value:.4f}", f"{error:.4f}" if isinstance(error, float) else ""))
    print_table(("task", "metric", "value", "standard error"), rows)
    return 0
