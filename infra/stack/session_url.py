"""Where the proxy blocks of a cluster find their shared session store. Pure."""

from __future__ import annotations

from infra.stack.config import DeploymentConfig

SESSION_STORE_PORT = 6379


def session_url(deployment: DeploymentConfig) -> str:
    """The store's URL without its password; "" for SQLite in the pod."""
    store = deployment.session_store
    if store.mode == "valkey":
        host = f"{deployment.session_store_name}.{deployment.namespaces.blocks}.svc"
        return f"redis://{host}:{SESSION_STORE_PORT}/0"
    return store.url
