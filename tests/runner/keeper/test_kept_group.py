"""Keepers and their engines as processes: what ends, what forms again, what is left behind."""

import json
import os
import signal
import threading

import pytest

from contract.carry import Beginning, Carry, field, parse_line
from contract.signature import signing_key
from rollout.bringing_in import bring_in
from rollout.errors import RolloutFailed
from rollout.group import Group
from tests.runner.keeper.kept_group import DEPLOYMENT, TOKEN, KeptGroup, save_model, streamed
from tests.runner.keeper.small_engine import expected, name
from tests.waiting import wait_for

PROMPT, COUNT = "The capital of France is", 60
BODY = {"model": DEPLOYMENT, "prompt": PROMPT, "max_tokens": COUNT, "temperature": 0}
CHAT = {
    "model": DEPLOYMENT,
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": COUNT,
    "stream_options": {"include_usage": True},
}
STANDS = "has not stepped for 2 s"
WHOLE = "".join(map(name, expected(PROMPT, COUNT)))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    made = KeptGroup(tmp_path_factory.mktemp("kept"), step_limit_s=2.0)
    made.start_all()
    try:
        yield made
    finally:
        made.close()
        wait_for(lambda: not made.engines(), what="no engine is left")
        wait_for(lambda: not made.shared(), what="no shared memory is left")


@pytest.fixture
def group(kept):
    """The same for every test, which leaves it able to serve."""
    kept.wait_ready()
    return kept


def text_of(events):
    return "".join(
        choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        for event in events
        if isinstance(event, dict)
        for choice in event["choices"]
    )


class Asked(threading.Thread):
    """A stream that is read while something is done to the group."""

    def __init__(self, group, path="/v1/completions", body=BODY, **headers):
        super().__init__(daemon=True)
        self.events, self._ask = [], lambda: streamed(group, path, body, **headers)
        self.error = None
        self.start()
        wait_for(lambda: len(self.events) > 3, what="the stream has begun")

    def run(self):
        try:
            for event in self._ask():
                self.events.append(event)
        except Exception as error:
            self.error = error

    def whole(self):
        self.join(60)
        assert self.error is None
        assert not self.is_alive()
        return self.events


def stands_again(group, before):
    wait_for(lambda: group.log(0).count(STANDS) > before, what="it was seen to stand still")


def test_its_answers_are_the_engines_and_tell_ids_to_who_asks(group):
    plain = list(streamed(group, "/v1/completions", BODY))
    assert text_of(plain) == WHOLE
    assert not any("token_ids" in choice for event in plain for choice in event["choices"])
    told = [
        parse_line(event.encode())
        for event in streamed(group, "/v1/completions", BODY, **{"X-Carry": "ids"})
        if isinstance(event, str)
    ]
    assert isinstance(told[0], Beginning)
    ids = [token for line in told[1:] for token in line.ids]
    assert ids == expected(PROMPT, COUNT)[:-1]
    # As after the death of rank 0's keeper: the body again, behind what was delivered.
    carry = Carry(told[0], (tuple(ids[:20]),))
    again = [
        event
        for event in streamed(
            group, "/v1/completions", {**BODY, "carry": field(carry)}, **{"X-Carry": "ids"}
        )
        if isinstance(event, dict)
    ]
    assert text_of(again) == "".join(map(name, expected(PROMPT, COUNT)[20:]))
    assert {event["id"] for event in again} == {told[0].id}
    wrong = Carry(Beginning("x", 1, 0, "another", told[0].prompt, 1), ((1, 2),))
    refused = group.client.post(
        "/v1/completions", json={**BODY, "stream": True, "carry": field(wrong)}
    )
    assert refused.status_code == 409
    assert "model_commit" in refused.json()["error"]["message"]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_engine_that_is_killed_costs_a_pause(group, rank):
    epoch, before = group.topology()["epoch"], group.engines()
    asked, questions = Asked(group, "/v1/chat/completions", CHAT), len(group.asked())
    whole = threading.Thread(target=lambda: answers.append(group.client.post(
        "/v1/completions", json=BODY).json()), daemon=True)  # fmt: skip
    answers = []
    whole.start()
    wait_for(lambda: len(group.asked()) > questions)
    os.kill(group.engines(rank)[0], signal.SIGKILL)
    events = asked.whole()
    assert text_of(events) == WHOLE
    assert len({event["id"] for event in events if isinstance(event, dict)}) == 1
    usage = events[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(PROMPT), COUNT)
    whole.join(60)
    assert answers[0]["choices"][0]["text"] == WHOLE
    assert group.wait_ready(epoch) > epoch
    assert not set(before) & set(group.engines())
    wait_for(lambda: len(group.shared()) == group.ranks, what="shared memory of this epoch alone")
    assert "killed by signal 9" in group.log(rank)


def test_an_engine_that_stands_still_and_says_that_it_is_healthy(group):
    epoch, stood = group.topology()["epoch"], group.log(0).count(STANDS)
    asked = Asked(group)
    group.tell("still")
    stands_again(group, stood)
    group.untell("still")
    assert text_of(asked.whole()) == WHOLE
    assert group.wait_ready(epoch) > epoch


def test_a_stopped_engine_of_another_rank_and_of_rank_0(group):
    for rank in (1, 0):
        epoch, stood = group.topology()["epoch"], group.log(0).count(STANDS)
        asked = Asked(group)
        os.kill(group.engines(rank)[0], signal.SIGSTOP)
        if rank:  # the small engine's rank 0 does not need it; vLLM's does
            group.tell("still")
            stands_again(group, stood)
            group.untell("still")
        assert text_of(asked.whole()) == WHOLE
        assert group.wait_ready(epoch) > epoch


