"""The Pulumi program: every object and its options, for every kind of stack file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pulumi
import pytest

from contract.signature import management_key
from contract.specs import GroupSpec, StageSpec, load, spec_hash
from infra.cluster.labels import INSTANCE, MANAGED_BY
from infra.plan.stack_plan import plan_stack
from infra.stack.file import parse_deployment
from tests.hub_server import COMMIT, HubServer, Repository, serving
from tests.hub_server import TOKEN as HUB_TOKEN
from tests.infra.program_stacks import BARE, DEMO, FULL, NAMES, SECRETS, matrix, stack, two_clusters
from tests.infra.recorded_program import PROGRAM, RUNNER, TOKEN, Program, Recorded, run_program

ALL_SECRETS = {"group_token": TOKEN, **SECRETS}
KEYS = {"api_keys": SECRETS["api_keys"]}
# Of namespaces, and like these outside of what is in them.
GUARDS = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
HOLDER = "small-is-here"


@pytest.fixture(scope="module", params=["preview", "update"])
def preview(request):
    return request.param == "preview"


@pytest.fixture(scope="module", params=NAMES)
def program(request, preview, tmp_path_factory):
    mapping = matrix(tmp_path_factory.mktemp("stacks"))[request.param]
    return run_program(mapping, secrets=ALL_SECRETS, preview=preview)


def ranks(program: Program) -> list[Recorded]:
    return [
        item
        for item in program.objects
        if item.short_kind in ("Pod", "StatefulSet") and "-rank-" in item.name
    ]


def test_every_object_has_its_options(program):
    providers = {item.name: item for item in program.resources if "providers" in item.kind}
    components = {item.urn for item in program.resources if item.kind.startswith("splitstack:")}
    namespaces = {item.urn for item in program.of_kind("Namespace")}
    holders = {item.urn for item in program.objects if item.metadata_name == HOLDER}
    for item in program.objects:
        assert item.delete_before_replace, item.name
        assert providers[item.cluster].properties["clusterIdentifier"] == item.cluster
        if item.short_kind in ("Namespace", *GUARDS) or item.urn in holders:
            assert item.parent.endswith("splitstack-test")
        else:
            assert item.parent in components
            assert namespaces | holders <= item.depends_on
    names = Counter((item.kind, item.name) for item in program.objects)
    assert set(names.values()) == {1}


def test_every_object_is_named_and_labelled(program):
    for item in program.objects:
        metadata = item.manifest["metadata"]
        assert metadata["name"]
        assert metadata["labels"][INSTANCE] == "small"
        assert metadata["labels"][MANAGED_BY] == "splitstack"
    names = Counter(
        (item.cluster, item.kind, item.manifest["metadata"].get("namespace"), item.metadata_name)
        for item in program.objects
    )
    assert set(names.values()) == {1}


def test_ranks_are_replaced_one_by_one(program):
    every_rank = {item.urn for item in ranks(program)}
    assert len(every_rank) == len(program.outputs["ranks"])
    assert len({item.replacement_trigger for item in ranks(program)}) == len(every_rank)
    for item in ranks(program):
        assert item.replacement_trigger not in ("", program.outputs["spec_hash"])
        assert item.replace_on_changes == ("spec", "metadata")
        assert not every_rank & item.depends_on


def test_whatever_is_waited_for_has_a_limit(program):
    waited = [
        item
        for item in program.objects
        if item.short_kind in ("Pod", "StatefulSet", "Deployment", "Job")
    ]
    # Their address is waited for.
    balancers = [
        item
        for item in program.of_kind("Service")
        if item.properties["spec"].get("type") == "LoadBalancer"
    ]
    for item in [*waited, *balancers]:
        assert all(item.timeouts), item.name
    others = [item for item in program.of_kind("Service") if item not in balancers]
    for item in [*others, *program.of_kind("PersistentVolumeClaim")]:
        skips = item.manifest["metadata"].get("annotations", {}).get("pulumi.com/skipAwait")
        headless = item.manifest["spec"].get("clusterIP") == "None"
        assert headless or skips == "true", item.name


def test_every_pod_is_hardened(program):
    for item, spec in program.pods():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        assert spec["terminationGracePeriodSeconds"] > 10
        assert "nodeName" not in spec
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            requests = dict(container["resources"]["requests"])
            requests.pop("ephemeral-storage", None)  # an empty-dir has a limit of its own
            assert requests == container["resources"]["limits"]
            assert "@sha256:" in container["image"], item.name
            for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
                assert (probe in container) == (item.short_kind != "Job")


def test_secrets_are_nowhere_in_plain(program):
    for item in program.resources:
        # Pulumi keeps what is marked encrypted; the rest lies readable in the state.
        kept = {key: value for key, value in item.properties.items() if key not in item.secrets}
        for name, secret in ALL_SECRETS.items():
            assert secret not in json.dumps(kept), f"{name} in {item.name}"
        assert "token-of-" not in json.dumps(kept), f"a kubeconfig in {item.name}"
    for name, secret in ALL_SECRETS.items():
        assert secret not in json.dumps(program.outputs, default=str), name


def test_the_management_key_is_a_secret_of_the_stack_and_of_its_blocks(program):
    key = management_key(TOKEN.encode())
    assert program.outputs["management_key"] == key
    holders = {item.name for item in program.resources if key in json.dumps(item.properties)}
    blocks = {item.name for item in program.of_kind("Deployment") if "-proxy-" in item.name}
    assert holders == blocks
    for item in program.resources:
        if item.name in holders and item.short_kind == "Secret":
            assert item.secrets == {"stringData"}


def test_pods_mount_what_there_is(program):
    """ConfigMaps, Secrets and claims are named by plain strings: nothing else checks them."""
    made = {
        (item.cluster, item.short_kind, item.manifest["metadata"].get("namespace"),
         item.metadata_name): item.urn
        for item in program.objects
    }  # fmt: skip
    for item, spec in program.pods():
        namespace = item.manifest["metadata"]["namespace"]
        wanted = [("ServiceAccount", spec.get("serviceAccountName"))]
        for volume in spec["volumes"]:
            config_map = volume.get("configMap", {})
            # What a pod starts without comes after it.
            if not config_map.get("optional"):
                wanted += [("ConfigMap", config_map.get("name"))]
            wanted += [("Secret", volume.get("secret", {}).get("secretName"))]
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            wanted += [("PersistentVolumeClaim", claim)] if claim != "weights" else []
        for claim in spec.get("resourceClaims", []):
            wanted += [("ResourceClaimTemplate", claim["resourceClaimTemplateName"])]
        for kind, name in wanted:
            if name is not None:
                assert made[item.cluster, kind, namespace, name] in item.depends_on


def test_every_process_is_started_with_files_that_are_mounted(program):
    data = {
        (kind, item.manifest["metadata"]["namespace"], item.metadata_name): item.manifest
        for kind in ("ConfigMap", "Secret")
        for item in program.of_kind(kind)
    }
    for item, spec in program.pods():
        namespace = item.manifest["metadata"]["namespace"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for container in spec["containers"]:
            files = set()
            for mount in container["volumeMounts"]:
                volume = volumes[mount["name"]]
                content: dict[str, str] = {}
                if "configMap" in volume:
                    content = data["ConfigMap", namespace, volume["configMap"]["name"]]["data"]
                elif "secret" in volume:
                    name = volume["secret"]["secretName"]
                    content = data["Secret", namespace, name]["stringData"]
                files |= {f"{mount['mountPath']}/{name}" for name in content}
            environment = [variable["value"] for variable in container["env"]]
            given = [
                text
                for text in [*container["command"], *environment]
                if text.startswith(("/etc/splitstack/", "/run/secrets/"))
            ]
            assert given
            assert set(given) <= files


def test_preview_and_update_ask_for_the_same(tmp_path):
    mapping = stack(tmp_path, **FULL)
    first = run_program(mapping, secrets=ALL_SECRETS, preview=True)
    second = run_program(mapping, secrets=ALL_SECRETS)
    by_urn = [{item.urn: item for item in program.resources} for program in (first, second)]
    assert by_urn[0] == by_urn[1]


def test_rank_0_has_the_master_beside_its_stage(tmp_path):
    program = run_program(stack(tmp_path, nnodes=4))
    names = [item.name for item in ranks(program)]
    assert sorted(names) == [f"small-rank-{rank}" for rank in range(4)]
    for rank in range(4):
        pod = program.rank_pod(rank)
        containers = [container["name"] for container in pod["containers"]]
        assert containers == (["master", "stage"] if rank == 0 else ["stage"])
        labels = program.rank(rank).manifest["metadata"]["labels"]
        assert labels["splitstack.dev/rank"] == str(rank)
        stage = pod["containers"][-1]
        assert stage["command"][:3] == ["python", "-m", "runner.stage"]
        data = program.one("ConfigMap", f"small-rank-{rank}").manifest["data"]
        assert sorted(data) == (["master.json", "stage.json"] if rank == 0 else ["stage.json"])
        assert json.loads(data["stage.json"])["rank"] == rank
        [mounted] = [
            volume["configMap"]["name"] for volume in pod["volumes"] if volume["name"] == "spec"
        ]
        assert mounted == f"small-rank-{rank}"
        assert stage["command"][3:5] == ["--spec", "/etc/splitstack/stage.json"]


def test_the_group_spec_is_what_the_plan_says(tmp_path):
    mapping = stack(tmp_path, nnodes=4)
    program = run_program(mapping)
    path = tmp_path / "group.json"
    path.write_text(program.one("ConfigMap", "small-spec").manifest["data"]["group.json"])
    group = load(path, GroupSpec)
    plan = plan_stack(parse_deployment(mapping))
    assert [rank.layers for rank in group.ranks] == [rank.layers for rank in plan.ranks]
    assert spec_hash(group) == program.outputs["spec_hash"]
    file = program.one("ConfigMap", "small-rank-3").manifest["data"]["stage.json"]
    path.write_text(file)
    spec = load(path, StageSpec)
    assert spec.master_host == "small-rank-master.splits.svc"
    assert spec.model_cache == "/var/cache/splitstack"
    # What a rank may use is what its container gets.
    stage = program.rank_pod(3)["containers"][0]
    assert stage["resources"]["limits"]["memory"] == str(spec.memory_bytes)
    assert stage["resources"]["limits"]["cpu"] == str(spec.threads)


def test_the_two_services_of_rank_0(tmp_path):
    program = run_program(stack(tmp_path))
    group = program.one("Service", "small-rank-master").manifest["spec"]
    api = program.one("Service", "small-master-api").manifest["spec"]
    assert group["clusterIP"] == "None"
    assert group["publishNotReadyAddresses"] is True
    assert {port["port"] for port in group["ports"]} == {3000, 8080}
    assert "publishNotReadyAddresses" not in api
    assert [port["port"] for port in api["ports"]] == [8080]
    labels = program.rank(0).manifest["metadata"]["labels"]
    for service in (group, api):
        assert service["selector"].items() <= labels.items()
        assert service["selector"][INSTANCE] == "small"
        other = program.rank(1).manifest["metadata"]["labels"]
        assert not service["selector"].items() <= other.items()


def test_probes_of_ranks(tmp_path):
    common = {"model_name": DEMO, "image": stack(tmp_path)["common_params"]["image"]}
    program = run_program(stack(tmp_path, common_params=common | {"load_timeout_s": 90.5}))
    master, stage = program.rank_pod(0)["containers"]
    for container, port, startup in ((master, 8080, "/livez"), (stage, 8081, "/startedz")):
        liveness = container["livenessProbe"]
        assert liveness["httpGet"] == {"path": "/livez", "port": port, "scheme": "HTTP"}
        assert (liveness["periodSeconds"], liveness["timeoutSeconds"]) == (10, 5)
        assert (liveness["failureThreshold"], liveness["terminationGracePeriodSeconds"]) == (3, 1)
        ready = "/readyz?self" if container is master else "/readyz"
        assert container["readinessProbe"]["httpGet"]["path"] == ready
        for probe in ("readinessProbe", "startupProbe"):  # their answers are wanted soon
            assert container[probe]["periodSeconds"] == container[probe]["timeoutSeconds"] == 1
        assert container["startupProbe"]["httpGet"]["path"] == startup
        assert container["startupProbe"]["failureThreshold"] == 300  # whatever a load may take


def test_timeouts_come_from_the_stack_file(tmp_path):
    program = run_program(stack(tmp_path, timeouts={"create_s": 60, "delete_s": 30}))
    # Beyond what draining may take: the request deadline, and a margin.
    assert program.rank(0).timeouts == ("60s", "60s", f"{30 + 100 + 15}s")


@pytest.mark.parametrize(("load_timeout_s", "create_s"), [(None, "2100s"), (90.5, "391s")])
def test_pods_are_waited_for_as_long_as_a_load_may_take(tmp_path, load_timeout_s, create_s):
    common = stack(tmp_path)["common_params"] | {"load_timeout_s": load_timeout_s}
    program = run_program(stack(tmp_path, common_params=common, timeouts={}))
    assert program.rank(0).timeouts[0] == create_s


def test_another_request_deadline_replaces_no_pod_of_a_rank(tmp_path):
    first = stack(tmp_path)
    second = first | {"common_params": first["common_params"] | {"request_deadline_s": 900}}
    graces = {
        run_program(mapping).rank_pod(rank)["terminationGracePeriodSeconds"]
        for mapping in (first, second)
        for rank in range(2)
    }
    assert graces == {3615}


def test_two_clusters(tmp_path):
    program = run_program(two_clusters(tmp_path))
    home = {(item.short_kind, item.name) for item in program.objects if item.cluster == "home"}
    away = {(item.short_kind, item.name) for item in program.objects if item.cluster == "away"}
    assert {("StatefulSet", "small-rank-0"), ("Service", "small-rank-master")} <= home
    assert {("Deployment", "small-proxy-block"), ("Deployment", "small-inference-server")} <= home
    assert {
        ("Namespace", "splits-away"), ("ConfigMap", "small-rank-1-away"),
        ("Secret", "small-ranks-away"), ("ServiceAccount", "small-rank-away"),
        ("StatefulSet", "small-rank-1"), ("PodDisruptionBudget", "small-rank-away"),
    } <= away  # fmt: skip
    assert {kind for kind, _ in away} == {
        "Namespace", "NetworkPolicy", "ConfigMap", "Secret", "ServiceAccount",
        "PodDisruptionBudget", "StatefulSet", "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }  # fmt: skip
    assert ("ConfigMap", "small-spec") in home
    for rank, name in enumerate(("small-rank-0", "small-rank-1-away")):
        data = program.one("ConfigMap", name).manifest["data"]
        spec = json.loads(data["stage.json"])
        assert spec["master_host"] == "203.0.113.1"
        assert spec["advertise_address"] == f"203.0.113.{rank + 1}"


def test_a_stateful_set_gives_up_a_pod_that_was_never_ready(tmp_path):
    program = run_program(stack(tmp_path))
    assert not program.of_kind("Pod")
    for rank in range(2):
        spec = program.one("StatefulSet", f"small-rank-{rank}").manifest["spec"]
        assert spec["podManagementPolicy"] == "Parallel"
        assert spec["replicas"] == 1
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
        assert spec["selector"]["matchLabels"]["splitstack.dev/rank"] == str(rank)


def test_one_rank_of_stateful_sets_at_a_time_may_be_evicted(tmp_path):
    program = run_program(stack(tmp_path))
    spec = program.one("PodDisruptionBudget", "small-rank").manifest["spec"]
    assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")
    for rank in range(2):
        labels = program.rank(rank).manifest["spec"]["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"].items() <= labels.items()
    pods = run_program(stack(tmp_path, workload="pod"))
    assert "small-rank" not in {item.name for item in pods.of_kind("PodDisruptionBudget")}


def test_pods_have_the_names_that_aios_gives_them(tmp_path):
    program = run_program(stack(tmp_path, workload="pod"))
    assert {item.metadata_name for item in program.of_kind("Pod")} == {
        "small-rank-0", "small-rank-1"
    }  # fmt: skip
    assert not program.of_kind("StatefulSet")


# What an edit of what the group serves touches.
SPEC_OBJECTS = {
    ("ConfigMap", "small-rollout"),
    ("Job", "small-rollout"),
    ("ConfigMap", "small-spec"),
}


def changed(before: Program, after: Program) -> set[tuple[str, str]]:
    """What an update from one program to another would touch, as (kind, name)."""
    old = {item.urn: item for item in before.objects}
    new = {item.urn: item for item in after.objects}
    urns = {urn for urn in old | new if old.get(urn) != new.get(urn)}
    return {(item.short_kind, item.name) for urn, item in (old | new).items() if urn in urns}


SIZED: list[dict[str, Any]] = [{"rank": rank, "cpu": 1, "memory": "8Gi"} for rank in range(2)]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_model_len", 1024),
        ("dtype", "bfloat16"),
        ("model_revision", "v2"),
        ("max_concurrent_requests", 8),
        ("prefill_token_budget", 64),
        ("load_timeout_s", 60),
    ],
)
def test_what_the_group_serves_replaces_no_pod(tmp_path, key, value):
    before = stack(tmp_path, **FULL | {"per_rank_params": SIZED})
    after = before | {"common_params": before["common_params"] | {key: value}}
    first, second = (run_program(mapping) for mapping in (before, after))
    assert changed(first, second) == SPEC_OBJECTS
    assert first.outputs["spec_hash"] != second.outputs["spec_hash"]


def test_another_time_to_drain_replaces_no_pod(tmp_path):
    first = stack(tmp_path, **FULL | {"per_rank_params": SIZED})
    second = first | {"timeouts": first.get("timeouts", {}) | {"swap_drain_s": 0}}
    assert changed(run_program(first), run_program(second)) == SPEC_OBJECTS


def test_other_layers_replace_no_pod(tmp_path):
    layers = [SIZED[0] | {"layers": "0-4"}, SIZED[1] | {"layers": "5-29"}]
    first = run_program(stack(tmp_path, per_rank_params=SIZED))
    assert changed(first, run_program(stack(tmp_path, per_rank_params=layers))) == SPEC_OBJECTS


def test_one_more_rank_replaces_no_pod(tmp_path):
    three = [*SIZED, SIZED[0] | {"rank": 2}]
    first = run_program(stack(tmp_path, per_rank_params=SIZED))
    second = run_program(stack(tmp_path, per_rank_params=three, nnodes=3))
    assert changed(first, second) == SPEC_OBJECTS | {
        ("ConfigMap", "small-rank-2"), ("StatefulSet", "small-rank-2")
    }  # fmt: skip


@pytest.mark.parametrize("full", [False, True])
def test_a_system_message_is_the_proxys_business_only(tmp_path, full):
    before = stack(tmp_path, **(FULL if full else {}))
    blocks = [dict(block) for block in before["proxy_blocks"]]
    blocks[0]["system_message"] = "Answer in one word."
    touched = changed(run_program(before), run_program(before | {"proxy_blocks": blocks}))
    name = f"small-proxy-{blocks[0]['block_id']}"
    assert touched == {("ConfigMap", name), ("Deployment", name)}


def test_a_changed_token_replaces_every_rank_and_the_hubs_none(tmp_path):
    before = run_program(stack(tmp_path), secrets=KEYS | {"group_token": TOKEN, "hub_token": "a"})
    new_token = KEYS | {"group_token": TOKEN[::-1], "hub_token": "a"}
    after = run_program(stack(tmp_path), secrets=new_token)
    # A block reads the key that is made of the token anew: its pods stay.
    ranks_and_secrets = {
        ("Secret", "small-ranks"), ("Secret", "small-proxy-block"),
        ("StatefulSet", "small-rank-0"), ("StatefulSet", "small-rank-1"),
        ("Secret", "small-rollout"), ("Job", "small-rollout"), ("Secret", "small-inference-server"),
    }  # fmt: skip
    assert changed(before, after) == ranks_and_secrets
    other = run_program(stack(tmp_path), secrets=KEYS | {"group_token": TOKEN, "hub_token": "b"})
    assert changed(before, other) == {("Secret", "small-ranks")}


def test_a_second_stack_beside_the_first(tmp_path):
    """Nothing of the one is the other's: not a name, not a selected pod."""
    first = run_program(stack(tmp_path))
    second = run_program(
        stack(tmp_path, deployment_name="other", namespaces={"create": False})
        | {"inference_server": {"node_port": 31505}}
    )
    places = [
        {
            (item.short_kind, item.manifest["metadata"].get("namespace"), item.metadata_name)
            for item in program.objects
        }
        for program in (first, second)
    ]
    assert not places[0] & places[1]
    assert not second.of_kind("Namespace")
    for item in second.of_kind("Service"):
        assert item.manifest["spec"]["selector"][INSTANCE] == "other"


