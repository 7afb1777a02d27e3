"""How the turns of a dialogue are written down, for whoever trains on them and whoever talks with the model."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Template"]


@dataclass(frozen=True, kw_only=True)
class Template:
    """How turns are written down; the model should have been trained on such texts."""

    system: str = ""
    """Stands before the first turn."""
    user: str = "User: "
    """Before what the user says."""
    assistant: str = "Assistant: "
    """Before what the model says; a space at the end is the model's to write where its tokens begin with one."""
    end: str = "\n"
    """After each turn. The model's turn ends where this would begin, or, if it is mere space, this and the user's
    role."""

    def turn(self, text: str) -> str:
        """What the user's turn adds, up to where the model goes on."""
        return f"{self.user}{text}{self.end}{self.assistant}"

    @property
    def stop(self) -> str:
        """Where the model's turn ends."""
        return self.end if self.end.strip() else self.end + self.user.rstrip()
