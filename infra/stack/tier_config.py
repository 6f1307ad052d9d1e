"""The stack file's sections of the tiers in front of the ranks, and of what lies between them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contract.specs import (
    INFERENCE_PORT,
    LARGEST_BODY_BYTES,
    PROXY_PORT,
    InferenceServerSpec,
    ProxySpec,
    SessionsSpec,
)
from infra.stack import types
from infra.stack.expose_config import Expose
from infra.stack.generation_config import GenerationConfig
from infra.stack.pod_config import Pods


class Sessions(types.Section):
    """How far a session's history grows."""

    max_turns: types.Positive = SessionsSpec.max_turns
    """Turns kept of one session."""
    max_tokens: types.Positive = SessionsSpec.max_tokens
    """Tokens kept of one session."""
    max_age_s: types.Seconds = SessionsSpec.max_age_s
    """Seconds after its last request at which a session is forgotten."""


class Autoscaler(types.Section):
    """How instances follow load between min_instances and max_instances."""

    cpu_percent: Annotated[types.Integer, Field(ge=1, le=100)] = 70
    """CPU use, in percent of what an instance asks for, that the number of instances aims at."""
    scale_up_window_s: types.Window = 0
    """Seconds of load that an instance more needs."""
    scale_down_window_s: types.Window = 300
    """Seconds of less load before an instance goes."""


class Probe(types.Section):
    """How often an instance is asked whether it lives."""

    period_s: Annotated[types.Integer, Field(ge=1, le=3600)] = 1
    """Seconds between two questions."""
    failure_threshold: Annotated[types.Integer, Field(ge=1, le=100)] = 3
    """Questions in a row without an answer after which it is restarted, or gets no requests."""


class ProxyBlock(Pods):
    """One block: chat sessions and the block protocol in front of rank 0."""

    block_id: types.Label
    """The `model` of /v1/infer."""
    component: types.NonEmptyText = ProxySpec.component
    """Component that the block is an instance of."""
    system_message: types.Text = ""
    """System message of requests that bring none."""
    generation_config: GenerationConfig = GenerationConfig()
    """Generation parameters of requests that bring none."""
    chat_template_kwargs: types.TemplateArguments = Field(default_factory=dict)
    """Names for the model's chat template, such as enable_thinking; a request's own go first."""
    labels: dict[str, types.Text] = Field(default_factory=dict)
    """What selection queries pick blocks by."""
    min_instances: types.Positive = 1
    """Instances at least."""
    max_instances: types.Positive = 1
    """Instances at most; above min_instances an autoscaler decides."""
    autoscaler: Autoscaler = Autoscaler()
    """When instances come and go; its metrics need metrics-server in the cluster."""
    node_id: types.Node = ""
    """Node that runs every instance (its kubernetes.io/hostname); empty: any."""
    probe: Probe = Probe()
    """When an instance that does not answer is restarted."""
    cpu: types.Cores = 0.5
    """CPU cores of an instance: request and limit."""
    memory: types.Bytes = 512 * 2**20
    """Memory of an instance: request and limit."""
    sessions: Sessions = Sessions()
    """How far a session's history grows."""
    port: types.Port = PROXY_PORT
    """Port of its HTTP API in the cluster."""


class RequestLog(types.Section):
    """Who asked which block when, what it cost and how it ended, at /logs of the public API."""

    enabled: bool = True
    """Whether there is one."""
    rows: types.Positive = InferenceServerSpec.request_log_rows
    """Requests kept; older ones are dropped."""
    texts: bool = False
    """Whether questions and answers are kept too."""


class InferenceServer(Pods):
    """The public API."""

    enabled: bool = True
    """Whether this stack has one."""
    node_port: types.Port = INFERENCE_PORT
    """Port on every node; on one machine the port itself."""
    public_host: types.Address = ""
    """Host of the URLs that `pulumi up` prints; empty: a node's or the load balancer's address."""
    expose: Expose = Expose()
    """How it is reached from outside of the cluster."""
    discovery: Literal["static", "kubernetes"] = "kubernetes"
    """kubernetes serves every block in namespaces.blocks; static those of this stack only."""
    anonymous: bool = False
    """Whether everybody may ask, in a cluster; needed where there is no splitstack:api_keys."""
    cors_origins: list[types.Origin] = Field(default_factory=list)
    """Origins of other web pages that may ask from a browser, as in https://chat.test; "*": all."""
    aliases: dict[types.ModelName, dict[types.Label, types.Share]] = Field(default_factory=dict)
    """Further names of models: name -> {block_id: share}, as in {chat: {blue: 9, green: 1}}."""
    request_log: RequestLog = RequestLog()
    """What is kept of requests."""
    max_body_bytes: Annotated[types.Positive, Field(le=LARGEST_BODY_BYTES // 2)] = (
        InferenceServerSpec.max_body_bytes
    )
    """Size of a request's body at most."""
    cpu: types.Cores = 1.0
    """CPU cores: request and limit."""
    memory: types.Bytes = 512 * 2**20
    """Memory: request and limit."""


class SessionStore(Pods):
    """Where the proxy blocks keep histories in a cluster; on one machine always SQLite."""

    mode: Literal["sqlite", "valkey", "url"] = "sqlite"
    """sqlite: in the pod of the one instance; valkey: a Valkey of this stack; url: yours."""
    image: types.Image = ""
    """Valkey's image by digest, required with mode valkey."""
    url: types.Text = ""
    """With mode url, as in redis://host:6379/0; its password: splitstack:session_store_password."""
    size: types.Bytes | None = None
    """Size of a claim for histories, which goes with the stack; null: they go with their pod."""
    storage_class: types.ClassName = ""
    """Storage class of that claim; empty: the cluster's default."""
    cpu: types.Cores = 0.5
    """CPU cores of Valkey: request and limit."""
    memory: types.Bytes = 512 * 2**20
    """Memory of Valkey: request and limit; half of it is for histories."""


class NetworkPolicies(types.Section):
    """What may reach the pods of this stack, and what they may reach."""

    enabled: bool = True
    """Whether this stack declares network policies; the cluster's network must know them."""
    metrics_namespace: types.OptionalLabel = "monitoring"
    """Namespace whose pods may read metrics; empty: none."""


class Observability(types.Section):
    """What a Prometheus and a Grafana of the cluster find of this stack."""

    enabled: bool = False
    """Whether dashboard, alert rules and what is scraped are declared."""
    prometheus_operator: bool = False
    """PodMonitors and a PrometheusRule, for clusters with the operator; else annotated Services."""
    operator_labels: dict[types.LabelKey, types.LabelValue] = Field(default_factory=dict)
    """Labels by which the operator's Prometheus selects them, as in {release: prometheus}."""
    dashboard_label: Annotated[types.Key, Field(min_length=1)] = "grafana_dashboard"
    """Label with the value 1 by which Grafana's sidecar finds the dashboard."""
