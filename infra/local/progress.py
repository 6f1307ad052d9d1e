"""What `up` says while it works: a spinner on a terminal, lines elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.status import Status


class Progress:
    """Everything that is printed while a stack runs goes through here."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._status: Status | None = None
        self._waiting_for = ""

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def fail(self, text: str) -> None:
        """The last word, in red where there are colours."""
        self._console.print(f"error: {text}", markup=False, style="red")

    def wait_for(self, text: str) -> None:
        """What is being waited for now; said again only when it changes."""
        if text == self._waiting_for:
            return
        self._waiting_for = text
        if not self._console.is_terminal:
            self.say(text)
        elif self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def done(self) -> None:
        """Nothing is being waited for any more."""
        self._waiting_for = ""
        if self._status is not None:
            self._status.stop()
            self._status = None
