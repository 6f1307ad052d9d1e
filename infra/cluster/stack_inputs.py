"""What a stack is made of, before anything of it is checked: its own file's, or a program's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi

from contract.faults import MISSING, Fault
from infra.cluster.fit import rank_clusters
from infra.cluster.kubeconfig import (
    PROJECT_ROOT,
    Kubeconfig,
    KubeconfigError,
    given_kubeconfig,
    read_kubeconfig,
)
from infra.cluster.live import stack_outputs
from infra.cluster.secrets import NAMESPACE, access_faults, read_secrets, secret_faults
from infra.stack.config import DEPLOYMENT_KEY, DeploymentConfig
from infra.stack.faults import StackConfigError
from infra.stack.file import lock_name, parse_deployment


@dataclass(frozen=True)
class StackInputs:
    """`source` and `secrets_key` are what faults are told of. Relative paths start from `folder`.

    `kubeconfigs` are contents by cluster id, `later` those that are not known yet; the clusters of
    neither have files.
    """

    source: str
    deployment: object
    secrets: Mapping[str, str]
    lock: Path
    faults: Sequence[Fault] = ()
    secrets_key: str = f"{NAMESPACE}:"
    folder: Path = PROJECT_ROOT
    kubeconfigs: Mapping[str, Any] = field(default_factory=dict)
    later: Mapping[str, pulumi.Output[str]] = field(default_factory=dict)

    def checked(self) -> tuple[DeploymentConfig, dict[str, Kubeconfig]]:
        """Raises StackConfigError with every fault."""
        faults = list(self.faults)
        deployment = None
        kubeconfigs: dict[str, Kubeconfig] = {}
        try:
            deployment = parse_deployment(self.deployment, on_clusters=True)
        except StackConfigError as error:
            faults = [*error.faults, *faults]
        else:
            kubeconfigs, problems = self._read_kubeconfigs(deployment)
            faults = [*problems, *faults]
        faults += secret_faults(self.secrets, self.secrets_key)
        if deployment is not None:
            faults += access_faults(deployment, self.secrets)
        if deployment is None or faults:
            raise StackConfigError(self.source, faults)
        return deployment, kubeconfigs

    def _read_kubeconfigs(
        self, deployment: DeploymentConfig
    ) -> tuple[dict[str, Kubeconfig], list[Fault]]:
        found, faults = {}, []
        known = ", ".join(deployment.clusters)
        for name in {*self.kubeconfigs, *self.later} - deployment.clusters.keys():
            rule = f"is the kubeconfig of no cluster in deployment.clusters ({known})"
            faults.append(Fault(f"kubeconfigs.{name}", MISSING, rule))
        for name in rank_clusters(deployment):
            if name in self.later:
                continue
            cluster = deployment.clusters[name]
            given = self.kubeconfigs.get(name)
            try:
                if given is not None:
                    found[name] = given_kubeconfig(cluster, given)
                else:
                    found[name] = read_kubeconfig(cluster, self.folder, stack_outputs)
            except KubeconfigError as error:
                key = "kubeconfig_stack" if cluster.kubeconfig_stack else "kubeconfig"
                path, value = f"clusters.{name}.{key}", getattr(cluster, key)
                if given is not None:
                    path, value = f"kubeconfigs.{name}", MISSING  # it has credentials
                faults.append(Fault(path, value, str(error)))
        return found, faults


def config_inputs() -> StackInputs:
    """Of the stack that Pulumi runs: its configuration. Raises StackConfigError."""
    source = f"stack {pulumi.get_stack()}"
    try:
        mapping = pulumi.Config(NAMESPACE).require_object("deployment")
    except pulumi.ConfigMissingError:
        rule = "is required; stacks/Pulumi.kind.yaml shows one"
        raise StackConfigError(source, [Fault(DEPLOYMENT_KEY, MISSING, rule)]) from None
    values, faults = read_secrets()
    lock = PROJECT_ROOT / "stacks" / lock_name(pulumi.get_stack())
    return StackInputs(source, mapping, values, lock, faults)
