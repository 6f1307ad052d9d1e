"""`python -m rollout` as a process, against a master and tiers that answer by the contract."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from contract.signature import signing_key
from contract.specs import GroupSpec, RankPart, render
from tests.rollout.small_master import TOKEN, SmallMaster, serves, small_master, step
from tests.waiting import free_ports, wait_for

WANTED = GroupSpec("d", "demo:wanted", (RankPart((0, 4)), RankPart((4, 8))))
FORMER = GroupSpec("d", "demo:former", WANTED.ranks)
WHOLE = [
    step("preparing", "fetching", "waiting", fetched_bytes=300_000_000, wanted_bytes=1_200_000_000),
    step("preparing", "prepared", "prepared"),
    step("draining", "prepared", "prepared"),
    step("loading", "loaded", "loading"),
    step("serving", "loaded", "loaded"),
]


@dataclass
class Run:
    code: int
    lines: list[str]
    reason: str


class Rollout:
    """Its files, and the process once it is started."""

    def __init__(self, folder: Path) -> None:
        self.spec, self.key = folder / "wanted.json", folder / "key"
        self.reason = folder / "reason"
        self.spec.write_text(render(WANTED))
        self.key.write_text(signing_key(TOKEN).hex())
        self.log = folder / "log"

    def start(self, master: str, *more: str, stall_s: float = 20) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "rollout", "--spec", str(self.spec), "--master", master]
        command += ["--signing-key-file", str(self.key), "--reason-file", str(self.reason)]
        command += ["--stall-s", str(stall_s), "--log-every-s", "0", *more]
        with self.log.open("wb") as log:
            return subprocess.Popen(command, stderr=log)

    def run(self, master: str, *more: str, stall_s: float = 20) -> Run:
        return self.ended(self.start(master, *more, stall_s=stall_s))

    def ended(self, process: subprocess.Popen[bytes]) -> Run:
        code = process.wait(60)
        lines = [json.loads(line)["message"] for line in self.log.read_text().splitlines()]
        reason = self.reason.read_text().strip() if self.reason.exists() else ""
        return Run(code, lines, reason)


@pytest.fixture
def rollout(tmp_path: Path) -> Rollout:
    return Rollout(tmp_path)


@pytest.fixture
def master() -> Iterator[SmallMaster]:
    with small_master(list(WHOLE), serves(FORMER)) as running:
        yield running


def test_a_swap_is_followed_to_its_answer(rollout: Rollout, master: SmallMaster) -> None:
    run = rollout.run(master.url)
    assert (run.code, run.reason) == (0, "")
    assert run.lines == [
        "preparing demo:wanted: rank 0 fetching 0.3 of 1.2 GB, "
        "rank 1 waiting for what is in force first, 0.3 of 1.2 GB",
        "preparing demo:wanted: rank 0 prepared, rank 1 prepared",
        "draining: what runs is finished before demo:wanted is loaded",
        "loading demo:wanted: rank 0 loaded, rank 1 loading",
        "demo:wanted serves; the master answers ' Paris.'",
    ]
    assert [spec["model_name"] for spec in master.pushed] == ["demo:wanted"]
    [(path, question, _)] = master.questions
    assert (path, question["model"]) == ("/v1/completions", "d")


def test_the_same_spec_again_is_only_the_question(rollout: Rollout, master: SmallMaster) -> None:
    master.serving = serves(WANTED)
    run = rollout.run(master.url)
    assert (run.code, len(run.lines), len(master.questions)) == (0, 1, 1)


def test_the_reason_is_that_of_the_rank_and_says_what_goes_on(
    rollout: Rollout, master: SmallMaster
) -> None:
    failed = step("failed", "prepared", "failed", reason="rank 1 cannot hold its part")
    failed["ranks"][1]["reason"] = "its weights take 9 GB of 4 GB"
    master.steps = [WHOLE[0], failed]
    run = rollout.run(master.url)
    assert run.code == 1
    assert run.reason == run.lines[-1]
    assert run.reason == (
        "demo:wanted: rank 1 cannot hold its part; rank 1: its weights take 9 GB of 4 GB; "
        "demo:former goes on serving"
    )
    assert not master.questions


def test_a_first_spec_is_tried_again_where_a_stage_has_died(
    rollout: Rollout, master: SmallMaster
) -> None:
    master.serving, failed = None, step("failed", "failed", reason="rank 0: silent for 3 s")
    master.scripts = [[failed], [failed]]
    run = rollout.run(master.url)
    assert (run.code, len(master.pushed)) == (0, 3)
    assert run.lines[0] == ("trying again: demo:wanted: rank 0: silent for 3 s; nothing is served")


def test_a_first_spec_that_fails_each_time_is_given_up(
    rollout: Rollout, master: SmallMaster
) -> None:
    master.serving, master.steps = None, [step("failed", "failed", reason="no such model")]
    run = rollout.run(master.url)
    assert (run.code, run.reason) == (1, "demo:wanted: no such model; nothing is served")
    assert len(master.pushed) == 3


def test_what_the_master_refuses_ends_at_once_in_its_words(
    rollout: Rollout, master: SmallMaster
) -> None:
    master.refusal = 409, {"error": {"message": "swap_running: demo:third (abc) is brought in"}}
    run = rollout.run(master.url)
    assert run.code == 1
    expected = "the master refuses the spec: swap_running: demo:third (abc) is brought in"
    assert run.reason == expected


def test_a_master_of_an_older_image_is_named(rollout: Rollout, master: SmallMaster) -> None:
    master.refusal = 404, {"error": {"message": "PUT /group/spec: Not Found"}}
    assert "its image is older than this one" in rollout.run(master.url).reason


def test_a_master_that_restarts_gets_the_spec_again(rollout: Rollout, master: SmallMaster) -> None:
    master.forgets = 2
    run = rollout.run(master.url)
    assert run.code == 0
    assert len(master.pushed) == 3


def test_a_master_that_forgets_each_time_is_not_followed_for_ever(
    rollout: Rollout, master: SmallMaster
) -> None:
    master.forgets = 100
    run = rollout.run(master.url)
    assert run.code == 1
    assert "has forgotten the spec 5 times" in run.reason


def test_what_does_not_answer_now_is_waited_for(rollout: Rollout, master: SmallMaster) -> None:
    later = 503, {"error": {"message": "this process is draining and ends soon"}}
    master.busy = [later, later]
    run = rollout.run(master.url)
    assert run.code == 0
    assert "waiting: the master answers 503: this process is draining and ends soon" in run.lines


def test_nothing_that_moves_ends_it_and_says_where(rollout: Rollout, master: SmallMaster) -> None:
    master.steps = [WHOLE[0]]
    run = rollout.run(master.url, stall_s=1)
    assert run.code == 1
    assert run.reason == f"nothing has moved for 1 s: {run.lines[0]}"


def test_one_question_without_an_answer_does_not_end_a_long_drain(
    rollout: Rollout, master: SmallMaster
) -> None:
    busy = 503, {"error": {"message": "busy"}}
    master.steps = [*[WHOLE[2]] * 4, busy, *WHOLE[2:]]
    run = rollout.run(master.url, stall_s=1)  # less than four steps take
    assert (run.code, run.reason) == (0, "")
    assert "waiting: the master answers 503: busy" in run.lines


def test_a_master_that_is_not_there(rollout: Rollout) -> None:
    (port,) = free_ports(1)
    run = rollout.run(f"http://127.0.0.1:{port}", stall_s=1)
    assert run.code == 1
    assert f"the master at http://127.0.0.1:{port} does not answer" in run.reason


def test_the_outermost_tier_is_asked_with_a_key_of_its_own(
    rollout: Rollout, master: SmallMaster, tmp_path: Path
) -> None:
    key = tmp_path / "api_key"
    key.write_text("sk-of-the-rollout\n")
    with small_master([]) as front:
        # Its file of hashes is older yet.
        front.busy = [(401, {"error": {"message": "this API key is not known here"}})]
        tiers = ["--block", "http://127.0.0.1:9", "--block-id", "b"]
        tiers += ["--inference-server", front.url, "--api-key-file", str(key)]
        run = rollout.run(master.url, *tiers)
    assert run.code == 0
    assert "the inference server answers" in run.lines[-1]
    assert [(question["model"], header) for _, question, header in front.questions] == [
        ("b", "Bearer sk-of-the-rollout")
    ] * 2
    assert not master.questions


def test_a_block_is_asked_where_no_server_stands_before_it(
    rollout: Rollout, master: SmallMaster
) -> None:
    with small_master([]) as block:
        run = rollout.run(master.url, "--block", block.url, "--block-id", "b")
        assert (run.code, len(block.questions)) == (0, 1)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((400, {"error": {"message": "model: no such block"}}), "with 400: model: no such block"),
        ((200, {"choices": []}), "with something that is no answer"),
    ],
)
def test_an_answer_that_is_none(
    rollout: Rollout, master: SmallMaster, answer: tuple[int, dict[str, object]], words: str
) -> None:
    master.answer = answer
    run = rollout.run(master.url)
    assert run.code == 1
    assert words in run.reason


def test_a_question_that_gets_no_answer(rollout: Rollout, master: SmallMaster) -> None:
    master.answer = 503, {"error": {"message": "rank 1 is gone"}}
    run = rollout.run(master.url, stall_s=2)
    assert run.code == 1
    assert "got no answer within 2 s: it answers 503: rank 1 is gone" in run.reason


def test_an_answer_of_another_spec_is_no_proof(rollout: Rollout, master: SmallMaster) -> None:
    master.serving = serves(WANTED)
    with small_master([]) as block:
        master.busy = [(503, {}), (200, {"serving": None, "swap": None})]
        master.busy += [(200, {"serving": serves(FORMER), "swap": None})]
        run = rollout.run(master.url, "--block", block.url, "--block-id", "b")
    assert run.code == 1
    assert run.reason == (
        "demo:wanted was replaced while it was asked: demo:former goes on serving"
    )


def test_a_pod_that_is_told_to_end_says_so(rollout: Rollout, master: SmallMaster) -> None:
    master.steps = [WHOLE[0]]
    process = rollout.start(master.url)
    wait_for(lambda: master.pushed, what="the push")
    process.send_signal(signal.SIGTERM)
    run = rollout.ended(process)
    assert run.code == 1
    assert "was told to end before its time" in run.reason


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("spec", "{}", "deployment_name"),
        ("spec", '{"deployment_name": "d", "model_name": ', "--spec"),
        ("key", "not a key", "must hold 64 hexadecimal digits"),
    ],
)
def test_what_it_is_started_with_is_checked(
    rollout: Rollout, master: SmallMaster, name: str, text: str, words: str
) -> None:
    getattr(rollout, name).write_text(text)
    run = rollout.run(master.url)
    assert run.code == 2
    assert words in run.reason
    assert not master.pushed


def test_nothing_is_brought_in_that_could_not_be_asked(
    rollout: Rollout, master: SmallMaster, tmp_path: Path
) -> None:
    missing = str(tmp_path / "missing")
    run = rollout.run(master.url, "--inference-server", master.url, "--api-key-file", missing)
    assert run.code == 2
    assert run.reason.startswith(f"--api-key-file {missing}: cannot be read")
    assert not master.pushed


def test_another_key_changes_nothing(rollout: Rollout, master: SmallMaster) -> None:
    rollout.key.write_text(signing_key(b"another token of sixteen bytes").hex())
    run = rollout.run(master.url, stall_s=1)
    assert run.code == 1
    assert "the signature is not that of this request by the stack's key" in run.reason
    assert not master.pushed


def test_no_torch_and_nothing_of_the_deployment() -> None:
    """It runs in the proxy block's image."""
    code = "import sys, rollout.__main__; print([n for n in ('torch', 'pulumi', 'infra') "
    code += "if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