def test_everything_off(tmp_path):
    program = run_program(stack(tmp_path, **BARE))
    assert Counter(item.short_kind for item in program.objects) == {
        "ConfigMap": 4, "Secret": 2, "ServiceAccount": 2, "Service": 2, "StatefulSet": 2,
        "PodDisruptionBudget": 1, "Job": 1,
    }  # fmt: skip
    assert set(program.outputs["urls"]) == {"master", "blocks"}
    assert "curl" not in program.outputs


def test_outputs(tmp_path):
    anonymous = stack(tmp_path, inference_server={"anonymous": True})
    program = run_program(anonymous, secrets={"group_token": TOKEN})
    assert program.outputs["ranks"] == [
        {"rank": 0, "devices": "cpu x1", "layers": [0, 18]},
        {"rank": 1, "devices": "cpu x1", "layers": [19, 29]},
    ]
    assert set(program.outputs["images"]) == {"runner", "proxy_block", "inference_server"}
    assert program.outputs["urls"] == {
        "master": "http://small-master-api.splits.svc:8080",
        "blocks": {"block": "http://small-proxy-block.blocks.svc:8082"},
        "inference_server": "http://127.0.0.1:31504",  # by the port-forward beside it
    }
    request, _, body = program.outputs["curl"].partition(" -d ")
    assert request.startswith("curl -X POST http://127.0.0.1:31504/v1/infer ")
    given = subprocess.check_output(["sh", "-c", f"printf %s {body}"])  # the shell's part of it
    assert json.loads(given)["model"] == "block"
    assert "Authorization" not in program.outputs["curl"]
    with_keys = run_program(stack(tmp_path, **FULL), secrets=ALL_SECRETS).outputs
    assert "$SPLITSTACK_API_KEY" in with_keys["curl"]
    assert with_keys["urls"]["inference_server"] == "http://serve.test:31504"


