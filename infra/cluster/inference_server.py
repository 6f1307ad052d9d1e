"""The inference server: the public API, how it is reached, and its right to find blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pulumi
from pulumi_kubernetes.apiextensions import CustomResource
from pulumi_kubernetes.core import v1 as core
from pulumi_kubernetes.networking import v1 as networking
from pulumi_kubernetes.rbac import v1 as rbac

from contract.specs import INFERENCE_PORT, InferenceServerSpec, render
from infra.cluster import labels
from infra.cluster.mounts import (
    SECRET_FOLDER,
    SPEC_FOLDER,
    config_map_mount,
    empty_mount,
    secret_mount,
)
from infra.cluster.objects import SKIP_AWAIT, Clusters
from infra.cluster.placement import tier_placement
from infra.cluster.pods import Container, http_probes, python_module
from infra.cluster.tier import QUIET_S, STARTUP_S, Tier, TierPods
from infra.plan.process_specs import Addresses, inference_server_spec
from infra.stack.expose_config import Expose

SPEC_FILE = "inference_server.json"
KEYS_FILE = "api_keys"
LOG_FOLDER = "/var/lib/splitstack"
GATEWAY_API = "gateway.networking.k8s.io/v1"


@dataclass(frozen=True)
class InferenceServerArgs:
    """`api_keys` None: everybody may ask."""

    clusters: Clusters
    addresses: Addresses
    image: pulumi.Input[str]
    api_keys: pulumi.Output[str] | None = None


class InferenceServerTier(Tier):
    """`name` is that of its Deployment, its Service and everything else of it.

    `balancer` is the host name or address of its load balancer; "" without one.
    """

    balancer: pulumi.Output[str]

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
        self.balancer = self._expose()
        # One of them: the limits of keys and the request log are its own.
        pods = TierPods(
            container=self._container(spec),
            files=render(spec),
            drain_s=spec.request_deadline_s,
            placement=tier_placement(self._server),
            template=self._server.pod_template,
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

    def _expose(self) -> pulumi.Output[str]:
        expose = self._server.expose
        annotations = dict(expose.annotations)
        if expose.mode == "load_balancer":
            port = core.ServicePortArgs(name="http", port=expose.port, target_port="http")
            return self._load_balancer(port, expose.class_name, annotations).status.apply(_address)
        port = core.ServicePortArgs(name="http", port=INFERENCE_PORT, target_port="http")
        if expose.mode == "node_port":
            port.node_port = self._server.node_port
            self._service(port, kind="NodePort", annotations=annotations)
        else:
            self._service(port, kind="ClusterIP")
        if expose.mode == "ingress":
            self._ingress(expose)
        elif expose.mode == "gateway":
            self._route(expose)
        return pulumi.Output.from_input("")

    def _ingress(self, expose: Expose) -> None:
        """Not waited for: nobody may have made an address of it, and its host is known."""
        backend = networking.IngressBackendArgs(
            service=networking.IngressServiceBackendArgs(
                name=self.name, port=networking.ServiceBackendPortArgs(name="http")
            )
        )
        path = networking.HTTPIngressPathArgs(path="/", path_type="Prefix", backend=backend)
        rule = networking.IngressRuleArgs(
            host=expose.host, http=networking.HTTPIngressRuleValueArgs(paths=[path])
        )
        tls = networking.IngressTLSArgs(hosts=[expose.host], secret_name=expose.tls_secret)
        networking.Ingress(
            self.name,
            metadata=self._metadata(self.name, annotations=SKIP_AWAIT | expose.annotations),
            spec=networking.IngressSpecArgs(
                ingress_class_name=expose.class_name or None,
                rules=[rule],
                tls=[tls] if expose.tls_secret else None,
            ),
            opts=self._options(),
        )

    def _route(self, expose: Expose) -> None:
        namespace, _, gateway = expose.gateway.partition("/")
        parent = {"name": gateway, "namespace": namespace} if gateway else {"name": self.name}
        if not gateway:
            self._gateway_object("Gateway", expose, _gateway_spec(expose))
        spec = {
            "parentRefs": [parent],
            "hostnames": [expose.host],
            "rules": [{"backendRefs": [{"name": self.name, "port": INFERENCE_PORT}]}],
        }
        self._gateway_object("HTTPRoute", expose, spec)

    def _gateway_object(self, kind: str, expose: Expose, spec: dict[str, Any]) -> None:
        CustomResource(
            self.name,
            api_version=GATEWAY_API,
            kind=kind,
            metadata=self._metadata(self.name, annotations=SKIP_AWAIT | expose.annotations),
            spec=spec,
            opts=self._options(),
        )

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


def _gateway_spec(expose: Expose) -> dict[str, Any]:
    """A Gateway for this host alone."""
    listener: dict[str, Any] = {"name": "http", "protocol": "HTTP", "port": 80}
    if expose.tls_secret:
        tls = {"mode": "Terminate", "certificateRefs": [{"name": expose.tls_secret}]}
        listener = {"name": "https", "protocol": "HTTPS", "port": 443, "tls": tls}
    return {
        "gatewayClassName": expose.class_name,
        "listeners": [listener | {"hostname": expose.host}],
    }


def _address(status: Any) -> str:
    """Of a load balancer; "" while nobody has made one."""
    balancer = getattr(status, "load_balancer", None)
    for item in getattr(balancer, "ingress", None) or ():
        if found := item.hostname or item.ip:
            return str(found)
    return ""
