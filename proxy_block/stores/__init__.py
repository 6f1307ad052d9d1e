"""Where sessions are kept: interface is what a store does, sqlite and redis are the two that do it.

A third one implements SessionStore and passes tests/proxy_block/stores. What a session is, and what
is recorded in it, is session's.
"""
