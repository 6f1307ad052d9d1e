"""What the HTTP surfaces say of themselves: OpenAPI documents, component.json, routes.

Clients are made from the documents, and AIOS reads component.json.
"""

from __future__ import annotations

import httpx
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import Route

from runner.master.text.model_text import ModelText
from runner.stage.process.health import health_app
from tests.goldens.conftest import WatchedEngine
from tests.goldens.recorded_file import check_recorded
from tests.runner.master.serving import master_app


def test_the_proxy_blocks_documents(proxy: str) -> None:
    for name in ("openapi", "component"):
        document = httpx.get(f"{proxy}/{name}.json").raise_for_status().json()
        check_recorded(f"{name}-proxy-block", document)


def test_the_inference_servers_document(server: str) -> None:
    document = httpx.get(f"{server}/openapi.json").raise_for_status().json()
    check_recorded("openapi-inference-server", document)


def test_the_ranks_routes(engine: WatchedEngine, text: ModelText) -> None:
    """These have no document of their own."""
    stage = health_app(lambda: "", lambda: "", CollectorRegistry())
    master = master_app(engine, text)
    check_recorded("routes", {"master": routes(master), "stage": routes(stage)})


def routes(app: Starlette) -> list[str]:
    found = [route for route in app.routes if isinstance(route, Route)]
    assert len(found) == len(app.routes)
    return sorted(f"{route.path} {','.join(sorted(route.methods or ()))}" for route in found)
