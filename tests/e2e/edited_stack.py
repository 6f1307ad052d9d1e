"""A local stack whose model is edited while users ask, and what each of its models answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

from tests.e2e.local_stack import LocalStack
from tests.e2e.seen import Seen
from tests.e2e.streams import SUBJECTS
from tests.waiting import wait_for

BLOCK = "pytorch-block-3"
TOKENS = 24
USERS = 4
EDIT_LIMIT_S = 300
BACK_WITHIN_S = 120


class EditedStack:
    """Serves the first of `models`. `calm` is what each of them answers, once it has been served:
    by its name, then by prompt."""

    def __init__(self, folder: Path, models: Sequence[str]) -> None:
        self.models = tuple(models)
        self.calm: dict[str, dict[str, Seen]] = {}
        sets = (
            f"common_params.model_name={self.models[0]}",
            "common_params.max_model_len=1024",
            # So that memory holds two of them.
            "common_params.max_concurrent_requests=8",
            f"per_rank_params={ranks('', '')}",
        )
        self._local = LocalStack(folder, ranks=2, sets=sets)

    def __enter__(self) -> EditedStack:
        self._local.__enter__()
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._local.__exit__(*error)

    @property
    def url(self) -> str:
        return self._local.url

    @property
    def folder(self) -> Path:
        """The state of what runs."""
        return self._local.folder / ".splitstack" / "local"

    @property
    def signing_key(self) -> Path:
        """Of the group."""
        return self.folder / "signing_key"

    def apply(self, *sets: str) -> subprocess.CompletedProcess[str]:
        given = [part for item in sets for part in ("--set", item)]
        return self._local.run("apply", "-s", "local", *given, limit_s=EDIT_LIMIT_S)

    def serve(self, model: str) -> None:
        """An edit that has to succeed."""
        self.change(f"common_params.model_name={model}")
        if model not in self.calm:
            self.calm[model] = self.ask_all()

    def change(self, *sets: str) -> None:
        edit = self.apply(*sets)
        assert edit.returncode == 0, edit.stdout + edit.stderr

    def ask_all(self) -> dict[str, Seen]:
        async def run() -> dict[str, Seen]:
            async with httpx.AsyncClient(base_url=self.url, timeout=180) as client:
                return {prompt: await ask(client, prompt) for prompt in SUBJECTS}

        return asyncio.run(run())

    def model_of(self, prompt: str, seen: Seen) -> str:
        """Whose answer it is, every word of it and what was counted."""
        found = [model for model, calm in self.calm.items() if calm[prompt] == seen]
        assert len(found) == 1, (prompt, seen)
        return found[0]

    def served(self) -> str:
        """Which of the models answers now; waits until one does."""
        wait_for(lambda: self._local.status()["phase"] == "ready", BACK_WITHIN_S, "ready")
        [model] = {self.model_of(*item) for item in self.ask_all().items()}
        return model

    def while_asked(
        self, work: Callable[[], None], *, least: int = 0, losing: bool = False
    ) -> list[tuple[str, Seen]]:
        """What users were told, who ask without a pause while `work` is done, and until there are
        `least` answers. With `losing` a request may end with an error."""
        found: list[tuple[str, Seen]] = []

        async def use(client: httpx.AsyncClient, number: int, done: asyncio.Event) -> None:
            turn = number
            while not (done.is_set() and len(found) >= least):
                prompt = SUBJECTS[turn % len(SUBJECTS)]
                try:
                    found.append((prompt, await ask(client, prompt, stream=turn % 2 == 1)))
                except (AssertionError, httpx.HTTPError):
                    if not losing:
                        raise
                    await asyncio.sleep(0.1)
                turn += 3

        async def run() -> None:
            done = asyncio.Event()
            async with (
                httpx.AsyncClient(base_url=self.url, timeout=180) as client,
                asyncio.TaskGroup() as users,
            ):
                for number in range(USERS):
                    users.create_task(use(client, number, done))
                try:
                    await asyncio.to_thread(work)
                finally:
                    done.set()

        asyncio.run(run())
        return found

    def aim_at(self, who: str) -> Callable[[], None]:
        """Kills that process, or the "rollout" of an edit, where it is there then."""
        status = self._local.status()
        pids = [row["pid"] for row in status["processes"] if row["name"] == who]

        def kill() -> None:
            for pid in _rollouts(status["supervisor_pid"]) if who == "rollout" else pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        return kill

    def process_ids(self) -> dict[str, int]:
        return {name: row["pid"] for name, row in self._local.processes().items()}

    def master(self) -> str:
        url: str = self._local.status()["master_url"]
        return url

    def reason(self) -> str:
        """Why it is not ready, "" where it is."""
        return str(self._local.status()["reason"])

    def group(self) -> dict[str, Any]:
        """What the master serves, and its swap."""
        found: dict[str, Any] = httpx.get(f"{self.master()}/group/spec", timeout=30).json()
        return found


def ranks(*layers: str) -> str:
    """Values of `per_rank_params`, by rank; "" leaves the layers to the plan. Memory is said, for
    how much there is changes on a machine that does other things."""
    rows = [
        {"rank": rank, "memory": "2Gi", **({"layers": given} if given else {})}
        for rank, given in enumerate(layers)
    ]
    return json.dumps(rows)


def _rollouts(supervisor: int) -> list[int]:
    children = psutil.Process(supervisor).children()
    return [one.pid for one in children if "rollout" in one.cmdline()]


async def ask(client: httpx.AsyncClient, prompt: str, *, stream: bool = False) -> Seen:
    body: dict[str, Any] = {
        "model": BLOCK,
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "repetition_penalty": 1.0,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    seen = Seen()
    await seen.ask(client, body, {})
    return seen
