"""Text from a model: prefill, then one token at a time over a cache."""

from bonsaigpt.generate.session import generate, generate_text

__all__ = ["generate", "generate_text"]
