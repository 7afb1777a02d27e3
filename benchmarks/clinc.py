"""The worked example of docs/finetuning.md: a small model learns Wikipedia's text, and is tuned on CLINC150's intents.

On its way it reads the training queries without their intents, as text. Beside it the same model without that (arm
"wikipedia"), from random weights, with adapters (of full size), and a logistic regression over words and pairs of
words, each at several sizes of the training set. Accuracy is over the 4,500 test queries in scope, when 151 answers are
possible: 150 intents and "out of scope", of which there are 100 examples; its recall is over 1,000 such queries.

Every run is a run of `bonsai`, in the folder WORK; a ledger beside them remembers what was measured.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
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

RATES = {True: (8e-3, 0.02), False: (4e-3, 0.01)}
"""Of a tuning with adapters and without, for embeddings and for matrices, chosen on queries of the validation split."""
_ADAPTERS_TAKE = 1.5
"""Times as many passes."""
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
[optim.matrices]
lr = 0.02
[train]
batch_size = 16
eval_interval = 300
sample_tokens = 0
device = "cpu"
tensorboard = false
[train.health]
interval = 0
"""


def main() -> None:
    """Run what the ledger lacks, the most telling first, and print."""
    arguments = _arguments()
    print(f"{machine(arguments.threads)}\n")
    torch.set_num_threads(arguments.threads)
    sizes = sorted((int(part) for part in arguments.sizes.split(",")), reverse=True)
    seeds = [int(part) for part in arguments.seeds.split(",")]
    work = Work(arguments.work, arguments)
    work.prepare(arguments.clinc, arguments.wikitext, sizes)
    ledger = Ledger(work.folder / "ledger.jsonl")
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for seed in seeds:
        for size in sizes:
            for arm in arguments.arms:
                if (arm == "bag of words" and seed != seeds[0]) or (arm == "lora" and size != sizes[0]):
                    continue  # it draws nothing; adapters are compared where there is most to learn
                settings = [arm, size, seed, arguments.wiki_steps, arguments.epochs, arguments.rank]
                one = ledger.find(settings)
                if one is None:
                    one = bag_of_words(work, size) if arm == "bag of words" else work.measure(arm, size, seed)
                    ledger.add(f"{arm} {size} {seed}", settings, one)
                found.setdefault((arm, size), []).append(one)
                print(arm, size, seed, f"{one['accuracy']:.2%}", f"{one['oos_recall']:.1%}", flush=True)
    arms = {f"{arm} {size}": _summary(several) for (arm, size), several in found.items()}
    rows = [
        (
            name,
            str(len(one["accuracies"])),
            f"{one['accuracy']:.2%} ± {one['spread']:.2%}",
            f"{one['oos_recall']:.1%}",
            f"{one['trained']:,}",
            f"{one['seconds']:,.0f}",
        )
        for name, one in arms.items()
    ]
    columns = ["arm, examples a class", "seeds", "in-scope accuracy", "oos recall", "trained values", "CPU seconds"]
    show("CLINC150", columns, rows)
    if arguments.plot is not None:
        draw(found, arguments.plot)
    finish({"benchmark": "clinc", "arms": arms})


