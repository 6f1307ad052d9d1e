"""Groups that fail before any token advances: how long the next try waits."""

from __future__ import annotations

BARREN_EPOCHS = 3
FIRST_PAUSE_S, LAST_PAUSE_S = 10.0, 300.0


class BarrenEpochs:
    """`in_a_row` counts epochs that were formed and lost without a token of progress."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self._counts = True

    def begin(self) -> None:
        """A new epoch: it counts unless something speaks for it."""
        self._counts = True

    def excuse(self) -> None:
        """Whatever becomes of this epoch, it was no failure."""
        self._counts = False

    def progressed(self) -> None:
        """A token advanced."""
        self.in_a_row, self._counts = 0, False

    def lost(self) -> float:
        """The epoch is over. Seconds that the next try waits: 0 until three in a row failed, then
        10, 20, 40 ... 300."""
        if not self._counts:
            return 0.0
        self.in_a_row += 1
        beyond = self.in_a_row - BARREN_EPOCHS
        if beyond < 0:
            return 0.0
        return min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(beyond, 10))
