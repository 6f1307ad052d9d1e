"""Which block each session is with, as far as this process has seen it."""

from __future__ import annotations

from collections import OrderedDict

MAX_SESSIONS = 10_000


class SessionBlocks:
    """The last MAX_SESSIONS of them. `name` is what the client asked for: an alias, "" where a
    selection query chose."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[tuple[str, str], str] = OrderedDict()

    def get(self, name: str, session_id: str) -> str | None:
        """The block's id."""
        return self._sessions.get((name, session_id))

    def remember(self, name: str, session_id: str, block_id: str) -> None:
        self._sessions[name, session_id] = block_id
        self._sessions.move_to_end((name, session_id))
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
