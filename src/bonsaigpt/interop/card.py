"""The model card: what a model is, how it was made and what was measured, for the README.md of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["model_card", "transformers_usage"]

_CARD = """---
library_name: {library}
pipeline_tag: text-generation
tags:
- bonsaigpt
---

# {name}

A causal language model of {parameters} parameters: {n_layer} layers of width {n_embd}, a context of {block_size}
tokens, a vocabulary of {vocabulary}. {form} Trained with BonsaiGPT.

```python
{usage}
```

{tables}
"""

_USAGE = """from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}")
inputs = tokenizer("{prompt}", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=50, do_sample=True)[0]))"""


def transformers_usage(name: str, prompt: str) -> str:
    """Python that goes on with a prompt by the stock classes."""
    return _USAGE.format(name=name, prompt=prompt)


def model_card(
    name: str, facts: Mapping[str, object], measured: Mapping[str, str], made: Mapping[str, str], settings: str = ""
) -> str:
    """A README.md in Markdown.

    Args:
        facts: what the text says of the model: parameters and sizes; its form, in a sentence; the library that reads
            it, and Python that uses it.
        measured: figures, each with its unit and what it was measured on.
        made: how the model came about.
        settings: the configuration that trains it again.
    """
    parts = [_table("Measured", measured), _table("Made", made)]
    if settings:
        parts.append(f"## Settings\n\n```toml\n{settings.strip()}\n```")
    return _CARD.format(name=name, **facts, tables="\n\n".join(part for part in parts if part))


def _table(title: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join([f"## {title}", "", "| | |", "|---|---|", *lines])
