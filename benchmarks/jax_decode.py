"""Decoding in JAX against a straightforward decoder: one ``lax.scan`` over all tokens, a cache of the whole block,
every slot looked at in every step. Rounds are interleaved in one run: one text, greedy.
Then the single calls are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import Summary, finish, guarded, machine, parser, positive, show
from jax import Array, lax

from bonsaigpt.config import ModelConfig, validate
from bonsaigpt.jax_engine.decode import JaxDecoder
from bonsaigpt.jax_engine.engine import JaxEngine
from bonsaigpt.spec import initial_value, parameters


def one_scan(config: ModelConfig, params: Any, prompt_T: Array, total: int) -> Array:
    """GPT-2 token by token, prompt and all, as one finds it in tutorials; the tokens (total,)."""
    L, H, K, S = config.n_layer, config.n_head, config.head_width, config.block_size
    body = params["transformer"]

    def layer_norm(x: Array, weight: Array) -> Array:
        x = x - x.mean(-1, keepdims=True)
        return x / jnp.sqrt((x * x).mean(-1, keepdims=True) + config.norm.eps) * weight

    def step(carry: tuple[Array, Array, Array], position: Array) -> tuple[tuple[Array, Array, Array], Array]:
        keys, values, token = carry
        token = jnp.where(position < len(prompt_T), prompt_T[jnp.minimum(position, len(prompt_T) - 1)], token)
        x = body["wte"]["weight"][token] + body["wpe"]["weight"][position]
        for layer in range(L):
            block = body["h"][str(layer)]
            q, k, v = jnp.split(layer_norm(x, block["ln_1"]["weight"]) @ block["attn"]["c_attn"]["weight"].T, 3)
            keys = keys.at[layer, :, position].set(k.reshape(H, K))
            values = values.at[layer, :, position].set(v.reshape(H, K))
            scores = jnp.einsum("hk,hsk->hs", q.reshape(H, K), keys[layer]) / K**0.5
            shares = jax.nn.softmax(jnp.where(jnp.arange(S) <= position, scores, -jnp.inf))
            x = x + jnp.einsum("hs,hsk->hk", shares, values[layer]).reshape(-1) @ block["attn"]["c_proj"]["weight"].T
            h = jax.nn.gelu(
                layer_norm(x, block["ln_2"]["weight"]) @ block["mlp"]["c_fc"]["weight"].T, approximate=False
            )
            x = x + h @ block["mlp"]["c_proj"]["weight"].T
        logits = layer_norm(x, body["ln_f"]["weight"]) @ body["wte"]["weight"].T
        return (keys, values, logits.argmax(-1).astype(jnp.int32)), token

    empty = jnp.zeros((L, H, S, K))
    return lax.scan(step, (empty, empty, prompt_T[0]), jnp.arange(total))[1]


def parts(decoder: JaxDecoder) -> dict[str, Summary]:
    """Milliseconds of the calls that a text is made of, a token, and of one that computes nothing."""
    params, block = decoder._params, decoder.block_size
    token, start = np.array([3], np.int32), np.array([block - 20], np.int32)
    piece, row = np.zeros(16, np.int32), np.int32(0)
    nothing = jax.jit(lambda params, cache, token: (cache, token + 1), donate_argnums=1)
    calls: dict[str, tuple[Callable[[], tuple[Any, ...]], int]] = {
        "nothing, with all weights as arguments": (lambda: nothing(params, decoder._cache, token), 1),
        "a step": (lambda: decoder._step(params, decoder._cache, token, start, seen=block), 1),
        "a step of eight read ahead": (
            lambda: decoder._ahead(params, decoder._cache, token, start, seen=block, steps=8),
            8,
        ),
        "a piece of 16 of a prompt": (
            lambda: decoder._prefill(params, decoder._cache, row, piece, row, np.int32(8), seen=block, every=False),
            1,
        ),
    }
    found: dict[str, Summary] = {}
    for name, (call, count) in calls.items():
        times: list[float] = []
        for _ in range(61):
            began = time.perf_counter()
            decoder._cache, *told = call()
            jax.tree.map(np.asarray, told)
            times.append(1e3 * (time.perf_counter() - began) / count)
        found[name] = Summary.of(times[1:])  # the first compiles
    return found


def main() -> None:
    """Print tokens a second of both, the ratio round by round, and what the single calls take."""
    arguments = _arguments()
    sizes: dict[str, Any] = {"preset": arguments.preset}
    if arguments.preset is None:
        names = {"n_layer": "layers", "n_head": "heads", "n_embd": "width", "block_size": "block"}
        sizes = {name: getattr(arguments, flag) for name, flag in names.items()}
    config = validate({"model": sizes | {"vocab_size": arguments.vocab}}, origin="flags").model
    engine = JaxEngine(device="cpu")
    values = {p.name: initial_value(p, 0) * 3 for p in parameters(config) if p.tied_to is None}
    model = engine.model(config, values)
    prompt, total = np.arange(8, dtype=np.int32), config.block_size
    scan = jax.jit(lambda params, prompt: one_scan(config, params, prompt, total))
    decoder = engine.decoder(model, rows=1)

    def theirs() -> list[int]:
        return np.asarray(scan(model.params, jnp.asarray(prompt)))[8:].tolist()

    def ours() -> list[int]:
        decoder.truncate(0, 0)
        logits_V, text = decoder.prefill(0, prompt), list[int]()
        while len(prompt) + len(text) < total:
            text.append(int(logits_V.argmax()))
            if len(prompt) + len(text) < total:
                [logits_V] = decoder.step(np.array([0]), np.array(text[-1:]))
        return text

    rates: dict[str, list[float]] = {"stepping": [], "one scan": []}
    for number in range(1 + arguments.rounds):  # the first compiles
        texts: list[list[int]] = []
        for side, make in zip(rates.values(), (ours, theirs), strict=True):
            began = time.perf_counter()
            texts.append(make())
            if number:
                side.append((total - len(prompt)) / (time.perf_counter() - began))
        assert texts[0] == texts[1], "the two do not write the same text"
    ratio = Summary.of([a / b for a, b in zip(*rates.values(), strict=True)])
    sides = {name: Summary.of(values) for name, values in rates.items()}
    calls = parts(decoder)
    rows = [(name, f"{side.median:,.0f} tokens/s") for name, side in sides.items()]
    rows.append((f"ratio, {ratio.n} rounds", f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"))
    rows += [(name, f"{call.median:.3f} ms, at best {call.low:.3f}") for name, call in calls.items()]
    print(f"{machine()}\n")
    show(f"{config.n_layer} layers of width {config.n_embd}, block {total}", ("", "figure"), rows)
    finish(
        {
            "benchmark": "jax_decode",
            "sides": {name: side.as_dict() for name, side in sides.items()},
            "ratio": ratio.as_dict(),
            "ms": {name: call.as_dict() for name, call in calls.items()},
        }
    )


def _arguments() -> Any:
    flags = parser(__doc__ or "", "python benchmarks/jax_decode.py --preset baby --rounds 7")
    flags.add_argument("--preset", help="a model's size by its name (default: by the numbers below)")
    for name, value in (("layers", 4), ("heads", 4), ("width", 128), ("block", 64), ("vocab", 65)):
        flags.add_argument(f"--{name}", type=positive, default=value, help=f"of the model (default: {value})")
    flags.add_argument("--rounds", type=positive, default=9, help="in turns (default: 9)")
    return flags.parse_args()


if __name__ == "__main__":
    raise SystemExit(guarded(main))
