"""Reading on where the stream of a container's log was cut."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any

import pytest

from infra.inspection import pod_logs


def test_the_kubelets_own_word_in_a_stream_hides_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = "2026-11-30T10:00:0{}.000000001Z".format
    said = "failed to create fsnotify watcher: too many open files"
    streams = iter(
        [[f"{stamp(0)} one", said], [f"{stamp(0)} one", f"{stamp(1)} two", f"{stamp(2)} three"]]
    )
    monkeypatch.setattr(pod_logs, "_read", lambda *_: next(streams))
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    source: Any = SimpleNamespace(label="pod/stage")
    position = pod_logs._Position()
    for _ in range(2):
        pod_logs._Pump(source, lines, position)._thread.join()
    found = [lines.get() for _ in range(4)]
    assert found == [f"pod/stage {text}" for text in ("one", said, "two", "three")]
    assert lines.empty()
