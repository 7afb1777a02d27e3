"""Functions as compiled programs: one for each configuration and set of shapes, and what XLA tells of them.

A configuration is bound to a function before it is compiled, so it is a constant of the program. Programs of equal
configurations are the same object: a model that is opened twice is compiled once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bonsaigpt.config import ModelConfig, RunConfig

__all__ = ["Program", "Report", "program"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What compiling took and made, as XLA counts it."""

    seconds: float
    """Of tracing and compiling."""
    flops: float
    """Operations of one call."""
    bytes_accessed: float
    """Of one call: operands and results of all fused operations."""
    arguments: int
    """Bytes of the arguments; those that are donated are the results as well."""
    results: int
    """Bytes of the results that have memory of their own."""
    temporaries: int
    """Bytes that are held besides, at the fullest moment."""

    @property
    def total(self) -> int:
        """Bytes at the fullest moment."""
        return self.arguments + self.results + self.temporaries


class Program:
    """A compiled function.

    Args:
        function: its first argument is the configuration.
        donate: positions of arguments, after the configuration, whose memory the results may take.
        static: names of keyword arguments that are constants: each value makes a program of its own.
        results: where the results are to lie on a mesh; XLA's choice by default.
        few_rows: whether it multiplies few rows at a time, as decoding does, and not those of a batch.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        config: ModelConfig | RunConfig,
        *,
        donate: Sequence[int] = (),
        static: Sequence[str] = (),
        results: Any = None,
        few_rows: bool = False,
    ) -> None:
        self.traces = 0
        """How often the function was traced, that is compiled anew."""

        def traced(*arguments: Any, **constants: Any) -> Any:
            self.traces += 1
            return function(config, *arguments, **constants)

        traced.__name__ = function.__name__.strip("_")
        where = {} if results is None else {"out_shardings": results}
        self._jitted = jax.jit(
            traced,
            donate_argnums=tuple(donate),
            static_argnames=tuple(static),
            compiler_options={} if few_rows else _options(),
            **where,
        )

    def __call__(self, *arguments: Any, **constants: Any) -> Any:
        return self._jitted(*arguments, **constants)

    def report(self, *arguments: Any, **constants: Any) -> Report:
        """Compile for arguments of these shapes (``jax.ShapeDtypeStruct`` will do) and tell of it; nothing is run."""
        began = time.perf_counter()
        compiled = self._jitted.lower(*arguments, **constants).compile()
        seconds = time.perf_counter() - began
        memory: Any = compiled.memory_analysis()
        cost = compiled.cost_analysis() or {}
        return Report(
            seconds=seconds,
            flops=cost.get("flops", 0.0),
            bytes_accessed=cost.get("bytes accessed", 0.0),
            arguments=memory.argument_size_in_bytes,
            results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
            temporaries=memory.temp_size_in_bytes,
        )


@cache
def _options() -> dict[str, Any]:
    """For XLA. On a CPU it gives products to YNNPACK, which multiplies a batch by a transposed matrix at half the speed
    of Eigen (but 16 rows at twice its speed); reductions stay there, where they are thrice as fast. Versions that do
    not know the option go without."""
    if jax.default_backend() != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    try:
        jax.jit(jnp.negative, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


_PROGRAMS: dict[tuple[Callable[..., Any], str, Mesh | None], Program] = {}


def program(
    function: Callable[..., Any], config: ModelConfig | RunConfig, *, mesh: Mesh | None = None, **options: Any
) -> Program:
    """The program of a function and a configuration on a mesh; ``options`` as of ``Program``, always the same for these
    three."""
    key = (function, config.model_dump_json(), mesh)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = Program(function, config, **options)
    return _PROGRAMS[key]
