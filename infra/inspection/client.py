"""A cluster of the stack file through its API, and what there is to say of it in one sentence."""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import urllib3.exceptions
from kubernetes import client, config

from infra.cluster.kubeconfig import PROJECT_ROOT, Kubeconfig, KubeconfigError, read_kubeconfig
from infra.inspection.stack_outputs import stack_outputs
from infra.stack.config import DeploymentConfig

# Seconds to connect, and to wait for an answer.
REQUEST_TIMEOUT = (5, 20)
_OK, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 200, 401, 403, 404
_METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


Level = Literal["fault", "warning", "fine"]


class ClusterError(Exception):
    """A cluster does not do what it is asked: one sentence that names it and what to do."""


@dataclass(frozen=True)
class Finding:
    """What `splitstack doctor` says, one sentence.

    `fault`: `pulumi up` would fail; `warning`: it may, or could not be checked.
    """

    level: Level
    subject: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<7}  {self.subject}: {self.text}"


@dataclass(frozen=True)
class ClusterClient:
    """One cluster. `api` is handed to the classes of `kubernetes.client`."""

    cluster_id: str
    kubeconfig: Kubeconfig
    api: client.ApiClient

    @contextlib.contextmanager
    def asked_to(self, action: str) -> Iterator[None]:
        """Around requests; raises ClusterError. `action` completes "may not ..."."""
        try:
            yield
        except (client.ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            raise ClusterError(self._sentence(error, action)) from error

    def metadata(self, path: str) -> dict[str, Any] | None:
        """Of the object at a path of the API; None where there is none, or a right is missing.

        Names and labels only: what is in a Secret stays there. Raises ApiException.
        """
        request = self.api.param_serialize(
            "GET", path, header_params={"Accept": _METADATA_ONLY}, auth_settings=["BearerToken"]
        )
        response = self.api.call_api(*request, _request_timeout=REQUEST_TIMEOUT)
        body = response.read()  # type: ignore[no-untyped-call]
        if response.status in (_FORBIDDEN, _NOT_FOUND):
            return None
        if response.status != _OK:
            raise client.ApiException(http_resp=response)
        return dict(json.loads(body)["metadata"])

    def finding(self, level: Level, text: str) -> Finding:
        """About this cluster."""
        return Finding(level, f"cluster {self.cluster_id}", text)

    def _sentence(self, error: Exception, action: str) -> str:
        where = f"cluster {self.cluster_id}"
        if not isinstance(error, client.ApiException):
            return f"{where} cannot be reached at {self.kubeconfig.server}: {_cause(error)}"
        if error.status == _UNAUTHORIZED:
            return (
                f"{where} does not accept the credentials of context {self.kubeconfig.context}: "
                "they have expired or were revoked; fetch a new kubeconfig or log in again"
            )
        if error.status == _FORBIDDEN:
            return f"{where}: you may not {action}: {api_message(error)}"
        return f"{where}: asked to {action}, it answered {error.status}: {api_message(error)}"


def open_cluster(deployment: DeploymentConfig, cluster_id: str) -> ClusterClient:
    """Read its kubeconfig; nothing is sent yet. Raises ClusterError."""
    try:
        cluster = deployment.clusters[cluster_id]
        kubeconfig = read_kubeconfig(cluster, PROJECT_ROOT, stack_outputs)
        configuration = client.Configuration()
        config.load_kube_config_from_dict(  # type: ignore[no-untyped-call]
            json.loads(kubeconfig.contents), client_configuration=configuration
        )
    except (KubeconfigError, config.ConfigException, OSError) as error:
        raise ClusterError(f"cluster {cluster_id}: {error}") from error
    configuration.retries = False  # whoever waits here wants the answer, not patience
    return ClusterClient(cluster_id, kubeconfig, client.ApiClient(configuration))


def api_message(error: client.ApiException) -> str:
    """The API server's own words."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)


def _cause(error: BaseException) -> str:
    """The innermost words: urllib3 wraps what the socket said several times over."""
    reason = getattr(error, "reason", None)
    if isinstance(reason, BaseException):
        return _cause(reason)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if error.__cause__ is not None:
        return _cause(error.__cause__)
    if isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
