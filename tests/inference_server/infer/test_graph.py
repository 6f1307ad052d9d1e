"""Graphs are checked before anything runs, and what is wrong is named.

Nodes run as soon as what they wait for is there, and a failure is the failing node's.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest

from inference_server.infer.graph import MAX_NODES, Graph, NodeFailed, parse_graph, run_graph
from web.errors import ApiError

KNOWN = ["a", "b", "c", "d", "e"]
DIAMOND = {"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}
OTHER_ORDER = {"a": ["b", "c"], "c": ["d"], "b": ["d"], "d": []}


def parsed(value: dict[str, Any], entry: str = "a") -> Graph:
    graph = parse_graph(value, entry, KNOWN)
    assert graph is not None
    return graph


@pytest.mark.parametrize(
    "value", [DIAMOND, {"graph": DIAMOND}, {"is_graph": True, "graph": DIAMOND}]
)
def test_both_forms_are_the_same_graph(value: dict[str, Any]) -> None:
    graph = parsed(value)
    assert graph.parents == {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}
    assert list(graph.parents) == ["a", "b", "c", "d"]
    assert graph.sinks == ("d",)


def test_parents_come_in_the_graphs_order_not_in_that_of_the_run() -> None:
    graph = parsed({"c": ["d"], "a": ["b", "c"], "b": ["d"]})
    assert graph.parents["d"] == ("c", "b")


def test_a_node_that_is_only_followed_is_a_sink() -> None:
    assert parsed({"a": ["b", "c"]}).sinks == ("b", "c")


@pytest.mark.parametrize("value", [None, {}, {"is_graph": False}, {"graph": {}}])
def test_no_graph(value: dict[str, Any] | None) -> None:
    assert parse_graph(value, "a", KNOWN) is None


@pytest.mark.parametrize(
    ("value", "entry", "said"),
    [
        ({"a": ["a"]}, "a", "has a cycle: a -> a"),
        ({"a": ["b"], "b": ["c"], "c": ["b"]}, "a", "has a cycle: "),
        ({"a": ["x"], "y": []}, "a", "y, x: no such block; known blocks: a, b"),
        ({"a": ["b"], "c": ["b"], "e": []}, "a", "c, e: cannot be reached from a"),
        ({"a": ["b"]}, "b", "a: cannot be reached from b"),
        ({"a": ["b"]}, "c", "model = 'c': must be a node of graph: a, b"),
        ({"a": ["b"]}, "", "model: must name the node"),
        ({"a": "b"}, "a", "graph.a = 'b': must be a list"),
        ({"a": [1]}, "a", "graph.a: 1: must be a block id"),
        ({"a": ["b", "b"]}, "a", "must name each block once"),
        ({"a": None}, "a", "graph.a = None: must be a list"),
        ({"is_graph": 1, "graph": DIAMOND}, "a", "graph.is_graph = 1: must be true or false"),
        ({"is_graph": False, "graph": DIAMOND}, "a", "graph.is_graph = False"),
        ({"is_graph": True, "graph": []}, "a", "graph.graph = []: must be an object"),
        ({"is_graph": True, "graph": DIAMOND, "more": 1}, "a", "graph.more: is not a field"),
    ],
)
def test_what_is_wrong_is_a_400_that_names_it(value: dict[str, Any], entry: str, said: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_graph(value, entry, KNOWN)
    assert refused.value.status == 400
    assert said in str(refused.value)


def test_a_cycle_is_named_in_the_order_of_its_edges() -> None:
    edges = {"a": ["b"], "b": ["c"], "c": ["d"], "d": ["b"]}
    with pytest.raises(ApiError) as refused:
        parse_graph(edges, "a", KNOWN)
    path = str(refused.value).split(": ")[-1].split(" -> ")
    assert path[0] == path[-1]
    assert set(path) == {"b", "c", "d"}
    assert all(later in edges[earlier] for earlier, later in itertools.pairwise(path))


def test_size_is_bounded() -> None:
    nodes = [f"n{number}" for number in range(MAX_NODES + 1)]
    with pytest.raises(ApiError, match=f"at most {MAX_NODES} nodes"):
        parse_graph({"n0": nodes[1:]}, "n0", nodes)
    with pytest.raises(ApiError) as refused:
        parse_graph({"x" * 100_000: []}, "a", KNOWN)
    assert len(str(refused.value)) < 1000


async def named(node: str, data: Any) -> dict[str, Any]:
    return {"reply": node, "given": data}


def test_a_join_gets_inputs_in_the_graphs_order() -> None:
    found: Any = asyncio.run(run_graph(parsed(OTHER_ORDER), {"message": "x"}, named))
    assert found["reply"] == "d"
    assert [one["reply"] for one in found["given"]["inputs"]] == ["c", "b"]
    assert all(one["given"]["given"] == {"message": "x"} for one in found["given"]["inputs"])


def test_one_parent_passes_its_data_as_it_is() -> None:
    found: Any = asyncio.run(run_graph(parsed({"a": ["b"]}), {"message": "x"}, named))
    assert found == {"reply": "b", "given": {"reply": "a", "given": {"message": "x"}}}


def test_several_sinks_are_outputs_by_name() -> None:
    found: Any = asyncio.run(run_graph(parsed({"a": ["b", "c"]}), {"message": "x"}, named))
    assert list(found) == ["outputs"]
    assert {name: one["reply"] for name, one in found["outputs"].items()} == {"b": "b", "c": "c"}


def test_nodes_beside_each_other_run_at_the_same_time() -> None:
    async def run() -> None:
        both_there = asyncio.Barrier(2)

        async def ask(node: str, data: Any) -> dict[str, Any]:
            if node in ("b", "c"):
                await both_there.wait()
            return {}

        async with asyncio.timeout(60):
            await run_graph(parsed(OTHER_ORDER), {}, ask)

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
        asyncio.run(run_graph(parsed(OTHER_ORDER), {}, ask))
    assert failure.value.node == "b"
    assert failure.value.error.status == 418
    assert cancelled == ["c"]