def test_the_preview_shows_the_plan(tmp_path):
    (table,) = (
        message for message in run_program(stack(tmp_path), preview=True).messages
        if "weight bytes" in message
    )  # fmt: skip
    lines = table.splitlines()
    assert lines[1].startswith(f"small: {DEMO} (llama, float32) over 2 ranks")
    rows = [line.split() for line in lines[4:6]]
    assert [row[:5] for row in rows] == [
        ["0", "-", "cpu", "x1", "0-18"], ["1", "-", "cpu", "x1", "19-29"]
    ]  # fmt: skip
    assert [row[7:9] for row in rows] == [["496.8", "MB"], ["341.6", "MB"]], "room for KV"


LLAMA = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "vocab_size": 9,
}


@pytest.fixture
def no_token(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def of_the_hub(folder, **common):
    common = {"model_name": "some/gated", "image": RUNNER, **common}
    return stack(folder, common_params=common)


@pytest.mark.usefixtures("no_token")
def test_the_preview_asks_the_hub_with_the_stacks_token(tmp_path, monkeypatch):
    config = json.dumps(LLAMA).encode()
    files = {"config.json": config, "model.safetensors": b"", "tokenizer.json": b"{}"}
    hub = HubServer({"some/gated": Repository(files, access="gated")})
    mapping = of_the_hub(tmp_path)
    with serving(hub) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(pulumi.RunError, match=r"is gated \(401\): accept .* \(splitstack:hub_"):
            run_program(mapping)
        secrets = KEYS | {"group_token": TOKEN, "hub_token": HUB_TOKEN}
        program = run_program(mapping, secrets=secrets)
    assert len(ranks(program)) == 2


@pytest.mark.usefixtures("no_token")
def test_with_a_lock_nobody_needs_a_hub(tmp_path, monkeypatch):
    """Neither a preview nor an up, of the first deployment or of an edit."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("infra.cluster.stack_inputs.PROJECT_ROOT", tmp_path)
    (tmp_path / "stacks").mkdir()
    lock = {"model_name": "some/gated", "commit": COMMIT, "config": LLAMA}
    mapping = of_the_hub(tmp_path)
    with pytest.raises(pulumi.RunError, match="the hub cannot be reached at"):
        run_program(mapping, preview=True)
    (tmp_path / "stacks" / "test.lock.json").write_text(json.dumps(lock))
    for preview in (True, False):
        program = run_program(mapping, preview=preview)
        spec = json.loads(program.one("ConfigMap", "small-spec").properties["data"]["group.json"])
        assert spec["model_revision"] == COMMIT
    blocks = [dict(mapping["proxy_blocks"][0], system_message="Answer in one word.")]
    assert len(ranks(run_program(mapping | {"proxy_blocks": blocks}))) == 2
    with pytest.raises(pulumi.RunError, match=r"model_name = 'some/gated': is not what the stack"):
        run_program(of_the_hub(tmp_path, model_name="some/other"))


def test_five_mistakes_are_told_at_once(tmp_path):
    mapping = stack(tmp_path, nnodes=0, gpu_pinning="some", spelling=1, clusters={"home": {"x": 1}})
    with pytest.raises(pulumi.RunError) as raised:
        run_program(mapping, secrets={"group_token": "0f1e2d3c"})
    lines = str(raised.value).splitlines()
    assert lines[0] == "stack test: 5 faults"
    told = "\n".join(sorted(line.strip() for line in lines[1:]))
    for path in ("nnodes = 0", "gpu_pinning = 'some'", "spelling = 1", "clusters.home.x = 1"):
        assert path in told
    assert "splitstack:group_token: must have at least 16 bytes" in told
    assert "0f1e2d3c" not in told


@pytest.mark.parametrize(
    ("given", "plain", "told"),
    [
        ({}, {}, "splitstack:group_token: is required"),
        ({}, {"group_token": TOKEN}, "splitstack:group_token: is in plain text"),
        ({"group_token": TOKEN, "api_keys": "[1]"}, {}, "splitstack:api_keys: must be a JSON list"),
        ({"group_token": TOKEN, "api_keys": "{"}, {}, "splitstack:api_keys: must be a JSON list"),
    ],
)
def test_secrets_that_are_missing_or_wrong(tmp_path, given, plain, told):
    with pytest.raises(pulumi.RunError) as raised:
        run_program(stack(tmp_path), secrets=KEYS | given, plain=plain)
    (line,) = str(raised.value).splitlines()[1:]
    assert line.strip().startswith(told)
    assert TOKEN not in line
    if "group_token" in told:
        assert "pulumi config set --secret splitstack:group_token" in line


def test_a_stack_without_a_deployment():
    with pytest.raises(pulumi.RunError, match="splitstack:deployment: is required"):
        run_program({})


def test_a_kubeconfig_that_is_not_there(tmp_path):
    mapping = stack(tmp_path, clusters={"home": {"kubeconfig": str(tmp_path / "none")}})
    with pytest.raises(pulumi.RunError, match=r"clusters\.home\.kubeconfig = .* is no file"):
        run_program(mapping)


def test_a_model_that_does_not_fit_is_told_before_anything_is_made(tmp_path):
    given = [{"rank": 0, "memory": "1200Mi"}, {"rank": 1, "memory": "1200Mi"}]
    with pytest.raises(pulumi.RunError, match="the plan: 1 fault"):
        run_program(stack(tmp_path, per_rank_params=given))


def test_nothing_beside_the_program_hides_a_module_of_python():
    """Pulumi starts Python in its folder, which is where that then looks first."""
    names = {path.stem for path in PROGRAM.parent.iterdir()} - {"__init__", "__main__"}
    assert not names & sys.stdlib_module_names


def test_what_is_protected(tmp_path):
    """Namespaces and what is not to be had again; a rank's own cache goes with its rank."""
    cache = {"mode": "own-claim", "size": "20Gi"}
    mapping = stack(tmp_path, session_store={"size": "1Gi"}, model_cache=cache)
    assert not [item.name for item in run_program(mapping).resources if item.protect]
    found = [item.name for item in run_program(mapping | {"protect": True}).objects if item.protect]
    assert sorted(found) == ["blocks", "inference-server", "small-proxy-block", "splits"]
    shared = {"mode": "shared-claim", "size": "20Gi"}
    program = run_program(mapping | {"protect": True, "model_cache": shared})
    assert "small-models" in [item.name for item in program.objects if item.protect]
