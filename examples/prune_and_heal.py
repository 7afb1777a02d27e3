"""Take half of the values out of the MLPs of a trained GPT, and see what healing gives back.

    python examples/prune_and_heal.py         # offline; about three minutes on two CPU cores

Each MLP weight becomes a sum of Kronecker products or a product of low rank, whichever fits its activations better;
then the small model is trained on, with the whole one as its teacher.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import bonsaigpt as bonsai


def main(steps: int = 300, heal: int = 100, calibrate: int = 65_536, settings: Mapping[str, Any] | None = None) -> None:
    """Train, compress with and without healing, and print what each cost."""
    whole = bonsai.train("stdlib", name="example-whole", steps=steps, auto_resume=True, settings=settings)
    dense = whole.eval().loss
    print(f"{whole}: {dense:.4f} nats a token")
    for name, how in {"cut": {}, "healed": {"heal": heal, "distill": True}}.items():
        small = whole.compress(0.5, name=f"example-{name}", calibrate=calibrate, quiet=True, **how)
        loss = small.eval().loss
        print(f"{small}: {loss:.4f} ({loss - dense:+.4f})")
        print(small.sample("def ", tokens=60, temperature=0))


if __name__ == "__main__":
    main()
