"""What cache policies cost where the past matters: recipe ``recall``, four values by keys over a gap of 32 tokens.

Every held-out problem is read token by token through the cache; it counts as solved if all its answers are the model's
first choice. Loss of text flatters whatever forgets; here a short window fails at a known distance.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import finish, guarded, machine, parser, positive, progress, show
from compressing import trained

from bonsaigpt import recipes
from bonsaigpt.data.prepare import open_source
from bonsaigpt.engines import load_engine
from bonsaigpt.kv import read_policy
from bonsaigpt.measure.kv_answers import KVAnswers, score_answers

_ALIKE = {"device": "cpu", "precision": "fp32", "compile": "off", "workers": 1, "attention_kernel": "sdpa"}
# The four pairs are 8 tokens, 40 before the first query.
POLICIES = [
    "full, int8",
    "full, int4",
    "full, int4(hadamard)",
    "full, int3(hadamard)",
    "full, k=int4(hadamard), v=int2(hadamard)",
    "full, int2(hadamard)",
    "full, ternary(group=16)",
    "full, x=int8",
    "full, x=int4",
    "window(32), bf16",
    "window(16), bf16",
    "sinks(8)+window(8), bf16",
    "sinks(8)+window(8), int4(hadamard)",
    "window(8)+h2o(8), bf16",
    "window(8)+snapkv(8), bf16",
    "window(8)+tova(8), bf16",
    "window(8)+keynorm(8), bf16",
    "window(8)+random(8), bf16",
    "window(8)+h2o(8), int4(hadamard)",
]


def main() -> None:
    """Train or load the models, read the problems through every policy, and print."""
    arguments = _arguments()
    engine = load_engine("torch", device="cpu", precision="fp32", threads=arguments.threads)
    policies = [read_policy(words).model_copy(update={"chunk": 1}) for words in arguments.policies]
    found: dict[str, list[KVAnswers]] = {words: [] for words in arguments.policies}
    with progress("models", arguments.seeds) as advance:
        for number in range(arguments.seeds):
            config = recipes.load("recall", {"seed": 1337 + number, "train": _ALIKE})
            source = open_source(config, arguments.cache / "corpora")
            file = arguments.cache / "teachers" / f"recall-{config.seed}.safetensors"
            config, values, source = trained(config, source, engine, file)
            model = engine.model(config.model, values)
            for words, one in zip(found, score_answers(engine, model, config.model, policies, source), strict=True):
                found[words].append(one)
            advance(number + 1, f"{found[arguments.policies[0]][-1].exact:.2%} with {arguments.policies[0]}")
    rows, figures = [], {}
    for words, answers in found.items():
        exact, lost = (np.array([getattr(one, name) for one in answers]) for name in ("exact", "exact_lost"))
        margin = max(one.margin or 0.0 for one in answers)
        figures[words] = {"factor": round(answers[0].factor, 3), "exact": exact.tolist(), "lost": lost.tolist()}
        figures[words] |= {"mean_lost": float(lost.mean()), "margin": margin}
        spread = f"{100 * lost.mean():.2f} ({100 * lost.min():.2f} to {100 * lost.max():.2f})"
        rows.append((words, f"{answers[0].factor:.2f}", f"{exact.mean():.2%}", spread, f"± {100 * margin:.2f}"))
    problems = max(answers[0].problems for answers in found.values())
    title = f"{machine(arguments.threads)}\nRecipe recall, {arguments.seeds} seeds, {problems:,} problems each"
    show(title, ["cache", "times fewer bits", "solved", "points lost, mean (seeds)", "95 % of a seed"], rows)
    finish({"benchmark": "kv_recall", "seeds": arguments.seeds, "policies": figures})


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/kv_recall.py --seeds 3")
    flags.add_argument("--seeds", type=positive, default=3, help="models, each trained for itself (default: 3)")
    flags.add_argument("--policies", nargs="*", default=POLICIES, metavar="POLICY", help="these instead of all")
    flags.add_argument("--threads", type=positive, default=1, help="CPU threads (default: 1)")
    flags.add_argument("--cache", type=Path, default=Path("."), help="where the models are kept")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
