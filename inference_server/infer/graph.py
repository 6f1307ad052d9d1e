"""The `graph` of a request: which block's output goes into which, and running it.

{"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, or {"is_graph": true, "graph": {...}}.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from contract.faults import shown_value
from web.errors import ApiError

MAX_NODES = 64
MAX_EDGES = 512
PARAM = "graph"

Data = dict[str, Any] | list[Any] | str
AskNode = Callable[[str, Data], Awaitable[Data]]


@dataclass(frozen=True)
class Graph:
    """`parents` has every node, each after those that it waits for; parents in the graph's order.

    `sinks` are the nodes that nothing follows, in the graph's order.
    """

    entry: str
    parents: dict[str, tuple[str, ...]]
    sinks: tuple[str, ...]


def parse_graph(value: dict[str, Any] | None, entry: str, known: Collection[str]) -> Graph | None:
    """The graph, None where the request has none. `entry` is where the request comes in.

    Raises ApiError 400 that names the nodes of a cycle, unknown and unreachable ones.
    """
    children = _children(_inner(value or {}))
    if not children:
        return None
    if not entry:
        raise _fault("model: must name the node of graph at which the request comes in", "model")
    unknown = [node for node in children if node not in known]
    if unknown:
        raise _fault(f"graph: {_names(unknown)}: no such block; known blocks: {_names(known)}")
    if entry not in children:
        nodes = _names(children)
        raise _fault(f"model = {shown_value(entry)}: must be a node of graph: {nodes}", "model")
    unreachable = children.keys() - _reachable(children, entry)
    if unreachable:
        named = _names(node for node in children if node in unreachable)
        raise _fault(f"graph: {named}: cannot be reached from {entry}, where the request comes in")
    parents = _parents(children)
    return Graph(
        entry=entry,
        parents={node: parents[node] for node in _topological(children, parents)},
        sinks=tuple(node for node, following in children.items() if not following),
    )


def has_nodes(value: dict[str, Any] | None) -> bool:
    """Whether a request has a graph. Raises ApiError 400."""
    return bool(_inner(value or {}))


class NodeFailed(Exception):
    """`node` could not answer; the nodes beside it were cancelled."""

    def __init__(self, node: str, error: ApiError) -> None:
        super().__init__(node)
        self.node, self.error = node, error


async def run_graph(graph: Graph, data: Data, ask: AskNode) -> Data:
    """The sink's data, or {"outputs": {node: data}} of several sinks.

    The entry gets `data`, a node with one parent what that put out, one with several
    {"inputs": [...]}. A node starts when its last parent has answered. Raises NodeFailed with what
    `ask` raised for the first node that failed.
    """
    tasks: dict[str, asyncio.Task[Data]] = {}

    async def run(node: str) -> Data:
        inputs = [await tasks[parent] for parent in graph.parents[node]]
        given = data if not inputs else inputs[0] if len(inputs) == 1 else {"inputs": inputs}
        try:
            return await ask(node, given)
        except ApiError as error:
            raise NodeFailed(node, error) from error

    try:
        async with asyncio.TaskGroup() as group:
            for node in graph.parents:
                tasks[node] = group.create_task(run(node))
    except BaseExceptionGroup as failures:
        # A node's failure is raised by those that wait for it too.
        raise failures.exceptions[0] from failures
    if len(graph.sinks) == 1:
        return tasks[graph.sinks[0]].result()
    return {"outputs": {node: tasks[node].result() for node in graph.sinks}}


def _inner(value: dict[str, Any]) -> dict[str, Any]:
    """The node lists out of either form."""
    if "is_graph" not in value and not isinstance(value.get("graph"), dict):
        return value
    for name in value.keys() - {"is_graph", "graph"}:
        raise _fault(f"graph.{name[:80]}: is not a field beside is_graph and graph")
    inner, is_graph = value.get("graph", {}), value.get("is_graph", True)
    if not isinstance(is_graph, bool):
        raise _fault(f"graph.is_graph = {shown_value(is_graph)}: must be true or false")
    if not isinstance(inner, dict):
        raise _fault(f"graph.graph = {shown_value(inner)}: must be an object of block id -> list")
    if inner and not is_graph:
        raise _fault("graph.is_graph = False: must be true where graph.graph has nodes")
    return inner


def _children(inner: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Every node with those that follow it; one that is only named as a follower is a sink."""
    children: dict[str, tuple[str, ...]] = {}
    for node, following in inner.items():
        path = f"graph.{node[:80]}"
        if not isinstance(following, list):
            raise _fault(f"{path} = {shown_value(following)}: must be a list of block ids")
        for item in following:
            if not isinstance(item, str):
                raise _fault(f"{path}: {shown_value(item)}: must be a block id, a string")
        if len(set(following)) != len(following):
            raise _fault(f"{path} = {shown_value(following)}: must name each block once")
        children[node] = tuple(following)
    for following in list(children.values()):
        for node in following:
            children.setdefault(node, ())
    edges = sum(map(len, children.values()))
    if len(children) > MAX_NODES or edges > MAX_EDGES:
        rule = f"must have at most {MAX_NODES} nodes and {MAX_EDGES} edges"
        raise _fault(f"graph: {rule}; it has {len(children)} and {edges}")
    return children


def _parents(children: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {node: [] for node in children}
    for node, following in children.items():
        for child in following:
            found[child].append(node)
    return {node: tuple(parents) for node, parents in found.items()}


def _reachable(children: dict[str, tuple[str, ...]], entry: str) -> set[str]:
    seen, waiting = {entry}, [entry]
    while waiting:
        for child in children[waiting.pop()]:
            if child not in seen:
                seen.add(child)
                waiting.append(child)
    return seen


def _topological(
    children: dict[str, tuple[str, ...]], parents: dict[str, tuple[str, ...]]
) -> list[str]:
    """Kahn's algorithm (1962); raises ApiError naming the nodes of one cycle."""
    waits_for = {node: len(items) for node, items in parents.items()}
    order = [node for node, count in waits_for.items() if not count]
    for node in order:
        for child in children[node]:
            waits_for[child] -= 1
            if not waits_for[child]:
                order.append(child)
    if len(order) < len(children):
        raise _fault(f"graph: has a cycle: {' -> '.join(_cycle(parents, set(order)))}")
    return order


def _cycle(parents: dict[str, tuple[str, ...]], ordered: set[str]) -> list[str]:
    """What is left over has a left-over parent each, so that going up comes round."""
    node = next(item for item in parents if item not in ordered)
    path: list[str] = []
    while node not in path:
        path.append(node)
        node = next(item for item in parents[node] if item not in ordered)
    return [shown[:80] for shown in reversed([*path[path.index(node) :], node])]


def _names(nodes: Iterable[str]) -> str:
    listed = [node[:80] for node in nodes]
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return (", ".join(listed[:10]) or "none") + more


def _fault(message: str, param: str = PARAM) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_graph")
