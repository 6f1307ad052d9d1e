"""The stand-in for the Kubernetes plugin, asked as the engine asks: over gRPC, in its own process.

Held to what the real provider does, as far as the tests of whole stacks rely on it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from kubernetes import client
from pulumi.runtime.proto import provider_pb2 as wire
from pulumi.runtime.proto.provider_pb2_grpc import ResourceProviderStub
from pulumi.runtime.proto.status_pb2 import Status

from tests.cluster.kubernetes_plugin.jobs import REPLACE_UNREADY
from tests.cluster.kubernetes_plugin.object_diff import diff
from tests.cluster.kubernetes_plugin.property_values import from_wire, has_unknown, to_wire
from tests.cluster.kubernetes_plugin.readiness import SKIP
from tests.cluster.nodes import Node
from tests.cluster.pulumi_workspace import REPOSITORY
from tests.programs import CONTROL_PLANE, needs
from tests.waiting import wait_for

NAMESPACE = "of-the-plugin"
SECRET = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270"}
UNKNOWN = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
needs_control_plane = needs(*CONTROL_PLANE)


def manifest(kind: str, name: str, api_version: str = "v1", **parts: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE} | parts.pop("metadata", {})
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}


def pod(name: str = "pod", image: str = "registry.test/image:1", **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": image, **spec.pop("container", {})}
    labels = {"labels": {"app": name}}
    return manifest("Pod", name, metadata=labels, spec={"containers": [container], **spec})


def job(name: str, image: str = "registry.test/image:1", **parts: Any) -> dict[str, Any]:
    template = {"spec": {**pod(image=image)["spec"], "restartPolicy": "Never"}}
    metadata = {"annotations": {REPLACE_UNREADY: "true"}}
    spec = {"backoffLimit": 0, "template": template} | parts
    return manifest("Job", name, "batch/v1", metadata=metadata, spec=spec)


def struct(values: Mapping[str, Any]) -> Struct:
    made = Struct()
    made.update(dict(values))
    return made


REPLACED = {
    "image": pod(image="registry.test/image:2"),
    "environment": pod(container={"env": [{"name": "A", "value": "1"}]}),
    "readiness probe": pod(container={"readinessProbe": {"periodSeconds": 2}}),
    "second container": pod() | {"spec": {"containers": [{"name": name} for name in "ab"]}},
    "node": pod(affinity={"nodeAffinity": {}}),
    "grace period": pod(terminationGracePeriodSeconds=5),
}
# What the provider's own list of such fields misses, and what really can be changed.
IN_PLACE = {
    "startup probe": pod(container={"startupProbe": {"periodSeconds": 2}}),
    "tolerations": pod(tolerations=[{"operator": "Exists"}]),
    "claims": pod(resourceClaims=[{"name": "device"}]),
    "label": manifest("Pod", "pod", metadata={"labels": {"app": "other"}}, spec=pod()["spec"]),
}


@pytest.mark.parametrize("change", REPLACED)
def test_a_pod_is_deleted_and_then_made_again(change):
    found = diff(pod(), REPLACED[change])
    assert found.changes == wire.DiffResponse.DIFF_SOME
    assert found.replaces
    assert found.deleteBeforeReplace


@pytest.mark.parametrize("change", IN_PLACE)
def test_a_pod_is_changed_in_place(change):
    found = diff(pod(), IN_PLACE[change])
    assert found.changes == wire.DiffResponse.DIFF_SOME
    assert not found.replaces
    assert not found.deleteBeforeReplace


def test_another_name_is_created_before_the_old_one_goes():
    found = diff(pod(), pod("other"))
    assert "metadata.name" in found.replaces
    assert not found.deleteBeforeReplace


def test_nothing_has_changed():
    found = diff(pod(), pod())
    assert found.changes == wire.DiffResponse.DIFF_NONE
    assert not found.detailedDiff


@pytest.mark.parametrize("kind", ["Secret", "ConfigMap"])
def test_contents_are_immutable_without_the_option(kind):
    old, new = (manifest(kind, "content", data={"key": value}) for value in ("YQ==", "Yg=="))
    assert not diff(old, new).replaces
    found = diff(old, new, immutable={kind})
    assert list(found.replaces) == ["data.key"]
    assert found.deleteBeforeReplace


def test_numbers_are_floats_on_the_wire_and_whole_in_a_manifest():
    assert from_wire(struct({"replicas": 3, "share": 0.5})) == {"replicas": 3, "share": 0.5}
    assert isinstance(from_wire(struct({"replicas": 3.0}))["replicas"], int)


def test_secrets_stay_secrets():
    secret = SECRET | {"value": "hidden"}
    given = struct({"spec": {"token": secret, "name": "a"}, "list": [{"b": secret}]})
    plain = from_wire(given)
    assert plain == {"spec": {"token": "hidden", "name": "a"}, "list": [{"b": "hidden"}]}
    sent = MessageToDict(to_wire(plain, given))
    assert sent["spec"] == {"token": secret, "name": "a"}
    assert sent["list"] == SECRET | {"value": [{"b": "hidden"}]}
    data = MessageToDict(to_wire(manifest("Secret", "plain", data={"key": "YQ=="})))["data"]
    assert data == SECRET | {"value": {"key": "YQ=="}}


def test_what_is_known_only_later():
    assert has_unknown({"spec": [{"image": UNKNOWN}]})
    assert not has_unknown({"spec": [{"image": "registry.test/image"}]})


@contextmanager
def running_plugin() -> Iterator[ResourceProviderStub]:
    command = [sys.executable, "-m", "tests.cluster.kubernetes_plugin"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield ResourceProviderStub(channel)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def stub() -> Iterator[ResourceProviderStub]:
    with running_plugin() as running:
        yield running


@pytest.fixture(scope="module")
def provider(stub, control_plane) -> ResourceProviderStub:
    control_plane.add_nodes([Node("plugin-node")])
    with control_plane.client() as api:
        core = client.CoreV1Api(api)
        core.create_namespace({"metadata": {"name": NAMESPACE}})
        accounts = core.list_namespaced_service_account
        wait_for(lambda: accounts(NAMESPACE).items, what="the service account")
    contents = control_plane.kubeconfig.read_text()
    stub.Configure(wire.ConfigureRequest(args=struct({"kubeconfig": contents})))
    return stub


def create(provider, values: Mapping[str, Any], timeout_s: float = 60) -> wire.CreateResponse:
    return provider.Create(wire.CreateRequest(properties=struct(values), timeout=timeout_s))


def read(provider, values: Mapping[str, Any]) -> wire.ReadResponse:
    name = f"{NAMESPACE}/{values['metadata']['name']}"
    return provider.Read(wire.ReadRequest(id=name, inputs=struct(values)))


def delete(provider, values: Mapping[str, Any]) -> None:
    provider.Delete(wire.DeleteRequest(old_inputs=struct(values), timeout=60))


def init_failure(refused: pytest.ExceptionInfo[grpc.RpcError]) -> wire.ErrorResourceInitFailed:
    """What the engine enters in its state of an object that is there and not ready."""
    trailer = dict(refused.value.trailing_metadata())["grpc-status-details-bin"]
    failure = wire.ErrorResourceInitFailed()
    (details,) = Status.FromString(trailer).details
    assert details.Unpack(failure)
    return failure


@pytest.mark.parametrize(
    ("old", "new", "replaced"),
    [("a", "b", True), ("a", "a", False), ("", "b", False), ("a", "", False)],
)
def test_another_cluster_identifier_replaces_everything(stub, old, new, replaced):
    olds, news = (
        struct({"kubeconfig": kubeconfig} | ({"clusterIdentifier": name} if name else {}))
        for kubeconfig, name in (("old", old), ("new", new))
    )
    found = stub.DiffConfig(wire.DiffRequest(olds=olds, news=news))
    assert found.changes == wire.DiffResponse.DIFF_SOME
    assert list(found.replaces) == (["clusterIdentifier"] if replaced else [])


def test_texts_of_a_secret_become_data(stub):
    values = manifest("Secret", "texts", stringData={"key": "text"})
    inputs = stub.Check(wire.CheckRequest(news=struct(values))).inputs
    assert from_wire(inputs) == manifest("Secret", "texts", data={"key": "dGV4dA=="})


@needs_control_plane
def test_a_pod_from_its_creation_to_its_end(provider):
    created = create(provider, pod("lives"))
    assert created.id == f"{NAMESPACE}/lives"
    conditions = {
        item["type"]: item["status"]
        for item in from_wire(created.properties)["status"]["conditions"]
    }
    assert conditions["Ready"] == "True"
    with pytest.raises(grpc.RpcError, match="already exists"):
        create(provider, pod("lives"))
    assert read(provider, pod("lives")).id == created.id
    delete(provider, pod("lives"))
    assert read(provider, pod("lives")).id == ""


@needs_control_plane
def test_a_pod_that_does_not_get_ready_is_created_with_its_reason(provider):
    values = pod("stuck", "missing.test/image:1")
    with pytest.raises(grpc.RpcError, match="ImagePullBackOff") as refused:
        create(provider, values, timeout_s=3)
    assert init_failure(refused).id == f"{NAMESPACE}/stuck"
    assert from_wire(init_failure(refused).inputs) == values
    with pytest.raises(grpc.RpcError, match="ImagePullBackOff") as refused:
        read(provider, values)
    assert init_failure(refused).id == f"{NAMESPACE}/stuck"
    delete(provider, values)


@needs_control_plane
def test_a_field_that_kubernetes_does_not_have_is_refused(provider):
    with pytest.raises(grpc.RpcError, match="replicaz"):
        create(provider, manifest("ConfigMap", "strict", replicaz=1))


@needs_control_plane
def test_a_preview_creates_nothing(provider):
    values = manifest("ConfigMap", "imagined", data={"key": "a"})
    previewed = provider.Create(wire.CreateRequest(properties=struct(values), preview=True))
    assert from_wire(previewed.properties) == values
    assert read(provider, values).id == ""


@needs_control_plane
def test_an_update_drops_what_is_no_longer_given(provider):
    create(provider, manifest("ConfigMap", "edited", data={"old": "a", "both": "b"}))
    news = struct(manifest("ConfigMap", "edited", data={"both": "b", "new": "c"}))
    updated = provider.Update(wire.UpdateRequest(news=news))
    assert from_wire(updated.properties)["data"] == {"both": "b", "new": "c"}


@needs_control_plane
def test_a_service_waits_for_its_pods_unless_nobody_is_to_wait(provider, control_plane):
    create(provider, pod("behind"))
    with control_plane.client() as api:
        condition = {"type": "Ready", "status": "False"}
        status = {"status": {"conditions": [condition]}}
        client.CoreV1Api(api).patch_namespaced_pod_status("behind", NAMESPACE, status)
    spec = {"selector": {"app": "behind"}, "ports": [{"port": 80}]}
    with pytest.raises(grpc.RpcError, match="1 of its pods are not ready"):
        create(provider, manifest("Service", "waits", spec=spec), timeout_s=5)
    create(provider, manifest("Service", "headless", spec=spec | {"clusterIP": "None"}))
    nobody = {"annotations": {SKIP: "true"}}
    create(provider, manifest("Service", "unwaited", spec=spec, metadata=nobody))
    delete(provider, pod("behind"))


@needs_control_plane
def test_deployments_are_waited_for(provider):
    template = {"metadata": {"labels": {"app": "set"}}, "spec": pod()["spec"]}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "set"}}, "template": template}
    values = manifest("Deployment", "set", "apps/v1", spec=spec)
    created = from_wire(create(provider, values).properties)
    assert created["status"]["availableReplicas"] == 2
    delete(provider, values)  # in the foreground: with its pods
    assert read(provider, pod("set")).id == ""


@needs_control_plane
def test_a_job_is_waited_for_until_it_has_succeeded(provider):
    values = job("succeeds")
    created = from_wire(create(provider, values).properties)
    assert created["status"]["succeeded"] == 1
    assert not replaces(provider, values)
    delete(provider, values)


@needs_control_plane
def test_a_failed_job_ends_the_wait_with_its_pods_words_and_is_made_anew(provider):
    values = job("fails", "failing.test/image:1")
    with pytest.raises(grpc.RpcError, match="9 GB of 4 GB") as refused:
        create(provider, values, timeout_s=600)
    (reason,) = init_failure(refused).reasons
    assert "[Error] rank 1: its weights take 9 GB of 4 GB" in reason
    assert "[BackoffLimitExceeded]" in reason
    assert replaces(provider, values) == ['metadata.annotations["pulumi.com/replaceUnready"]']
    delete(provider, values)


@needs_control_plane
def test_a_job_that_does_not_start_says_why(provider):
    values = job("waits", "missing.test/image:1")
    with pytest.raises(grpc.RpcError, match="ImagePullBackOff"):
        create(provider, values, timeout_s=3)
    delete(provider, values)


def test_another_template_is_another_job():
    found = diff(job("a"), job("a", "registry.test/image:2"))
    assert [path.partition(".template")[0] for path in found.replaces] == ["spec"]
    assert not diff(job("a"), job("a", ttlSecondsAfterFinished=9)).replaces


def replaces(provider, values: Mapping[str, Any]) -> list[str]:
    given = struct(values)
    return list(provider.Diff(wire.DiffRequest(old_inputs=given, news=given)).replaces)


def test_a_cluster_that_does_not_answer():
    with running_plugin() as lost:
        lost.Configure(wire.ConfigureRequest(args=struct({"kubeconfig": "/nowhere"})))
        with pytest.raises(grpc.RpcError, match="unreachable"):
            create(lost, manifest("ConfigMap", "lost"))


def test_it_ends_with_the_engine_that_was_killed():
    engine = "import subprocess, sys; subprocess.run([sys.executable, '-m', sys.argv[1]])"
    command = [sys.executable, "-c", engine, "tests.cluster.kubernetes_plugin"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.kill()
        assert process.stdout.read() == ""  # both ends of the pipe are closed
