"""The stack file's sections of what only clusters have: images, namespaces, caches, time limits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from contract.specs import STALL_S, GroupSpec
from infra.stack import types

CacheMode = Literal["empty-dir", "existing-claim", "own-claim", "shared-claim", "host-path"]


class Images(types.Section):
    """Where images come from. The local stack uses none."""

    builder: Literal["docker", "reference"] = "docker"
    """docker builds and pushes; reference takes images as given, by digest."""
    proxy_block: types.Image = ""
    """Proxy block image; empty with builder docker: beside common_params.image."""
    inference_server: types.Image = ""
    """Inference server image; empty with builder docker: beside common_params.image."""
    platform: types.Text = ""
    """What builder docker builds for, as in linux/amd64; empty: what the nodes are."""
    build_arguments: dict[types.EnvironmentName, types.Text] = Field(default_factory=dict)
    """Build arguments of the Dockerfiles: BASE_IMAGE, TORCH, TORCH_INDEX, DEMO_MODEL, ..."""


class Cluster(types.Section):
    """How a cluster is reached."""

    kubeconfig: types.Text = ""
    """Path of its kubeconfig file; empty: the default one."""
    kubeconfig_stack: types.StackName = ""
    """Stack one of whose outputs is its kubeconfig, as in my-organization/clusters/production."""
    kubeconfig_output: types.NonEmptyText = "kubeconfig"
    """Name of that output."""
    context: types.Text = ""
    """Context in that file; empty: its current one."""


class CaBundle(types.Section):
    """Certificates of authorities that pods trust which reach what is outside of the cluster."""

    config_map: types.ClassName = ""
    """ConfigMap with them, in the namespaces of these pods."""
    secret: types.ClassName = ""
    """Secret with them instead."""
    key: types.FileName = "ca.crt"
    """Its key: PEM of every authority to trust, public ones too."""

    @property
    def given(self) -> bool:
        return bool(self.config_map or self.secret)


class Namespaces(types.Section):
    """Namespaces beside `namespace`, which the ranks are in."""

    create: bool = True
    """Whether this stack creates them; a second stack on a cluster says false."""
    retain: bool = False
    """Whether those that this stack has made stay when it goes."""
    guard: bool = True
    """Whether those are kept while other stacks are in them, by an admission policy."""
    blocks: types.Label = "blocks"
    """Namespace of the proxy blocks."""
    inference_server: types.Label = "inference-server"
    """Namespace of the inference server."""


class Timeouts(types.Section):
    """How long is waited: for objects, for a model, for requests."""

    create_s: types.Seconds | None = None
    """Seconds for a rank or tier to get ready; null: load_timeout_s + 300, without one 2100."""
    stall_s: types.Seconds = STALL_S
    """Seconds without a byte or a step after which bringing a model in is given up."""
    swap_drain_s: types.Drain | None = GroupSpec.swap_drain_s
    """Seconds that requests have to end before a swap; null: request_deadline_s."""
    delete_s: types.Seconds = 300
    """Seconds for an object to go, beyond the time in which it drains."""


class ModelCache(types.Section):
    """Where ranks in a cluster keep downloaded weights."""

    mode: CacheMode = "empty-dir"
    """empty-dir lives as long as its pod; own-claim, one a rank, and shared-claim as the stack."""
    claim_name: types.OptionalLabel = ""
    """The existing claim."""
    sub_path: types.RelativePath = ""
    """Folder in the existing claim; empty: all of it."""
    read_only: bool = False
    """Whether the existing claim is only read: it has the model."""
    host_path: types.AbsolutePath = ""
    """Folder of every node (mode host-path)."""
    size: types.Bytes | None = None
    """Size of a claim; of an empty-dir its limit, half of it requested; null there: planned."""
    storage_class: types.ClassName = ""
    """Storage class of our own claims; empty: the cluster's default."""
