"""What the stages' memory suffices for, where that is less than they thought."""

from __future__ import annotations

from runner.master.engine.micro_batches import FRESH_STEPS
from runner.master.engine.step_cost import MIN_CHUNK


class ObservedLimits:
    """`budget` is the number of tokens that fill up a step, `places` the number of KV positions
    that may be reserved beside one another. Both shrink at each shortage, so that no one loops for
    ever, and are what they were after FRESH_STEPS steps without one: it may have passed.
    """

    def __init__(self, budget: int, places: int) -> None:
        self._given = budget, places
        self.budget, self.places = budget, places
        self._steps_left = 0

    @property
    def least(self) -> int:
        """A step's budget is never smaller."""
        return min(self._given[0], MIN_CHUNK)

    @property
    def short(self) -> bool:
        """Memory was, lately."""
        return self._steps_left > 0

    def memory_is_short(self) -> None:
        self._steps_left = FRESH_STEPS

    def smaller_steps(self, tokens: int) -> None:
        """A step of so many was too large."""
        self.budget = min(self.budget, max(self.least, tokens // 2))

    def fewer_places(self, reserved: int) -> None:
        """More than these were too many."""
        self.places = min(self.places, reserved)

    def computed(self) -> None:
        """A step came back."""
        if self._steps_left:
            self._steps_left -= 1
            if not self._steps_left:
                self.budget, self.places = self._given
