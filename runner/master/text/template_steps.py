"""How much a chat template may do for one prompt: a template is foreign code and may never end.

Counted are the turns of its loops and its calls, which macros too are, and the characters of what
it makes and puts out; what an operation would make is bounded before. So are time and memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from jinja2 import nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from runner.errors import ModelUnavailable
from runner.master.text.template_growth import growth_of_call, growth_of_operator, size_of

# Templates in use take tens of steps a message. A hundred thousand are a tenth of a second.
STEPS = 100_000
STEPS_PER_MESSAGE = 1_000
# Characters, and how often a template may handle each of the request's: those in use do it less
# than ten times.
MAX_MADE = 10_000_000
TIMES_MADE = 32
# Of processor time, for steps that are long ones.
MAX_CPU_S, CPU_S_PER_MESSAGE = 2.0, 0.001
_STEPS_A_LOOK = 64
_COUNTED, _TURN, _MADE, _PUT = "counted", "turn", "made", "put"
Value = TypeVar("Value")


class Work:
    """What one rendering has left. Raises ModelUnavailable when it takes more."""

    def __init__(self, messages: int, characters: int) -> None:
        self._left = self._most = STEPS + STEPS_PER_MESSAGE * messages
        self.room = self._space = MAX_MADE + TIMES_MADE * characters
        self._messages = messages
        self._seconds = MAX_CPU_S + CPU_S_PER_MESSAGE * messages
        self._until = time.thread_time() + self._seconds

    def take(self) -> None:
        """A step."""
        self._left -= 1
        if self._left < 0:
            self._refuse(f"it took {self._most} turns of loops and calls")
        if not self._left % _STEPS_A_LOOK and time.thread_time() > self._until:
            self._refuse(f"it took {self._seconds:g} s of processor time")

    def make(self, characters: int) -> None:
        self.room -= characters
        if self.room < 0:
            raise ModelUnavailable(
                f"the model's chat template makes too much: more than {self._space} characters "
                f"for {self._messages} messages"
            )

    def check(self, growth: int, what: str) -> None:
        if growth > self.room:
            raise ModelUnavailable(f"the model's chat template makes too much of one {what}")

    def _refuse(self, why: str) -> None:
        raise ModelUnavailable(
            f"the model's chat template does not come to an end: {why} for {self._messages} "
            "messages"
        )


_work: ContextVar[Work] = ContextVar("work")


@contextmanager
def counted_steps(messages: int = 0, characters: int = 0) -> Iterator[None]:
    """What is compiled or rendered within raises ModelUnavailable when it is too much for so many
    messages with so many characters."""
    token = _work.set(Work(messages, characters))
    try:
        yield
    finally:
        _work.reset(token)


class CountingEnvironment(ImmutableSandboxedEnvironment):
    """Its templates are compiled and rendered within `counted_steps` only."""

    # What is intercepted is not folded when a template is compiled either.
    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.globals["lipsum"]
        self.filters = {name: bounded(name, each) for name, each in self.filters.items()}
        self.filters |= {_COUNTED: _counted, _TURN: _turn, _MADE: _made, _PUT: _put}

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        _work.get().take()
        # The sandbox wraps str.format.
        method = getattr(__obj, "__wrapped__", __obj)
        subject, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        args = _settled(name, args)
        _check(name, subject, (*args, *kwargs.values()))
        return made(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        work = _work.get()
        work.check(growth_of_operator(operator, left, right, work.room), operator)
        return made(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _Counting().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)  # type: ignore[no-any-return]


def bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter, bounded in what it makes."""
    has_context = hasattr(function, "jinja_pass_arg")

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        args = _settled(name, args)
        subject, *given = args[1:] if has_context else args
        _check(name, subject, (*given, *kwargs.values()))
        return made(function(*args, **kwargs))

    return call


def made(value: Value) -> Value:
    """A new value, counted."""
    work = _work.get()
    work.make(size_of(value, work.room))
    return value


def _check(name: str, subject: Any, given: tuple[Any, ...]) -> None:
    work = _work.get()
    work.check(growth_of_call(name, subject, given, work.room), name)


def _settled(name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What is joined may have no length yet."""
    if name != "join":
        return arguments
    return tuple(list(item) if isinstance(item, Iterator) else item for item in arguments)


@pass_context  # so that it is not run when a template is compiled
def _counted(_context: Context, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _work.get().take()
        yield item


@pass_context
def _turn(_context: Context, nothing: str) -> str:
    _work.get().take()
    return nothing


@pass_context
def _made(_context: Context, value: Value) -> Value:
    return made(value)


@pass_context
def _put(_context: Context, value: Value, beside: int) -> Value:
    """Put out, with so many characters of the template's own."""
    work = _work.get()
    work.make(size_of(value, work.room) + beside)
    return value


class _Counting(NodeTransformer):
    """Counts what a template's own syntax does."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802
        self.generic_visit(node)
        node.iter = _filter(_COUNTED, node.iter)
        if node.recursive:  # loop(items) goes another way
            turn = _filter(_TURN, nodes.Const("", lineno=node.lineno))
            node.body.insert(0, nodes.Output([turn], lineno=node.lineno))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:  # noqa: N802
        own = sum(len(one.data) for one in node.nodes if isinstance(one, nodes.TemplateData))
        self.generic_visit(node)
        if all(isinstance(one, nodes.TemplateData) for one in node.nodes):
            node.nodes.append(nodes.Const("", lineno=node.lineno))
        for place, one in enumerate(node.nodes):
            if isinstance(one, nodes.Expr) and not isinstance(one, nodes.TemplateData):
                node.nodes[place] = _filter(_PUT, one, nodes.Const(own, lineno=node.lineno))
                own = 0
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filter(_MADE, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filter(_MADE, node)

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Expr:  # noqa: N802
        # One without names holds no more than the template itself.
        holds_names = node.find(nodes.Name) is not None
        self.generic_visit(node)
        is_target = isinstance(node, nodes.Tuple) and node.ctx == "store"
        return _filter(_MADE, node) if holds_names and not is_target else node

    visit_Tuple = visit_Dict = visit_List  # noqa: N815


def _filter(name: str, node: nodes.Node, *given: nodes.Expr) -> nodes.Filter:
    # Jinja types the iter of a loop as any node, and what is filtered as an expression.
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, list(given), [], None, None, lineno=node.lineno)
