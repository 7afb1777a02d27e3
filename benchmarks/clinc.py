"""The worked example of docs/finetuning.md: a small model learns Wikipedia's text, and is tuned on CLINC150's intents.

Beside it the same model from random weights, adapters, and a logistic regression over words and pairs of words, each at
several sizes of the training set. Accuracy is over the 4,500 test queries in scope, when 151 answers are possible: 150
intents and "out of scope", of which there are 100 examples; its recall is over 1,000 such queries.

Every run is a run of `bonsai`, in the folder WORK; a ledger beside them remembers what was measured.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Ledger, finish, guarded, machine, parser, positive, show

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.checkpoint.files import read_state
from bonsaigpt.cli import main as bonsai
from bonsaigpt.data.corpora.wikitext import articles, detokenized
from bonsaigpt.errors import BonsaiError
from bonsaigpt.spec import parameter_count

OUT_OF_SCOPE = "oos"
TEMPLATE = "{text}{intent}"
_PER_CLASS = 100

WIKI = """extends = "shakespeare-char-best"
[model]
n_layer = 4
n_head = 5
n_embd = 160
block_size = 128
tie_embeddings = true
[model.position]
theta = 1000.0
[data]
kind = "files"
path = "wiki.jsonl"
by = "field"
val_fraction = 0.05
[data.tokenizer]
kind = "file"
path = "tokenizer.json"
[optim]
lr = 3e-3
[train]
batch_size = 16
eval_interval = 100
device = "cpu"
compile = "off"
[train.health]
interval = 0
"""


def main() -> None:
    """Run what the ledger lacks, and print."""
    arguments = _arguments()
    print(f"{machine(arguments.threads)}\n")
    torch.set_num_threads(arguments.threads)
    work = Work(arguments.work, arguments.threads)
    work.prepare(arguments.clinc, arguments.wikitext, _sizes(arguments.sizes))
    ledger = Ledger(work.folder / "ledger.jsonl")

    def once(name: str, settings: Any, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        found = ledger.find([name, settings])
        if found is None:
            found = measure()
            ledger.add(name, [name, settings], found)
        return found

    steps = arguments.wiki_steps
    figures: dict[str, Any] = {"benchmark": "clinc", "wiki_steps": steps, "seed": arguments.seed, "arms": {}}
    rows: list[tuple[str, ...]] = []
    for size in _sizes(arguments.sizes):
        epochs = arguments.epochs if size == _PER_CLASS else arguments.epochs * 2
        for arm in arguments.arms:
            settings = [size, epochs, steps, arguments.seed]
            found = once(arm, settings, lambda a=arm, s=size, e=epochs: _measure(work, a, s, e, arguments))
            figures["arms"][f"{arm} {size}"] = found
            rows.append(
                (
                    arm,
                    f"{size}",
                    f"{found['accuracy']:.2%}",
                    f"{found['oos_recall']:.1%}",
                    f"{found['trained']:,}",
                    f"{found['seconds']:,.0f}",
                )
            )
            print(*rows[-1], flush=True)
    show("CLINC150", ["arm", "a class", "in-scope accuracy", "oos recall", "trained values", "seconds"], rows)
    finish(figures)


def _measure(work: Work, arm: str, size: int, epochs: float, arguments: Any) -> dict[str, Any]:
    if arm == "bag of words":
        return bag_of_words(work, size)
    name = f"{arm}-{size}-{arguments.seed}"
    if arm != "random":
        work.pretrain(arguments.wiki_steps, arguments.seed)
    work.tune(name, arm, size, epochs, arguments)
    return work.score(name)


class Work:
    """A folder with data, tokenizer and runs."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        folder.mkdir(parents=True, exist_ok=True)
        self.runs = folder / "runs"

    def prepare(self, clinc: Path, wikitext: Path, sizes: Iterable[int]) -> None:
        """Text in lower case, as the queries are; the queries as JSON lines; a tokenizer of both."""
        data: dict[str, list[tuple[str, str]]] = json.loads(clinc.read_text(encoding="utf-8"))
        train = [tuple(row) for row in data["train"] + data["oos_train"]]
        random.Random(0).shuffle(train)
        for size in sizes:
            taken: dict[str, int] = {}
            rows = [row for row in train if taken.setdefault(row[1], 0) < size and not _count(taken, row[1])]
            self._write(f"train-{size}", rows)
        self._write("val", random.Random(2).sample([tuple(row) for row in data["val"]], 600))
        self._write("test", data["test"])
        self._write("oos", data["oos_test"])
        if (self.folder / "tokenizer.json").exists():
            return
        texts = []
        for file in ("valid.txt", "test.txt"):
            lines = (wikitext / file).read_text(encoding="utf-8").splitlines(keepends=True)
            texts += [text for _, text in articles((str(n), line) for n, line in enumerate(lines))]
        plain = [re.sub(" +", " ", detokenized(text).lower().replace("<unk>", "")) for text in texts]
        both = [*plain, "\n".join(text for text, _ in train)]
        for name, documents in (("wiki", plain), ("both", both)):
            lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
            (self.folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        tokenizer = self.folder / "tokenizer.json"
        run(["tokenizer", "train", self.folder / "both.jsonl", "--vocab", 4096, "-o", tokenizer])

    def _write(self, name: str, rows: Iterable[Any]) -> None:
        lines = (json.dumps({"text": text, "intent": intent}) + "\n" for text, intent in rows)
        (self.folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")

    def pretrain(self, steps: int, seed: int) -> None:
        """On Wikipedia's text, unless it is done."""
        if (self.runs / "wiki").exists():
            return self._go_on("wiki")
        recipe = self.folder / "wiki.toml"
        recipe.write_text(WIKI, encoding="utf-8")
        paths = ["--data.path", self.folder / "wiki.jsonl", "--data.tokenizer.path", self.folder / "tokenizer.json"]
        run(["train", recipe, *paths, "--train.steps", steps, "--seed", seed, *self._common()])
        return None

    def tune(self, name: str, arm: str, size: int, epochs: float, arguments: Any) -> None:
        """A run on so many examples a class, from trained or from random weights."""
        if (self.runs / name).exists():
            return self._go_on(name)
        flags = ["--val", self.folder / "val.jsonl", "--template", TEMPLATE, "--label-tokens", "--epochs", epochs]
        flags += ["--dropout", 0.1, "--train.threads", self.threads, "--train.precision", arguments.precision]
        if arm == "lora":
            flags += ["--adapter", "lora", "--rank", arguments.rank, "--optim.lr", arguments.lora_rate]
        else:
            flags += ["--optim.lr", 2e-3, "--optim.matrices.lr", 0.01]
        if arm == "random":
            self._random(arguments)
        parent = self.runs / ("untrained" if arm == "random" else "wiki")
        common = ["--name", name, *self._common()]
        run(["finetune", parent, "--data", self.folder / f"train-{size}.jsonl", *flags, *common])
        return None

    def _random(self, arguments: Any) -> None:
        """A model of the same configuration that has learned nothing: one step at no rate to speak of."""
        if not (self.runs / "untrained").exists():
            recipe = self.folder / "wiki.toml"
            recipe.write_text(WIKI, encoding="utf-8")
            paths = ["--data.path", self.folder / "wiki.jsonl", "--data.tokenizer.path", self.folder / "tokenizer.json"]
            nothing = ["--train.steps", 1, "--optim.lr", 1e-12, "--optim.matrices.lr", 1e-12]
            run(["train", recipe, *paths, *nothing, "--name", "untrained", "--seed", arguments.seed, *self._common()])

    def _go_on(self, name: str) -> None:
        state = RunDirectory.open(self.runs / name)
        last = state.last()
        if last is None or read_state(last)["step"] < state.config.train.steps:
            run(["train", self.runs / name, "--resume", *self._common()])

    def _common(self) -> list[Any]:
        return ["--runs", self.runs, "--corpora", self.folder / "corpora"]

    def score(self, name: str) -> dict[str, Any]:
        """Accuracy in scope and recall out of scope, with their standard errors."""
        where, found = self.runs / name, RunDirectory.open(self.runs / name)
        labels = ["--labels", self.folder / f"train-{_PER_CLASS}.jsonl", "--metric", "accuracy", *self._common()]
        for data in ("test", "oos"):
            run(["task", where, "--data", self.folder / f"{data}.jsonl", *labels])
        means = {data: _scores(where / "tasks" / data / "answers.jsonl") for data in ("test", "oos")}
        last = found.last()
        assert last is not None
        values = {n: a.size for n, a in found.load().model.items() if found.config.optim.scale_of(n) > 0}
        return {
            "accuracy": float(np.mean(means["test"])),
            "error": float(np.std(means["test"], ddof=1) / np.sqrt(len(means["test"]))),
            "oos_recall": float(np.mean(means["oos"])),
            "parameters": parameter_count(found.config.model),
            "trained": sum(values.values()),
            "seconds": read_state(last)["seconds"],
        }


def _count(taken: dict[str, int], label: str) -> int:
    taken[label] += 1
    return 0


def _scores(path: Path) -> list[float]:
    return [json.loads(line)["score"] for line in path.read_text(encoding="utf-8").splitlines()]


def run(words: list[Any]) -> None:
    """A command of `bonsai`, in this process."""
    if (code := bonsai([str(word) for word in words])) != 0:
        raise BonsaiError(f"bonsai {' '.join(map(str, words))} ended with {code}")


def bag_of_words(work: Work, size: int) -> dict[str, Any]:
    """Logistic regression over the words and pairs of neighbours of a query, each weighted by its rarity (tf-idf), all
    queries of length 1. The strength of the penalty is the best one on the validation queries."""
    began = time.perf_counter()
    sides = {name: _queries(work.folder / f"{name}.jsonl") for name in (f"train-{size}", "val", "test", "oos")}
    train = sides[f"train-{size}"]
    labels = sorted({label for _, label in train})
    known: dict[str, int] = {}
    for words, _ in train:
        for word in set(words):
            known[word] = known.get(word, 0) + 1
    column = {word: n for n, word in enumerate(sorted(known))}
    rarity = {word: np.log((1 + len(train)) / (1 + count)) + 1 for word, count in known.items()}

    def matrix(rows: list[tuple[list[str], str]]) -> torch.Tensor:
        places, values = [], []
        for number, (words, _) in enumerate(rows):
            inside = [word for word in words if word in column]
            weights = np.array([rarity[word] for word in inside])
            length = np.linalg.norm(weights) or 1.0
            places += [(number, column[word]) for word in inside]
            values += (weights / length).tolist()
        shape = (len(rows), len(column))
        return torch.sparse_coo_tensor(
            torch.tensor(places).T, values, shape, dtype=torch.float32, check_invariants=False
        ).coalesce()

    inputs = {name: matrix(rows) for name, rows in sides.items()}
    targets = {name: torch.tensor([_place(labels, label) for _, label in rows]) for name, rows in sides.items()}
    best: tuple[float, torch.Tensor] | None = None
    for penalty in (1e-6, 1e-5, 1e-4):
        W = torch.zeros(len(column) + 1, len(labels), requires_grad=True)
        optimizer = torch.optim.LBFGS([W], max_iter=60, history_size=8, line_search_fn="strong_wolfe")

        def closure(W: torch.Tensor = W, penalty: float = penalty, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            logits = torch.sparse.mm(inputs[f"train-{size}"], W[:-1]) + W[-1]
            loss = torch.nn.functional.cross_entropy(logits, targets[f"train-{size}"]) + penalty * W.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        right = _right(inputs["val"], targets["val"], W.detach())
        if best is None or right > best[0]:
            best = right, W.detach()
    assert best is not None
    right = _right(inputs["test"], targets["test"], best[1])
    return {
        "accuracy": right,
        "error": float(np.sqrt(right * (1 - right) / len(sides["test"]))),
        "oos_recall": _right(inputs["oos"], targets["oos"], best[1]),
        "parameters": best[1].numel(),
        "trained": best[1].numel(),
        "seconds": time.perf_counter() - began,
    }


def _queries(path: Path) -> list[tuple[list[str], str]]:
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = []
    for record in records:
        words = re.findall(r"[\w']+", record["text"].lower())
        found.append(([*words, *(f"{a} {b}" for a, b in pairwise(words))], record["intent"]))
    return found


def _place(labels: list[str], label: str) -> int:
    return labels.index(label) if label in labels else -1


@torch.no_grad()
def _right(inputs: torch.Tensor, targets: torch.Tensor, W: torch.Tensor) -> float:
    logits = torch.sparse.mm(inputs, W[:-1]) + W[-1]
    return float((logits.argmax(dim=1) == targets).float().mean())


def _sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


ARMS = ("bag of words", "pretrained", "random", "lora")


def _arguments() -> Any:
    made = parser(__doc__ or "", "python benchmarks/clinc.py --clinc data_full.json --wikitext wikitext-2 --work clinc")
    made.add_argument("--clinc", type=Path, required=True, help="CLINC150's data_full.json")
    made.add_argument("--wikitext", type=Path, required=True, help="folder with valid.txt and test.txt of WikiText-2")
    made.add_argument("--work", type=Path, default=Path("clinc"), help="where data and runs go (default: clinc)")
    made.add_argument("--sizes", default="10,25,100", help="examples a class (default: 10,25,100)")
    made.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which (default: all)")
    made.add_argument("--wiki-steps", type=positive, default=700, help="of 2,048 tokens each (default: 700)")
    made.add_argument("--epochs", type=float, default=4.0, help="at 100 a class; twice at fewer (default: 4)")
    made.add_argument("--rank", type=positive, default=16, help="of LoRA (default: 16)")
    made.add_argument("--lora-rate", type=float, default=4e-3, help="its learning rate (default: 0.004)")
    made.add_argument("--precision", default="auto", help="number format of the tuning (default: auto)")
    made.add_argument("--threads", type=positive, default=2, help="CPU threads (default: 2)")
    made.add_argument("--seed", type=positive, default=1337, help="of weights and order (default: 1337)")
    return made.parse_args()


if __name__ == "__main__":
    guarded(main)
