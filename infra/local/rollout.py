"""A spec brought into the group of this machine: the program of the cluster's Job, as a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from contract.specs import MOST_RANKS
from infra.local.process import die_with_parent

# A person looks at it.
_LOG_EVERY_S = 0.5
# Who was killed follows what it began when it is started again.
_STARTS = 3
_ASK_S = 5.0


@dataclass(frozen=True)
class RolloutDefinition:
    """`text` is the wanted spec; it lies in `wanted`, and once it has answered in `served`, which
    a master that starts reads. `questions` are the options that say whom to ask."""

    text: str
    wanted: str
    served: str
    signing_key: str
    reason: str
    log: str
    stall_s: float
    questions: tuple[str, ...]

    @property
    def master_url(self) -> str:
        """Of the group."""
        return self.questions[self.questions.index("--master") + 1]

    @property
    def command(self) -> Sequence[str]:
        return (
            *(sys.executable, "-m", "rollout", "--spec", self.wanted),
            *("--signing-key-file", self.signing_key, "--reason-file", self.reason),
            *("--stall-s", f"{self.stall_s:g}", "--log-every-s", str(_LOG_EVERY_S)),
            *self.questions,
        )


async def roll_out(definition: RolloutDefinition, say: Callable[[str], None]) -> str:
    """Why it failed, "" once the spec has answered. `say` gets each line of progress."""
    try:
        return await _rolled_out(definition, say)
    except OSError as error:  # as on a full disk
        return f"the rollout cannot be run: {error}"


async def _rolled_out(definition: RolloutDefinition, say: Callable[[str], None]) -> str:
    for start in range(1, _STARTS + 1):
        _begin(definition)
        code, last = await _run(definition, say)
        if code >= 0 or start == _STARTS:
            break
        say(f"the rollout was killed by signal {-code}; it is started again")
    if code:
        return _reason(Path(definition.reason)) or f"the rollout ended with code {code}: {last}"
    replace_file(Path(definition.served), definition.text)
    return ""


async def ranks_in_use(client: httpx.AsyncClient, definition: RolloutDefinition) -> int:
    """How many ranks the group has a use for: by what it serves, and by what is on its way in.
    MOST_RANKS where it does not say."""
    try:
        async with asyncio.timeout(_ASK_S):
            answer = await client.get(f"{definition.master_url}/group/spec", timeout=_ASK_S)
        told = answer.json()
        serving, swap = told["serving"], told["swap"]
        served = 0 if serving is None else len(serving["spec"]["ranks"])
        goes_on = swap is not None and swap["phase"] not in ("serving", "failed")
        return max(served, len(swap["ranks"]) if goes_on else 0)
    except (httpx.HTTPError, TimeoutError, ValueError, KeyError, TypeError):
        return MOST_RANKS


async def _run(definition: RolloutDefinition, say: Callable[[str], None]) -> tuple[int, str]:
    """Its exit code, and the last line that it said."""
    process = await asyncio.create_subprocess_exec(
        *definition.command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        process_group=0,
        preexec_fn=die_with_parent(),
    )
    try:
        last = await _relay(process, Path(definition.log), say)
        return await process.wait(), last
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _begin(definition: RolloutDefinition) -> None:
    Path(definition.wanted).write_text(definition.text, "utf-8")
    Path(definition.reason).unlink(missing_ok=True)


async def _relay(process: asyncio.subprocess.Process, log: Path, say: Callable[[str], None]) -> str:
    """Its log lines into the file and their messages to whoever waits; returns the last one."""
    assert process.stderr is not None
    message = "it said nothing"
    with log.open("ab") as file:
        async for line in process.stderr:
            file.write(line)
            file.flush()
            message = _message(line)
            say(message)
    return message


def _message(line: bytes) -> str:
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line.decode("utf-8", "replace").strip()


def _reason(path: Path) -> str:
    return path.read_text("utf-8").strip() if path.is_file() else ""


def replace_file(path: Path, text: str) -> None:
    """In one step: whoever reads it has the one text or the other."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)
