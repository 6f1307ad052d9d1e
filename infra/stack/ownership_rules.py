"""Rules of how clusters are reached, and of what a stack keeps there. Functions yield Faults."""

from __future__ import annotations

from collections.abc import Iterator

from contract.faults import Fault
from infra.stack.config import DeploymentConfig

# By which OpenSSL and Python's libraries find a file of authorities.
BUNDLE_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def ownership_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Faults that matter on one machine and on clusters alike."""
    yield from _kubeconfig_faults(deployment)
    yield from _protection_faults(deployment)
    yield from _bundle_faults(deployment)


def _bundle_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    bundle = deployment.ca_bundle
    if bundle.config_map and bundle.secret:
        yield Fault("ca_bundle.secret", bundle.secret, "is refused beside config_map; keep one")
    if not bundle.given:
        if "key" in bundle.model_fields_set:
            rule = "needs config_map or secret, which it is a key of"
            yield Fault("ca_bundle.key", bundle.key, rule)
        return
    for name in BUNDLE_VARIABLES:
        if name in deployment.extra_env:
            rule = "is refused beside ca_bundle, which sets it"
            yield Fault(f"extra_env.{name}", deployment.extra_env[name], rule)


def _kubeconfig_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    for name, cluster in deployment.clusters.items():
        if cluster.kubeconfig and cluster.kubeconfig_stack:
            rule = "is refused beside kubeconfig, a file: it is in one place"
            yield Fault(f"clusters.{name}.kubeconfig_stack", cluster.kubeconfig_stack, rule)
        if "kubeconfig_output" in cluster.model_fields_set and not cluster.kubeconfig_stack:
            rule = "needs kubeconfig_stack, the stack whose output it is"
            yield Fault(f"clusters.{name}.kubeconfig_output", cluster.kubeconfig_output, rule)


def _protection_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    store, cache = deployment.session_store, deployment.model_cache
    histories = bool(deployment.proxy_blocks) and store.size is not None and store.mode != "url"
    kept = deployment.namespaces.create or histories or cache.mode == "shared-claim"
    if deployment.protect and not kept:
        rule = (
            "has nothing to protect: this stack makes neither namespaces (namespaces.create) nor a "
            "claim of histories (session_store.size) nor a shared one of models"
        )
        yield Fault("protect", True, rule)
