"""What makes a stack seen by a Prometheus and a Grafana that are in the cluster already."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from typing import Any

import pulumi
import yaml
from pulumi_kubernetes.apiextensions import CustomResource
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta

from infra.cluster.labels import COMPONENT, INSTANCE, labels
from infra.cluster.objects import SKIP_AWAIT, Clusters, Component
from infra.cluster.observability.alert_rules import alert_rules
from infra.cluster.observability.metrics_targets import PATH, MetricsTarget, metrics_targets

DASHBOARD_FILE = "dashboard.json"
_OPERATOR_API = "monitoring.coreos.com/v1"


class Observability(Component):
    """Nothing unless observability.enabled: dashboard, alert rules and what is scraped.

    Without the Prometheus operator the rules are a ConfigMap to mount, and Services carry the
    `prometheus.io/` annotations that Prometheus' example configuration and chart discover.
    """

    def __init__(
        self, name: str, args: Clusters, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("Observability", name, args, opts)
        if self._deployment.observability.enabled:
            self._dashboard()
            self._alerts()
            for target in metrics_targets(self._deployment):
                self._scrape(target)
        self.register_outputs({})

    def _dashboard(self) -> None:
        name = f"{self._deployment.deployment_name}-dashboard"
        found_by = {self._deployment.observability.dashboard_label: "1"}
        core.ConfigMap(
            name,
            metadata=meta.ObjectMetaArgs(
                name=name,
                namespace=self._deployment.namespace,
                labels=labels(self._deployment, "") | found_by,
            ),
            data={f"{name}.json": dashboard(self._deployment.deployment_name)},
            opts=self._options(),
        )

    def _alerts(self) -> None:
        name = f"{self._deployment.deployment_name}-alerts"
        rules = alert_rules(self._deployment)
        if not self._deployment.observability.prometheus_operator:
            text = yaml.safe_dump(rules, sort_keys=False, width=1000)
            self._config_map(name, {f"{name}.yaml": text})
            return
        CustomResource(
            name,
            api_version=_OPERATOR_API,
            kind="PrometheusRule",
            metadata=self._found_by_operator(self._metadata(name)),
            spec=rules,
            opts=self._options(),
        )

    def _found_by_operator(self, metadata: meta.ObjectMetaArgs) -> meta.ObjectMetaArgs:
        """With the labels that its Prometheus selects by."""
        assert isinstance(metadata.labels, dict)
        metadata.labels = metadata.labels | self._deployment.observability.operator_labels
        return metadata

    def _scrape(self, target: MetricsTarget) -> None:
        name = f"{self._deployment.deployment_name}-metrics-{target.name}"
        resource_name = f"{name}-{target.cluster}"
        options = self._options(cluster=target.cluster)
        annotations = {
            **SKIP_AWAIT,
            "prometheus.io/scrape": "true",
            "prometheus.io/port": str(target.port),
            "prometheus.io/path": PATH,
        }
        operator = self._deployment.observability.prometheus_operator
        metadata = self._metadata(
            name,
            namespace=target.namespace,
            component=target.component,
            annotations=None if operator else annotations,
        )
        if operator:
            CustomResource(
                resource_name,
                api_version=_OPERATOR_API,
                kind="PodMonitor",
                metadata=self._found_by_operator(metadata),
                spec=pod_monitor_spec(target),
                opts=options,
            )
            return
        port = core.ServicePortArgs(name="metrics", port=target.port, target_port=target.port)
        core.Service(
            resource_name,
            metadata=metadata,
            spec=core.ServiceSpecArgs(
                cluster_ip="None",
                # A rank that is loading is worth seeing too.
                publish_not_ready_addresses=True,
                selector=target.selected,
                ports=[port],
            ),
            opts=options,
        )


def pod_monitor_spec(target: MetricsTarget) -> dict[str, Any]:
    """A PodMonitor's; the port by number, which containers need not name."""
    return {
        "selector": {"matchLabels": target.selected},
        # What the alert rules tell stacks and tiers apart by.
        "podTargetLabels": [INSTANCE, COMPONENT],
        "podMetricsEndpoints": [{"portNumber": target.port, "path": PATH}],
    }


def dashboard(deployment_name: str) -> str:
    """With a title and an id of its own: Grafana takes none of two that share theirs."""
    found = json.loads(read(DASHBOARD_FILE))
    digest = hashlib.sha256(deployment_name.encode()).hexdigest()[:12]
    found |= {"title": f"{found['title']} {deployment_name}", "uid": f"{found['uid']}-{digest}"}
    return json.dumps(found, indent=2)


def read(name: str) -> str:
    """A file of this folder."""
    return files("infra.cluster.observability").joinpath(name).read_text("utf-8")
