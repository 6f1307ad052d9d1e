"""How a rollout ends where it does not end well, and what it only waits for."""

from __future__ import annotations


class RolloutFailed(Exception):
    """The end; the message is the reason in one sentence, for who made the edit."""


class NotNow(Exception):
    """Worth another try: who was asked cannot be reached, starts, or drains. In a few words."""
