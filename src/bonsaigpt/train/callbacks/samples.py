"""What the model writes as it learns: ``samples/step-000500.txt``, and a few lines on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from bonsaigpt.errors import BonsaiError
from bonsaigpt.files import write_text, writing
from bonsaigpt.train.events import Callback, EvalEvent, StartEvent

__all__ = ["Samples"]


class Samples(Callback):
    """After each evaluation; the sampling noise is a function of the seed, so training is not disturbed."""

    def __init__(self, prompt: str, tokens: int, console: Console) -> None:
        self._prompt, self._tokens, self._console = prompt, tokens, console

    def on_start(self, event: StartEvent) -> None:
        self._folder: Path = event.run.path / "samples"
        with writing(self._folder):
            self._folder.mkdir(exist_ok=True)

    def on_eval(self, event: EvalEvent) -> None:
        try:
            text = self._prompt + event.write(self._prompt, self._tokens)
        except BonsaiError as error:  # a prompt that cannot be encoded must not end a training run
            self._console.print(f"[yellow]no sample: {escape(str(error))}[/]", highlight=False)
            return
        write_text(self._folder / f"step-{event.step:06d}.txt", text)
        shown = "\n".join(text.strip().splitlines()[:4])
        self._console.print(Text(shown, style="dim italic", overflow="fold"))
