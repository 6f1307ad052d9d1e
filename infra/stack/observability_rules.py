"""Rules of what Prometheus finds. Functions yield Faults; none raises."""

from __future__ import annotations

from collections.abc import Iterator

from contract.faults import Fault
from infra.stack.config import DeploymentConfig
from infra.stack.pod_rules import OWN_DOMAINS


def operator_faults(deployment: DeploymentConfig) -> Iterator[Fault]:
    """Of the labels that the operator's kinds get."""
    observability = deployment.observability
    path = "observability.operator_labels"
    if observability.operator_labels and not observability.prometheus_operator:
        rule = "needs observability.prometheus_operator: true, whose kinds these labels are of"
        yield Fault(path, observability.operator_labels, rule)
    for name, value in observability.operator_labels.items():
        if name.rpartition("/")[0] in OWN_DOMAINS:
            rule = "is this stack's own, which must not be another"
            yield Fault(f"{path}.{name}", value, rule)
