"""Text from a model: prefill, then one token at a time over a cache."""

from bonsaigpt.generate.requests import Completion, Event, Finish, LogProb, Request
from bonsaigpt.generate.session import Session
from bonsaigpt.generate.writing import best_first, generate, generate_text

__all__ = [
    "Completion",
    "Event",
    "Finish",
    "LogProb",
    "Request",
    "Session",
    "best_first",
    "generate",
    "generate_text",
]