def _summary(several: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds; ``spread`` is what the seeds scatter by, or of one seed the error over queries."""
    accuracies = [one["accuracy"] for one in several]
    return {
        "accuracies": accuracies,
        "accuracy": float(np.mean(accuracies)),
        "spread": float(np.std(accuracies, ddof=1)) if len(several) > 1 else several[0]["error"],
        "oos_recall": float(np.mean([one["oos_recall"] for one in several])),
        "parameters": several[0]["parameters"],
        "trained": several[0]["trained"],
        "seconds": float(np.mean([one["seconds"] for one in several])),
    }


def draw(found: dict[tuple[str, int], list[dict[str, Any]]], path: Path) -> None:
    """Accuracy over the size of the training set."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for arm in dict.fromkeys(arm for arm, _ in found):
        points = sorted(
            (size, [one["accuracy"] for one in several]) for (a, size), several in found.items() if a == arm
        )
        sizes, means = [size for size, _ in points], [100 * float(np.mean(values)) for _, values in points]
        axes.plot(sizes, means, "o-", label=arm)
        for size, values in points:
            axes.plot([size] * len(values), [100 * v for v in values], "k.", markersize=3)
    axes.set(xscale="log", xlabel="examples of each intent", ylabel="in-scope accuracy, %", title="CLINC150")
    axes.set_xticks(sizes := sorted({size for _, size in found}), [str(size) for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)
    plt.close(figure)


class Work:
    """A folder with data, tokenizer and runs."""

    def __init__(self, folder: Path, arguments: Any) -> None:
        self.folder, self.runs, self.arguments = folder, folder / "runs", arguments
        folder.mkdir(parents=True, exist_ok=True)

    def prepare(self, clinc: Path, wikitext: Path, sizes: Iterable[int]) -> None:
        """Text in lower case, as the queries are; the queries as JSON lines; a tokenizer of both."""
        data: dict[str, list[tuple[str, str]]] = json.loads(clinc.read_text(encoding="utf-8"))
        train = [tuple(row) for row in data["train"] + data["oos_train"]]
        random.Random(0).shuffle(train)
        for size in sizes:
            taken: dict[str, int] = {}
            rows = [row for row in train if taken.setdefault(row[1], 0) < size and not _count(taken, row[1])]
            self._write(f"train-{size}", rows)
        texts = (json.dumps({"text": text}) + "\n" for text, _ in train)
        (self.folder / "queries.jsonl").write_text("".join(texts), encoding="utf-8")
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

    def measure(self, arm: str, size: int, seed: int) -> dict[str, Any]:
        """One arm's figures."""
        name = f"{arm}-{size}-{seed}"
        parents = {"random": self._random, "wikipedia": self._wikipedia}
        self.tune(name, arm, size, parents.get(arm, self._pretrained)(seed))
        return self.score(name, size)

    def _pretrained(self, seed: int) -> Path:
        """A model that has read Wikipedia's text, and then all training queries, without their intents (Howard and
        Ruder 2018, section 3.2)."""
        name = f"read-{seed}"
        if (self.runs / name).exists():
            self._go_on(name)
        else:
            data = ["--data", self.folder / "queries.jsonl", "--epochs", 3]
            run(["finetune", self._wikipedia(seed), *data, "--name", name, *self._computing(), *self._common()])
        return self.runs / name

    def _wikipedia(self, seed: int) -> Path:
        """A model that has read Wikipedia's text."""
        return self._train(f"wiki-{seed}", ["--train.steps", self.arguments.wiki_steps, "--seed", seed])

    def _random(self, seed: int) -> Path:
        """A model of the same configuration that has learned nothing: one step at no rate to speak of. The rates of its
        tuning are those of the other one's."""
        nothing = ["--train.steps", 1, "--optim.schedule.warmup", 1_000_000_000]
        return self._train(f"untrained-{seed}", [*nothing, "--seed", seed])

    def _train(self, name: str, flags: list[Any]) -> Path:
        if (self.runs / name).exists():
            self._go_on(name)
        else:
            recipe = self.folder / "wiki.toml"
            recipe.write_text(WIKI, encoding="utf-8")
            paths = ["--data.path", self.folder / "wiki.jsonl", "--data.tokenizer.path", self.folder / "tokenizer.json"]
            run(["train", recipe, *paths, *flags, "--name", name, *self._computing(), *self._common()])
        return self.runs / name

    def tune(self, name: str, arm: str, size: int, parent: Path) -> None:
        """A run on so many examples a class. Fewer are shown more often."""
        if (self.runs / name).exists():
            return self._go_on(name)
        adapters = arm == "lora"
        epochs = self.arguments.epochs * (1.0 if size == _PER_CLASS else 2.0 if size >= _PER_CLASS / 4 else 3.0)
        epochs *= _ADAPTERS_TAKE if adapters else 1.0
        rate, of_matrices = RATES[adapters]
        flags = ["--val", self.folder / "val.jsonl", "--template", TEMPLATE, "--label-tokens", "--epochs", epochs]
        flags += ["--dropout", 0.2, "--optim.lr", rate, "--optim.matrices.lr", of_matrices, *self._computing()]
        if adapters:
            flags += ["--adapter", "lora", "--rank", self.arguments.rank]
        run(
            ["finetune", parent, "--data", self.folder / f"train-{size}.jsonl", "--name", name, *flags, *self._common()]
        )
        return None

    def _computing(self) -> list[Any]:
        """Runs of a few minutes are too short to measure first how they are computed fastest."""
        flags = ["--train.threads", self.arguments.threads, "--train.precision", self.arguments.precision]
        return [*flags, "--train.workers", 1, "--train.attention_kernel", "sdpa", "--train.compile", "off"]

    def _go_on(self, name: str) -> None:
        state = RunDirectory.open(self.runs / name)
        last = state.last()
        if last is None or read_state(last)["step"] < state.config.train.steps:
            run(["train", self.runs / name, "--resume", *self._common()])

    def _common(self) -> list[Any]:
        return ["--runs", self.runs, "--corpora", self.folder / "corpora"]

    def score(self, name: str, size: int) -> dict[str, Any]:
        """Accuracy in scope and recall out of scope, with their standard errors."""
        where, found = self.runs / name, RunDirectory.open(self.runs / name)
        labels = ["--labels", self.folder / f"train-{size}.jsonl", "--metric", "accuracy", *self._common()]
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


ARMS = ("pretrained", "random", "lora", "bag of words", "wikipedia")


def _arguments() -> Any:
    made = parser(__doc__ or "", "python benchmarks/clinc.py --clinc data_full.json --wikitext wikitext-2 --work clinc")
    made.add_argument("--clinc", type=Path, required=True, help="CLINC150's data_full.json")
    made.add_argument("--wikitext", type=Path, required=True, help="folder with valid.txt and test.txt of WikiText-2")
    made.add_argument("--work", type=Path, default=Path("clinc"), help="where data and runs go (default: clinc)")
    made.add_argument("--sizes", default="10,30,100", help="examples a class (default: 10,30,100)")
    made.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="which (default: all)")
    made.add_argument("--seeds", default="1337,1,2", help="of weights and order (default: 1337,1,2)")
    made.add_argument("--wiki-steps", type=positive, default=600, help="of 2,048 tokens each (default: 600)")
    made.add_argument("--epochs", type=float, default=4.0, help="at 100 a class; more at fewer (default: 4)")
    made.add_argument("--rank", type=positive, default=32, help="of LoRA (default: 32)")
    made.add_argument("--precision", default="auto", help="number format (default: auto)")
    made.add_argument("--threads", type=positive, default=2, help="CPU threads (default: 2)")
    made.add_argument("--plot", type=Path, help="a picture of accuracy over size (default: none)")
    return made.parse_args()


if __name__ == "__main__":
    guarded(main)
