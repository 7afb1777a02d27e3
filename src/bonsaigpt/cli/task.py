"""`bonsai task`: what a model answers to the examples of a task, how good that is, and a page of its mistakes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from rich.console import Console

from bonsaigpt.cli.common import Parser, add_placement, count_from, open_model, progress_bar, runs_folder, tell
from bonsaigpt.config import ExamplesData
from bonsaigpt.data.examples.reading import read_examples
from bonsaigpt.errors import ConfigError
from bonsaigpt.measure.metrics import metric_named
from bonsaigpt.measure.tasks import TaskResult, choose, graded, write

__all__ = ["run", "task_result"]

_EXAMPLE = """  bonsai task runs/intents --data test.jsonl --metric accuracy
  bonsai task runs/assistant --data questions.jsonl --template "{question} {answer}" --metric f1 --tokens 40
  bonsai task runs/assistant --data sums.jsonl --metric my_check.py --json"""


def run(argv: list[str]) -> int:
    """The verb."""
    task_result(argv)
    return 0


def task_result(argv: list[str]) -> TaskResult:
    """What the verb does; the answers and their scores."""
    arguments = _parser().parse(argv)
    metric = metric_named(arguments.metric)
    opened = open_model(arguments.model, runs=arguments.runs)
    template = arguments.template
    if not template and opened.run is not None and isinstance(data := opened.run.config.data, ExamplesData):
        template = data.template
    examples, template = read_examples(arguments.data, template)
    if all(example.is_text for example in examples):
        raise ConfigError(f"the template {template!r} gives no prompt to answer: use one with two fields or more")
    labels: list[str] = []
    if arguments.labels is not None:
        labels = sorted({example.completion for example in read_examples(arguments.labels, template)[0]})
    elif arguments.metric == "accuracy":
        labels = sorted({example.completion for example in examples})
    if arguments.limit is not None:
        examples = examples[: arguments.limit]
    engine, model = opened.on(arguments)
    with progress_bar(Console(stderr=True)) as advance:
        if labels:
            answers = choose(engine, model, opened.tokenizer, examples, labels, advance=advance)
        else:
            tokens = arguments.tokens
            answers = write(engine, model, opened.tokenizer, examples, max_tokens=tokens, advance=advance)
    result = TaskResult(metric=arguments.metric, answers=graded(answers, metric), labels=labels)
    if arguments.json:
        print(json.dumps({"model": opened.label, "data": str(arguments.data), **result.as_dict()}))
    else:
        error = "" if result.standard_error is None else f" ± {result.standard_error:.2%} (standard error)"
        said = f"{arguments.metric} {result.mean:.2%}{error}"
        print(f"{opened.label}  {said}, {len(answers):,} examples of {arguments.data}")
    folder = arguments.out
    if folder is None and opened.run is not None:
        folder = opened.run.path / "tasks" / arguments.data.name.partition(".")[0]
    if folder is not None:
        from bonsaigpt.study.task_page import write_task

        command = shlex.join(["bonsai", "task", *argv])
        page = write_task(result, folder, label=opened.label, data=arguments.data, command=command)
        tell(f"report: {page}")
    return result


def _parser() -> Parser:
    parser = Parser(
        "task",
        "Ask a model the prompts of a task and score its answers, with a standard error, a page of all mistakes, the "
        "worst first, and for labels a picture of what is taken for what. Metrics are means of 0 to 1 over examples.",
        _EXAMPLE,
    )
    parser.add_argument("model", help="a run (RUN, RUN@last, RUN@500) or a folder of Hugging Face format")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="examples, JSON lines as for finetune")
    parser.add_argument(
        "--metric",
        default="exact",
        help="accuracy: choose the likeliest label; exact, f1 (words, as SQuAD), rouge (ROUGE-L): write greedily; or a "
        "script.py, which reads answers as JSON lines and prints a number for each (default: exact)",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="choose between the completions of this file (default: of --data, where the metric is accuracy)",
    )
    parser.add_argument("--template", default="", help="how fields make an example (default: as the run was trained)")
    parser.add_argument(
        "--tokens", type=count_from(1), default=64, metavar="N", help="tokens of an answer at most (default: 64)"
    )
    parser.add_argument("--limit", type=count_from(1), metavar="N", help="the first examples alone (default: all)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: RUN/tasks/NAME of the data)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a line")
    add_placement(parser)
    runs_folder(parser)
    return parser
