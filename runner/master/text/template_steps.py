"""How much a chat template may do for one prompt: a template is foreign code and may never end.

Counted are the turns of its loops and its calls, which macros too are; products and powers are
bounded by their size. Memory is bounded by nothing else: a template that sets out to use it up can.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from runner.errors import ModelUnavailable

# Templates in use take tens of steps a message. A hundred thousand are a tenth of a second.
STEPS = 100_000
STEPS_PER_MESSAGE = 1_000
# Of a repeated text or list, in items; of a number, in bits.
MAX_PRODUCT = 1_000_000
_COUNTED = "splitstack_counted"


class _Steps:
    def __init__(self, messages: int) -> None:
        self._left = self._most = STEPS + STEPS_PER_MESSAGE * messages
        self._messages = messages

    def take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ModelUnavailable(
                f"the model's chat template does not come to an end: it took {self._most} turns of "
                f"loops and calls for {self._messages} messages"
            )


_steps: ContextVar[_Steps] = ContextVar("steps")


@contextmanager
def counted_steps(messages: int) -> Iterator[None]:
    """What is rendered within raises ModelUnavailable when it takes too many steps."""
    token = _steps.set(_Steps(messages))
    try:
        yield
    finally:
        _steps.reset(token)


class CountingEnvironment(ImmutableSandboxedEnvironment):
    """Its templates render within `counted_steps` only."""

    # What is intercepted is not folded when a template is compiled either.
    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters[_COUNTED] = _counted

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _steps.get().take()
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _size(left, right, operator) > MAX_PRODUCT:
            raise ModelUnavailable(f"the model's chat template makes too much of one {operator}")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        return tree.set_environment(self)  # type: ignore[return-value]


@pass_context  # so that it is not run when a template is compiled
def _counted(_context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _steps.get().take()
        yield item


def _size(left: Any, right: Any, operator: str) -> int:
    """An upper bound of the result's, 0 where neither is a number."""
    if isinstance(left, int) and isinstance(right, int):
        if operator == "**":
            return left.bit_length() * max(right, 0)
        return left.bit_length() + right.bit_length()
    for many, times in ((left, right), (right, left)):
        if isinstance(times, int) and hasattr(many, "__len__"):
            return len(many) * max(times, 0)
    return 0
