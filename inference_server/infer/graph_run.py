"""Running a request through a graph of blocks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from inference_server.infer.graph import Graph
from web.errors import ApiError

Data = dict[str, Any] | list[Any] | str
AskNode = Callable[[str, Data], Awaitable[Data]]


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
