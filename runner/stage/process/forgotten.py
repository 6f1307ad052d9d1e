"""The requests that a stage holds nothing of any more, since a step of theirs was aborted."""

from __future__ import annotations

from runner.steps import Step


class Forgotten:
    """Until they are admitted again.

    The steps behind an aborted one may go on with its requests: they were sent before the master
    knew, or have them as donors. None of them can be computed, nor what else is in such a step be
    told apart any more, so they are aborted too. The rule is the same on every stage and asks for
    no message of its own.
    """

    def __init__(self) -> None:
        self._requests: set[int] = set()

    def reset(self) -> None:
        """A new epoch."""
        self._requests.clear()

    def keep_from(self, step: Step) -> bool:
        """Whether the step cannot be computed."""
        if not self._requests:
            return False
        going_on = {segment.request for segment in step.segments}
        going_on -= {admission.request for admission in step.admissions}
        going_on |= {admission.donor for admission in step.admissions if admission.reused}
        return not self._requests.isdisjoint(going_on)

    def computed(self, step: Step) -> None:
        if self._requests:
            self._requests.difference_update(step.releases)
            self._requests.difference_update(admission.request for admission in step.admissions)

    def aborted(self, step: Step) -> None:
        """Here, or by a stage before."""
        self._requests.difference_update(step.releases)
        self._requests.update(segment.request for segment in step.segments)
