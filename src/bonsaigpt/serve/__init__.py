"""Models over HTTP: the API that OpenAI's clients speak, and the playground page."""

from bonsaigpt.serve.limits import Limits
from bonsaigpt.serve.models import Models, Served

__all__ = ["Limits", "Models", "Served"]
