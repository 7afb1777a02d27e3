"""What preferences and rewards teach beyond examples: `bonsai finetune` with pairs (DPO) and with --reward (REINFORCE).

The reward: a model that sorts digits, stopped early, goes on with its own answers alone. The preference: a model has
learned from examples to write four digits in rising or in falling order, each half of the time; pairs ask for the
rising one. Both are counted on problems that were neither trained on nor used to choose the checkpoint: answers exactly
right, written greedily, and for pairs by how many nats the chosen answer is likelier than the rejected one, and how
likely it is. Every run is a run of `bonsai` in the folder WORK, where a ledger remembers what was measured.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
from common import Ledger, finish, guarded, machine, parser, positive, show

from bonsaigpt.checkpoint import RunDirectory
from bonsaigpt.cli import main as bonsai
from bonsaigpt.config import PairsData, TaskData
from bonsaigpt.data.examples.pairs import pair_batches
from bonsaigpt.data.plan import BatchPlan
from bonsaigpt.data.toys import task_batches
from bonsaigpt.engines import Engine
from bonsaigpt.errors import BonsaiError
from bonsaigpt.measure import evaluate
from bonsaigpt.torch_engine.engine import TorchEngine

FLAGS = ["--train.device", "cpu", "--train.precision", "fp32", "--train.compile", "off", "--train.tensorboard", "false"]
FLAGS += ["--train.attention_kernel", "sdpa", "--train.workers", "1", "--train.sample_tokens", "0"]


def main() -> None:
    """Run what the ledger lacks, and print."""
    arguments = _arguments()
    print(f"{machine(1)}\n")
    arguments.work.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(arguments.work / "ledger.jsonl")
    figures: dict[str, list[dict[str, float]]] = {}
    for seed in range(1, arguments.seeds + 1):
        for name, measure, steps in (("reward", reward, arguments.reward_steps), ("pairs", pairs, arguments.epochs)):
            one = ledger.find([name, seed, steps])
            if one is None:
                one = measure(arguments.work, seed, steps)
                ledger.add(f"{name} {seed}", [name, seed, steps], one)
            figures.setdefault(name, []).append(one)
            print(name, seed, one, flush=True)
    rows: list[tuple[str, ...]] = []
    told: dict[str, dict[str, list[float]]] = {}
    for name, several in figures.items():
        for figure in several[0]:
            values = [one[figure] for one in several]
            rows.append((name, figure, f"{np.mean(values):.2f}", *(f"{value:.2f}" for value in values)))
            what, _, when = figure.partition(",")[0].rpartition(" ")
            told.setdefault(what, {})[when] = values
    seeds = [f"seed {seed}" for seed in range(1, arguments.seeds + 1)]
    show("preferences and rewards", ["learned from", "figure", "mean", *seeds], rows)
    finish({"benchmark": "wishes", "figures": told})


def reward(work: Path, seed: int, steps: int) -> dict[str, float]:
    """Lists of four digits sorted exactly, in %, before and after."""
    base, after = f"sort-{seed}", f"sort-rewarded-{seed}"
    toy = ["--data.length", 4, "--data.val_examples", 1000, "--model.block_size", 7]
    run(work, ["train", "sort", *toy, "--train.steps", 60, "--seed", seed, "--name", base])
    flags = ["--reward", "--train.batch_size", 256, "--train.steps", steps]
    run(work, ["finetune", work / "runs" / base, *flags, "--name", after])
    return {"exact before, %": _exact(work, base), "exact after, %": _exact(work, after)}


def pairs(work: Path, seed: int, epochs: int) -> dict[str, float]:
    """Rising digits written exactly, in %, and the margin in nats, before and after."""
    random = np.random.default_rng(seed)
    lists = ["".join(map(str, digits)) for digits in random.permutation(10_000)[:, None] // [1000, 100, 10, 1] % 10]
    files = {name: work / f"{name}-{seed}.jsonl" for name in ("examples", "train", "val", "test")}
    both = [(digits, "".join(sorted(digits)), "".join(sorted(digits, reverse=True))) for digits in lists]
    either = [
        {"prompt": f"{given}=", "completion": (up, down)[int(random.integers(2))]} for given, up, down in both[:8000]
    ]
    asked = [{"prompt": f"{given}=", "chosen": up, "rejected": down} for given, up, down in both[8000:]]
    _write(files["examples"], either)
    for name, part in (("train", asked[:1000]), ("val", asked[1000:1200]), ("test", asked[1200:])):
        _write(files[name], part)
    base, after = f"either-{seed}", f"preferring-{seed}"
    data = ["--data.kind", "examples", "--data.path", files["examples"], "--data.pack", "false"]
    shape = ["--model.preset", "gpt-nano", "--model.block_size", 12, "--train.batch_size", 128, "--optim.lr", 5e-3]
    run(work, ["train", "sort", *data, *shape, "--train.steps", 400, "--seed", seed, "--name", base])
    tuning = ["--data", files["train"], "--val", files["val"], "--epochs", epochs, "--train.batch_size", 64]
    run(work, ["finetune", work / "runs" / base, *tuning, "--name", after])
    return {
        f"{figure} {when}{unit}": value
        for when, name in (("before", base), ("after", after))
        for (figure, unit), value in _rising(work, name, files["test"]).items()
    }


def _exact(work: Path, name: str) -> float:
    """Of the best checkpoint, in %, on the problems that are held out but were not validated on."""
    run_ = RunDirectory.open(work / "runs" / name)
    engine, config = _engine(), run_.config
    assert isinstance(config.data, TaskData)
    source = task_batches(config.data, seed=config.seed, plan=BatchPlan.of(config))
    validated = set(map(tuple, source.problems("val", np.arange(config.data.val_examples), held_out=True).tolist()))
    drawn = dict.fromkeys(map(tuple, source.problems("test", np.arange(20_000), held_out=True).tolist()))
    fresh = np.array([problem for problem in drawn if problem not in validated])
    model = engine.model(config.model, run_.load(optimizer=False).model)
    return 100 * engine.evaluate(model, source.batch_of(fresh), exact=True)[1] / len(fresh)


def _rising(work: Path, name: str, test: Path) -> dict[tuple[str, str], float]:
    """Of the best checkpoint on pairs: chosen answers that it writes exactly, and log-likelihoods; with their units."""
    run_ = RunDirectory.open(work / "runs" / name)
    engine, config = _engine(), run_.config
    model = engine.model(config.model, run_.load(optimizer=False).model)
    plan = BatchPlan(batch_size=200, block_size=config.model.block_size)
    source = pair_batches(PairsData(path=test, val=test), seed=1, plan=plan, tokenizer=run_.tokenizer)
    rows: list[float] = []
    for batch in source.validation_pairs():
        scores = engine.target_scores(model, batch)
        rows += (-np.bincount(scores.rows_N, weights=scores.losses_N, minlength=len(batch.tokens_BT))).tolist()
    chosen, rejected = np.mean(rows[0::2]), np.mean(rows[1::2])
    found = evaluate(engine, model, source)
    assert found.exact is not None
    return {
        ("rising exactly", ", %"): 100 * found.exact,
        ("margin", ", nats"): float(chosen - rejected),
        ("log-likelihood of the rising answer", ", nats"): float(chosen),
    }


def _engine() -> Engine:
    return cast(Engine, TorchEngine(device="cpu", precision="fp32", workers=1))


def _write(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def run(work: Path, words: list[Any]) -> None:
    """A command of `bonsai`, in this process."""
    folders = ["--runs", work / "runs", "--corpora", work / "corpora", "--train.threads", 1]
    if (code := bonsai([str(word) for word in [*words, *FLAGS, *folders]])) != 0:
        raise BonsaiError(f"bonsai {' '.join(map(str, words))} ended with {code}")


def _arguments() -> Any:
    made = parser(__doc__ or "", "python benchmarks/wishes.py --work wishes")
    made.add_argument("--work", type=Path, default=Path("wishes"), help="where data and runs go (default: wishes)")
    made.add_argument("--seeds", type=positive, default=3, help="how many (default: 3)")
    made.add_argument("--reward-steps", type=positive, default=100, help="of 256 answers (default: 100)")
    made.add_argument("--epochs", type=positive, default=1, help="over 1,000 pairs (default: 1)")
    return made.parse_args()


if __name__ == "__main__":
    guarded(main)
