"""Whether the kubeconfig's user may do what `pulumi up`, `destroy` and `status` do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kubernetes import client

from infra.cluster.fit import namespaces_on
from infra.inspection.client import REQUEST_TIMEOUT, ClusterClient, Finding, Level
from infra.inspection.declared import DeclaredObject
from infra.stack.config import DeploymentConfig

# What the Kubernetes provider of Pulumi does with an object: server-side apply, then waiting.
_VERBS = ("create", "get", "list", "watch", "patch", "delete")


def check_rights(
    cluster: ClusterClient, deployment: DeploymentConfig, objects: Iterable[DeclaredObject]
) -> Iterator[Finding]:
    """By SelfSubjectAccessReview, one line for each kind of object and namespace."""
    api = client.AuthorizationV1Api(cluster.api)
    kinds = dict.fromkeys((item.group, item.resource, item.namespace) for item in objects)
    with cluster.asked_to("review your own rights"):
        for group, resource, namespace in kinds:
            yield from _check(api, cluster, "fault", _VERBS, group, resource, namespace)
        yield from _check(api, cluster, "warning", ("list",), "", "nodes", "")
        if cluster.cluster_id == deployment.cluster_of(0):
            # By which `status` asks the master.
            verbs, ports = ("get", "create"), "pods/portforward"
            yield from _check(api, cluster, "warning", verbs, "", ports, deployment.namespace)
        for namespace in namespaces_on(deployment, cluster.cluster_id):
            yield from _check(api, cluster, "warning", ("list",), "", "events", namespace)
            yield from _check(api, cluster, "warning", ("get",), "", "pods/log", namespace)


def _check(
    api: client.AuthorizationV1Api,
    cluster: ClusterClient,
    level: Level,
    verbs: tuple[str, ...],
    group: str,
    resource: str,
    namespace: str,
) -> Iterator[Finding]:
    # Whoever may do everything is asked once: a review is a round trip.
    if len(verbs) > 1 and _may(api, "*", group, resource, namespace):
        return
    denied = [verb for verb in verbs if not _may(api, verb, group, resource, namespace)]
    if denied:
        kind = f"{resource}.{group}" if group else resource
        where = f" in namespace {namespace}" if namespace else ""
        text = f"you may not {', '.join(denied)} {kind}{where}; have the rights granted"
        yield cluster.finding(level, text)


def _may(
    api: client.AuthorizationV1Api, verb: str, group: str, resource: str, namespace: str
) -> bool:
    resource, _, subresource = resource.partition("/")
    review = client.V1SelfSubjectAccessReview(
        spec=client.V1SelfSubjectAccessReviewSpec(
            resource_attributes=client.V1ResourceAttributes(
                verb=verb,
                group=group,
                resource=resource,
                subresource=subresource or None,
                namespace=namespace or None,
            )
        )
    )
    answer = api.create_self_subject_access_review(review, _request_timeout=REQUEST_TIMEOUT)
    return bool(answer.status and answer.status.allowed)
