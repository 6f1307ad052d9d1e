"""The inference server: the public API on a port of every node, and its right to find blocks."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.rbac import v1 as rbac

from contract.specs import INFERENCE_PORT, InferenceServerSpec, render
from infra.cluster import labels
from infra.cluster.objects import Clusters
from infra.cluster.pods import (
    SECRET_FOLDER,
    SPEC_FOLDER,
    Container,
    config_map_mount,
    empty_mount,
    http_probes,
    python_module,
    secret_mount,
)
from infra.cluster.tier import QUIET_S, STARTUP_S, Tier, TierPods
from infra.plan.process_specs import Addresses, inference_server_spec

SPEC_FILE = "inference_server.json"
KEYS_FILE = "api_keys"
LOG_FOLDER = "/var/lib/splitstack"


@dataclass(frozen=True)
class InferenceServerArgs:
    """`api_keys` None: everybody may ask."""

    clusters: Clusters
    addresses: Addresses
    image: pulumi.Input[str]
    api_keys: pulumi.Output[str] | None = None


class InferenceServerTier(Tier):
    """`name` is that of its Deployment, its Service and everything else of it."""

    def __init__(
        self, name: str, args: InferenceServerArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        deployment = args.clusters.deployment
        super().__init__(
            "InferenceServer",
            name,
            args.clusters,
            opts,
            name=deployment.inference_server_name,
            namespace=deployment.namespaces.inference_server,
            component=labels.INFERENCE_SERVER,
        )
        self._args, self._server = args, deployment.inference_server
        self._discovers = self._server.discovery == "kubernetes"
        blocks = deployment.namespaces.blocks
        spec = inference_server_spec(
            deployment,
            args.addresses,
            discovery_namespace=blocks if self._discovers else "",
            request_log_path=f"{LOG_FOLDER}/requests.sqlite3",
        )
        before = self._mounted(spec)
        if self._discovers:
            before += self._right_to_discover(blocks)
        self._node_port()
        # One of them: the limits of keys and the request log are its own.
        pods = TierPods(
            container=self._container(spec),
            files=render(spec),
            drain_s=spec.request_deadline_s,
            service_account=self.name if self._discovers else "",
        )
        self._workload(pods, before)
        self.register_outputs({"name": self.name})

    def _mounted(self, spec: InferenceServerSpec) -> list[pulumi.Resource]:
        """What the pod mounts, which must be there before it."""
        made: list[pulumi.Resource] = [self._config_map(self.name, {SPEC_FILE: render(spec)})]
        if self._args.api_keys is not None:
            made.append(self._secret(self.name, {KEYS_FILE: self._args.api_keys}))
        return made

    def _right_to_discover(self, blocks: str) -> list[pulumi.Resource]:
        """An account of its own that may follow Services and their endpoints, there only."""
        role = rbac.Role(
            self.name,
            metadata=self._metadata(self.name, namespace=blocks),
            rules=[
                rbac.PolicyRuleArgs(
                    api_groups=[""], resources=["services"], verbs=["list", "watch"]
                ),
                rbac.PolicyRuleArgs(
                    api_groups=["discovery.k8s.io"],
                    resources=["endpointslices"],
                    verbs=["list", "watch"],
                ),
            ],
            opts=self._options(),
        )
        binding = rbac.RoleBinding(
            self.name,
            metadata=self._metadata(self.name, namespace=blocks),
            role_ref=rbac.RoleRefArgs(
                api_group="rbac.authorization.k8s.io", kind="Role", name=self.name
            ),
            subjects=[
                rbac.SubjectArgs(kind="ServiceAccount", name=self.name, namespace=self._namespace)
            ],
            opts=self._options(),
        )
        return [self._account(self.name), role, binding]

    def _node_port(self) -> None:
        port = core.ServicePortArgs(
            name="http",
            port=INFERENCE_PORT,
            target_port="http",
            node_port=self._server.node_port,
        )
        self._service(port, kind="NodePort")

    def _container(self, spec: InferenceServerSpec) -> Container:
        command = python_module("inference_server", "--spec", f"{SPEC_FOLDER}/{SPEC_FILE}")
        mounts = [config_map_mount(self.name)]
        if self._args.api_keys is not None:
            mounts.append(secret_mount(self.name))
            # Read again when it changes: a revoked key needs no new pod.
            command += ("--api-keys-file", f"{SECRET_FOLDER}/{KEYS_FILE}")
        if spec.request_log_path:
            mounts.append(empty_mount("request-log", LOG_FOLDER))
        return Container(
            name="inference-server",
            image=self._args.image,
            command=command,
            ports={"http": spec.port},
            # Plain /readyz covers the blocks behind; they come and go without it.
            probes=http_probes(spec.port, startup_s=STARTUP_S, readiness_path="/readyz?self"),
            cpu=self._server.cpu,
            quiet_s=QUIET_S,
            memory=self._server.memory,
            mounts=mounts,
        )
