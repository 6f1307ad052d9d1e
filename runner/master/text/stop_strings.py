"""Stop strings in streamed text, found across the borders of pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Looks for stop strings in one request's text.

    Text that may be the beginning of a stop string is held back until it is certain. The result
    does not depend on how the text is cut into pieces: the match that ends first wins, and of
    those that end together the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def push(self, piece: str) -> str:
        """The text that may be shown now; a match sets `matched` and drops the rest."""
        if not self._stops:
            return piece
        text = self._held + piece
        found = min(
            ((start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0),
            default=None,
        )
        if found is not None:
            self.matched, self._held = True, ""
            return text[: found[1]]
        certain = len(text) - self._held_back(text)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, when the text has ended without a match."""
        held, self._held = self._held, ""
        return held

    def _held_back(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = min(len(text), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
