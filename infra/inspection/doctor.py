"""`splitstack doctor`: what `pulumi preview` cannot see, asked before anything is created."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kubernetes import client

from infra.cluster.cluster_lookup import node_architectures
from infra.cluster.fit import plan_on_clusters, rank_clusters
from infra.cluster.platforms import platform_faults
from infra.inspection.client import (
    REQUEST_TIMEOUT,
    ClusterClient,
    ClusterError,
    Finding,
    open_cluster,
)
from infra.inspection.declared import DeclaredObject, ProgramError, declared_objects
from infra.inspection.dry_run import check_admission
from infra.inspection.nodes import check_nodes
from infra.inspection.objects import check_names, check_needed
from infra.inspection.registry import check_registries
from infra.inspection.rights import check_rights
from infra.plan.lock import ModelReader
from infra.stack.config import DeploymentConfig
from infra.stack.faults import StackConfigError


def examine(deployment: DeploymentConfig, reader: ModelReader | None = None) -> Iterator[Finding]:
    """Everything about the clusters and registries of a deployment, as it is found."""
    try:
        fitted, plan = plan_on_clusters(deployment, reader)
    except StackConfigError as error:
        for fault in error.faults:
            yield Finding("fault", "stack file", str(fault))
        return
    declared: list[DeclaredObject] | None = None
    architectures: frozenset[str] = frozenset()
    for cluster_id in rank_clusters(deployment):
        try:
            cluster = open_cluster(deployment, cluster_id)
            yield _answer(cluster)
            architectures |= node_architectures(cluster.kubeconfig)
            declared = declared_objects(fitted, plan) if declared is None else declared
            objects = [item for item in declared if item.cluster == cluster_id]
            yield from _examine_cluster(cluster, fitted, objects)
        except ClusterError as error:
            yield Finding("fault", f"cluster {cluster_id}", _without(str(error), cluster_id))
        except ProgramError as error:
            yield Finding("fault", "the program", str(error))
            break
    for fault in platform_faults(deployment, architectures):
        yield Finding("fault", "stack file", str(fault))
    yield from check_registries(deployment, architectures)


def _answer(cluster: ClusterClient) -> Finding:
    with cluster.asked_to("ask for its version"):
        version = client.VersionApi(cluster.api).get_code(_request_timeout=REQUEST_TIMEOUT)
    text = f"Kubernetes {version.git_version} answers at {cluster.kubeconfig.server}"
    return cluster.finding("fine", text)


def _examine_cluster(
    cluster: ClusterClient, deployment: DeploymentConfig, objects: Sequence[DeclaredObject]
) -> Iterator[Finding]:
    found: list[Finding] = []
    for checked in (
        check_rights(cluster, deployment, objects),
        check_needed(cluster, deployment),
        check_names(cluster, deployment, objects),
        check_nodes(cluster, deployment),
        check_admission(cluster, objects),
    ):
        found += checked
    yield from found
    if not found:
        text = f"rights, names, nodes, devices and admission suit {deployment.deployment_name}"
        yield cluster.finding("fine", text)


def _without(sentence: str, cluster_id: str) -> str:
    """The sentence without the subject that a finding has of its own."""
    return sentence.removeprefix(f"cluster {cluster_id}").lstrip(": ")
