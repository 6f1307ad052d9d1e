"""Nodes run as soon as what they wait for is there, and a failure is the failing node's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from inference_server.infer.graph import Graph, parse_graph
from inference_server.infer.graph_run import NodeFailed, run_graph
from web.errors import ApiError

DIAMOND = {"a": ["b", "c"], "c": ["d"], "b": ["d"], "d": []}


def graph_of(value: dict[str, list[str]]) -> Graph:
    graph = parse_graph(value, "a", ["a", "b", "c", "d"])
    assert graph is not None
    return graph


async def named(node: str, data: Any) -> dict[str, Any]:
    return {"reply": node, "given": data}


def test_a_join_gets_inputs_in_the_graphs_order() -> None:
    found: Any = asyncio.run(run_graph(graph_of(DIAMOND), {"message": "x"}, named))
    assert found["reply"] == "d"
    assert [one["reply"] for one in found["given"]["inputs"]] == ["c", "b"]
    assert all(one["given"]["given"] == {"message": "x"} for one in found["given"]["inputs"])


def test_one_parent_passes_its_data_as_it_is() -> None:
    found: Any = asyncio.run(run_graph(graph_of({"a": ["b"]}), {"message": "x"}, named))
    assert found == {"reply": "b", "given": {"reply": "a", "given": {"message": "x"}}}


def test_several_sinks_are_outputs_by_name() -> None:
    found: Any = asyncio.run(run_graph(graph_of({"a": ["b", "c"]}), {"message": "x"}, named))
    assert list(found) == ["outputs"]
    assert {name: one["reply"] for name, one in found["outputs"].items()} == {"b": "b", "c": "c"}


def test_nodes_beside_each_other_run_at_the_same_time() -> None:
    async def run() -> None:
        both_there = asyncio.Barrier(2)

        async def ask(node: str, data: Any) -> dict[str, Any]:
            if node in ("b", "c"):
                await both_there.wait()
            return {}

        async with asyncio.timeout(5):
            await run_graph(graph_of(DIAMOND), {}, ask)

    asyncio.run(run())


def test_the_failing_node_is_named_and_the_others_are_cancelled() -> None:
    cancelled = []

    async def ask(node: str, data: Any) -> dict[str, Any]:
        if node == "b":
            raise ApiError(418, "no")
        try:
            await asyncio.sleep(30 if node == "c" else 0)
        except asyncio.CancelledError:
            cancelled.append(node)
            raise
        assert node != "d", "what waits for a failed node never runs"
        return {}

    with pytest.raises(NodeFailed) as failure:
        asyncio.run(run_graph(graph_of(DIAMOND), {}, ask))
    assert failure.value.node == "b"
    assert failure.value.error.status == 418
    assert cancelled == ["c"]
