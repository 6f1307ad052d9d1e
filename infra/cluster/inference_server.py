"""The inference server: the public API on a port of every node, and its right to find blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pulumi
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.meta import v1 as meta
from pulumi_kubernetes.rbac import v1 as rbac

from contract.specs import INFERENCE_PORT, InferenceServerSpec, render
from infra.cluster import labels
from infra.cluster.objects import SKIP_AWAIT, metadata, object_options
from infra.cluster.pods import (
    SECRET_FOLDER,
    SPEC_FOLDER,
    Container,
    config_map_mount,
    empty_mount,
    http_probes,
    pod_spec,
    python_module,
    secret_mount,
)
from infra.cluster.tier import QUIET_S, STARTUP_S, TierPods, tier_deployment
from infra.plan.process_specs import Addresses, inference_server_spec
from infra.stack.config import DeploymentConfig

SPEC_FILE = "inference_server.json"
KEYS_FILE = "api_keys"
LOG_FOLDER = "/var/lib/splitstack"
_COMPONENT = labels.INFERENCE_SERVER


@dataclass(frozen=True)
class InferenceServerArgs:
    """`api_keys` None: everybody may ask; `namespaces` are waited for."""

    deployment: DeploymentConfig
    addresses: Addresses
    image: pulumi.Input[str]
    provider: pulumi.ProviderResource
    api_keys: pulumi.Output[str] | None = None
    namespaces: Sequence[pulumi.Resource] = ()


class InferenceServerTier(pulumi.ComponentResource):
    """`name` is that of its Deployment, its Service and everything else of it."""

    def __init__(
        self,
        name: str,
        arguments: InferenceServerArgs,
        options: pulumi.ResourceOptions | None = None,
    ) -> None:
        super().__init__("splitstack:deployment:InferenceServer", name, None, options)
        self._arguments = arguments
        self._deployment = arguments.deployment
        self.name = self._deployment.inference_server_name
        self._namespace = self._deployment.namespaces.inference_server
        self._discovers = self._deployment.inference_server.discovery == "kubernetes"
        blocks = self._deployment.namespaces.blocks
        spec = inference_server_spec(
            self._deployment,
            arguments.addresses,
            discovery_namespace=blocks if self._discovers else "",
            request_log_path=f"{LOG_FOLDER}/requests.sqlite3",
        )
        before = self._mounted(spec)
        if self._discovers:
            before += self._right_to_discover(blocks)
        self._service()
        self._workload(spec, before)
        self.register_outputs({"name": self.name})

    def _mounted(self, spec: InferenceServerSpec) -> list[pulumi.Resource]:
        """What the pod mounts, which must be there before it."""
        made: list[pulumi.Resource] = [
            core.ConfigMap(
                self.name,
                metadata=self._metadata(),
                data={SPEC_FILE: render(spec)},
                opts=self._options(),
            )
        ]
        if self._arguments.api_keys is not None:
            made.append(
                core.Secret(
                    self.name,
                    metadata=self._metadata(),
                    string_data={KEYS_FILE: self._arguments.api_keys},
                    opts=self._options(),
                )
            )
        return made

    def _right_to_discover(self, blocks: str) -> list[pulumi.Resource]:
        """An account of its own that may follow Services and their endpoints, there only."""
        account = core.ServiceAccount(
            self.name,
            metadata=self._metadata(),
            automount_service_account_token=False,
            opts=self._options(),
        )
        role = rbac.Role(
            self.name,
            metadata=self._metadata(blocks),
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
            metadata=self._metadata(blocks),
            role_ref=rbac.RoleRefArgs(
                api_group="rbac.authorization.k8s.io", kind="Role", name=self.name
            ),
            subjects=[
                rbac.SubjectArgs(kind="ServiceAccount", name=self.name, namespace=self._namespace)
            ],
            opts=self._options(),
        )
        return [account, role, binding]

    def _service(self) -> None:
        core.Service(
            self.name,
            metadata=self._metadata(annotations=SKIP_AWAIT),
            spec=core.ServiceSpecArgs(
                type="NodePort",
                selector=labels.selector(self._deployment, _COMPONENT),
                ports=[
                    core.ServicePortArgs(
                        name="http",
                        port=INFERENCE_PORT,
                        target_port="http",
                        node_port=self._deployment.inference_server.node_port,
                    )
                ],
            ),
            opts=self._options(),
        )

    def _workload(self, spec: InferenceServerSpec, before: Sequence[pulumi.Resource]) -> None:
        # One of them: the limits of keys and the request log are its own.
        pods = TierPods(
            component=_COMPONENT,
            spec=pod_spec(
                containers=[self._container(spec)],
                drain_s=spec.request_deadline_s,
                service_account=self.name if self._discovers else "",
                api_token=self._discovers,
                image_pull_secrets=self._deployment.image_pull_secrets,
            ),
            files=render(spec),
            drain_s=spec.request_deadline_s,
        )
        tier_deployment(self._deployment, self.name, self._namespace, pods, self._options(before))

    def _container(self, spec: InferenceServerSpec) -> Container:
        server = self._deployment.inference_server
        command = python_module("inference_server", "--spec", f"{SPEC_FOLDER}/{SPEC_FILE}")
        mounts = [config_map_mount(self.name)]
        if self._arguments.api_keys is not None:
            mounts.append(secret_mount(self.name))
            # Read again when it changes: a revoked key needs no new pod.
            command += ("--api-keys-file", f"{SECRET_FOLDER}/{KEYS_FILE}")
        if spec.request_log_path:
            mounts.append(empty_mount("request-log", LOG_FOLDER))
        return Container(
            name="inference-server",
            image=self._arguments.image,
            command=command,
            ports={"http": spec.port},
            # Plain /readyz covers the blocks behind; they come and go without it.
            probes=http_probes(spec.port, startup_s=STARTUP_S, readiness_path="/readyz?self"),
            cpu=server.cpu,
            quiet_s=QUIET_S,
            memory=server.memory,
            mounts=mounts,
        )

    def _metadata(
        self, namespace: str = "", annotations: dict[str, str] | None = None
    ) -> meta.ObjectMetaArgs:
        place = namespace or self._namespace
        return metadata(self._deployment, self.name, place, _COMPONENT, annotations=annotations)

    def _options(self, depends_on: Sequence[pulumi.Resource] = ()) -> pulumi.ResourceOptions:
        before = [*self._arguments.namespaces, *depends_on]
        return object_options(self, self._arguments.provider, depends_on=before)
