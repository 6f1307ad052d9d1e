"""The Job that proves an edit, as the engine would be asked for it."""

from __future__ import annotations

import pytest

from contract.signature import rollout_key, signing_key
from contract.specs import GroupSpec, load
from infra.cluster import labels
from rollout.__main__ import _arguments
from tests.infra.program_stacks import BARE, DEMO, FULL, SECRETS, stack
from tests.infra.recorded_program import RUNNER, TOKEN, Program, changed_objects, run_program

ALL_SECRETS = {"group_token": TOKEN} | SECRETS


def job(found: Program):
    return found.one("Job", "small-rollout")


def command(found: Program) -> list[str]:
    (container,) = job(found).manifest["spec"]["template"]["spec"]["containers"]
    assert container["command"][:3] == ["python", "-m", "rollout"]
    return list(container["command"][3:])


def options(found: Program) -> dict[str, str]:
    given = command(found)
    return dict(zip(given[::2], given[1::2], strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Program:
    mapping = stack(tmp_path_factory.mktemp("whole"), **FULL)
    return run_program(mapping, secrets=ALL_SECRETS)


def test_its_command_is_one_that_the_program_takes(whole):
    parsed = _arguments(command(whole))
    assert parsed.master == "http://small-rank-master.splits.svc:8080"
    assert parsed.inference_server == "http://small-inference-server.inference-server.svc:31504"
    assert (parsed.block_id, parsed.stall_s) == ("first", 300)
    assert parsed.reason_file == "/dev/termination-log"


def test_the_wanted_spec_has_its_hash_in_its_name_and_is_what_ranks_get_after_it(whole, tmp_path):
    wanted = whole.one("ConfigMap", "small-rollout").manifest
    digits = whole.outputs["spec_hash"][:8]
    assert wanted["metadata"]["name"] == f"small-rollout-{digits}"
    assert job(whole).metadata_name == f"small-rollout-{digits}"
    served = whole.one("ConfigMap", "small-spec")
    assert served.manifest["data"] == wanted["data"]
    assert job(whole).urn in served.depends_on
    file = tmp_path / "group.json"
    file.write_text(wanted["data"]["group.json"])
    assert load(file, GroupSpec).model_name == DEMO


def test_rank_0_alone_mounts_what_has_answered_and_starts_without(whole):
    for rank in range(2):
        item = next(item for item in whole.objects if item.metadata_name == f"small-rank-{rank}"
                    and item.short_kind in ("Pod", "StatefulSet"))  # fmt: skip
        (spec,) = [spec for found, spec in whole.pods() if found is item]
        mounted = [
            volume["configMap"]
            for volume in spec["volumes"]
            if volume.get("configMap", {}).get("name") == "small-spec"
        ]
        assert mounted == ([{"name": "small-spec", "optional": True}] if rank == 0 else [])


def test_it_has_keys_and_not_the_token(whole):
    secret = whole.one("Secret", "small-rollout").manifest["stringData"]
    assert secret == {
        "signing_key": signing_key(TOKEN.encode()).hex(),
        "api_key": rollout_key(TOKEN.encode()),
    }
    keys = {secret["signing_key"], secret["api_key"]}
    assert whole.one("Secret", "small-rollout").secrets == {"stringData"}
    for item in whole.resources:
        if item.name != "small-rollout":
            assert not any(key in str(item.properties) for key in keys), item.name


def test_without_api_keys_it_asks_as_everybody(tmp_path):
    everybody = stack(tmp_path, inference_server={"anonymous": True})
    found = run_program(everybody, secrets={"group_token": TOKEN})
    assert "--inference-server" in options(found)
    assert "--api-key-file" not in options(found)
    secret = found.one("Secret", "small-rollout").manifest["stringData"]
    assert set(secret) == {"signing_key"}


def test_it_asks_as_far_out_as_there_are_tiers(tmp_path):
    block = options(run_program(stack(tmp_path, inference_server={"enabled": False})))
    assert block["--block"] == "http://small-proxy-block.blocks.svc:8082"
    assert "--inference-server" not in block
    bare = run_program(stack(tmp_path, **BARE))
    assert not {"--block", "--inference-server"} & set(options(bare))
    # Without proxy blocks there is no image of theirs.
    (container,) = job(bare).manifest["spec"]["template"]["spec"]["containers"]
    assert container["image"] == RUNNER


def test_it_waits_for_every_tier_and_every_policy(whole):
    kinds = ("Pod", "StatefulSet", "Deployment", "NetworkPolicy")
    # The session store is what a block waits for.
    tiers = {
        item.urn
        for item in whole.objects
        if item.short_kind in kinds and item.name != "small-session-store"
    }
    assert tiers <= job(whole).depends_on
    assert not any(job(whole).urn in item.depends_on for item in whole.objects
                   if item.name != "small-spec")  # fmt: skip


def test_it_runs_once_and_is_made_anew_where_it_did_not_succeed(whole):
    manifest = job(whole).manifest
    annotations = manifest["metadata"]["annotations"]
    assert annotations == {"pulumi.com/replaceUnready": "true"}
    spec = manifest["spec"]
    # The provider ends its wait for no other reason than the back-off limit: no action FailJob.
    assert spec["backoffLimit"] == 0
    assert [rule["action"] for rule in spec["podFailurePolicy"]["rules"]] == ["Ignore"]
    pod = spec["template"]
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["metadata"]["labels"][labels.COMPONENT] == labels.ROLLOUT
    assert pod["spec"]["automountServiceAccountToken"] is False


def edit(tmp_path, before=None, **common):
    first = before or stack(tmp_path)
    second = first | {"common_params": first["common_params"] | common}
    return run_program(first), run_program(second)


def test_another_spec_takes_the_place_of_the_former_one(tmp_path):
    first, second = edit(tmp_path, max_model_len=1024)
    assert job(first).urn == job(second).urn
    assert job(first).metadata_name != job(second).metadata_name
    assert {("Job", "small-rollout"), ("ConfigMap", "small-spec")} <= changed_objects(first, second)


def test_what_makes_every_rank_a_new_process_is_asked_again(tmp_path):
    first, second = edit(tmp_path, image=RUNNER.replace("a" * 64, "b" * 64))
    third = run_program(stack(tmp_path), secrets=ALL_SECRETS | {"group_token": TOKEN[::-1]})
    triggers = {job(found).replacement_trigger for found in (first, second, third)}
    assert len(triggers) == 3
    assert job(run_program(stack(tmp_path))).replacement_trigger in triggers


def test_what_a_proxy_block_says_first_is_not_asked_again(tmp_path):
    before = stack(tmp_path)
    blocks = [before["proxy_blocks"][0] | {"system_message": "Be brief."}]
    first, second = run_program(before), run_program(before | {"proxy_blocks": blocks})
    assert job(first).replacement_trigger == job(second).replacement_trigger
    assert ("Job", "small-rollout") not in changed_objects(first, second)