def test_a_keeper_that_is_killed_leaves_nothing_and_comes_back(group):
    topology, own = group.topology(), group.engines(1)
    epoch, restarts = topology["epoch"], topology["ranks"][1]["restarts"]
    asked = Asked(group)
    group.keeper(1).kill()
    wait_for(lambda: not set(own) & set(group.engines(1)), what="its engine is gone")
    group.keeper(1).wait()
    group.start(1)
    assert text_of(asked.whole()) == WHOLE
    assert group.wait_ready(epoch) > epoch
    assert group.topology()["ranks"][1]["restarts"] == restarts + 1
    own = group.engines()
    group.keeper(0).kill()
    group.keeper(0).wait()
    wait_for(lambda: not set(own) & set(group.engines()), what="both engines are gone")
    wait_for(lambda: not group.shared(), what="their shared memory is gone")
    epoch = epoch + 1
    group.start(0)
    assert group.wait_ready(epoch) > epoch


def test_a_drain_ends_open_streams_first_and_refuses_new_ones(tmp_path):
    group = KeptGroup(tmp_path)
    group.start_all()
    try:
        group.wait_ready()
        _drain(group)
    finally:
        group.close()


def _drain(group):
    asked = Asked(group)
    group.tell("still")  # the stream is open until a new one was refused
    for rank in (1, 0):
        group.keeper(rank).terminate()
    wait_for(lambda: '"draining"' in group.log(0))
    refused = group.client.post("/v1/completions", json=BODY)
    assert refused.status_code == 503
    group.untell("still")
    assert refused.json()["error"]["code"] == "draining"
    assert text_of(asked.whole()) == WHOLE
    assert [group.keeper(rank).wait(60) for rank in (0, 1)] == [0, 0]
    assert group.engines() == []


def test_an_edit_of_the_model_restarts_engines_and_not_keepers(group):
    keepers = [group.keeper(rank).pid for rank in (0, 1)]
    before = group.engines()
    asked = Asked(group)
    other = save_model(group.folder / "other", rope_theta=1)
    group.push(group.spec_of(other))
    assert text_of(asked.whole()) == WHOLE  # what ran has ended by the old one
    topology = group.topology()
    assert topology["model_name"] == str(other)
    assert [group.keeper(rank).poll() for rank in (0, 1)] == [None, None]
    assert keepers == [rank["process_id"] for rank in topology["ranks"]]
    assert not set(before) & set(group.engines())
    assert text_of(streamed(group, "/v1/completions", BODY)) == WHOLE
    # Another one that cannot be leaves what serves.
    group.tell("crash")
    third = save_model(group.folder / "third", rope_theta=2)
    pushed = Group(group.url, signing_key(TOKEN))
    healer = threading.Thread(target=heals_once_it_has_crashed, args=[group])
    healer.start()
    with pytest.raises(RolloutFailed, match="9 heads, which 2 do not divide"):
        bring_in(pushed, group.spec_of(third), 60, lambda line: None)
    healer.join()
    pushed.close()
    group.wait_ready()
    assert group.topology()["model_name"] == str(other)


def heals_once_it_has_crashed(group):
    """Else the engine of the former model would crash as well."""
    wait_for(lambda: "9 heads" in group.log(0))
    group.untell("crash")


def test_aioss_endpoints_defaults_and_metrics(group):
    answer = group.client.post("/generate", json={"prompt": PROMPT, "max_new_tokens": 4}).json()
    assert answer["output"] == "".join(map(name, expected(PROMPT, 4)))
    assert answer["finish_reason"] == "length"
    lines = [
        json.loads(line.removeprefix("data: "))
        for line in group.client.post(
            "/generate", json={"prompt": PROMPT, "max_new_tokens": 4, "enable_streaming": True}
        ).text.splitlines()
        if line.startswith("data: {")
    ]
    assert "".join(line["output"] for line in lines) == answer["output"]
    assert lines[-1]["usage"]["completion_tokens"] == 4
    group.client.post("/set_config", json={"max_new_tokens": 3, "top_k": 5})
    asked = {"model": DEPLOYMENT, "prompt": PROMPT}
    assert group.client.post("/v1/completions", json=asked).json()["choices"][0]["text"] == "".join(
        map(name, expected(PROMPT, 3))
    )
    assert group.asked()[-1]["body"]["top_k"] == 5
    models = group.client.get("/v1/models").json()
    assert models["data"][0]["id"] == DEPLOYMENT
    text = wait_for(
        lambda: "llm_tokens_generated_total" in (text := group.client.get("/metrics").text) and text
    )
    assert "splitstack_group_ready" in text
    assert group.client.post("/generate", json={"prompt": "", "x": 1}).status_code == 400
    assert group.client.get("/v1/unknown").status_code == 404


def test_without_every_keeper_nothing_is_ready_and_a_wrong_token_stays_out(tmp_path):
    group = KeptGroup(tmp_path)
    try:
        group.start(0)
        group.start(1, token=b"another token, of no use to it!!")
        reason = wait_for(lambda: (found := group.readyz()).get("reason", "") and found)["reason"]
        assert "rank 1 has not joined" in wait_for(
            lambda: "rank 1" in (reason := group.readyz().get("reason", "")) and reason
        ), reason
        wait_for(lambda: "the group tokens differ" in group.log(1))
        assert group.client.post("/v1/models").status_code == 405
        assert group.client.get("/v1/models").status_code == 503
        assert group.engines() == []
    finally:
        group.close()


def test_an_engine_that_cannot_start_is_told_by_its_last_words(tmp_path):
    group = KeptGroup(tmp_path, ranks=1)
    try:
        group.tell("crash")
        group.start(0)
        wait_for(lambda: "9 heads, which 2 do not divide" in group.readyz().get("reason", ""))
        group.untell("crash")
        group.wait_ready()
    finally:
        group.close()
