"""A fault of the master's own ends its process: whoever keeps it running starts it again.

The tasks, timers and callbacks of group and engine have no caller that an exception could go to. A
process that lived on without one of them would hang without a word.
"""

from __future__ import annotations

import functools
import logging
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Concatenate, NoReturn, ParamSpec, Protocol, TypeVar

logger = logging.getLogger(__name__)

EXIT_FAULT = 1
TERMINATION_LOG = Path("/dev/termination-log")  # Kubernetes' default; only a container has it
TERMINATION_LOG_BYTES = 4096  # a kubelet keeps no more

OnFault = Callable[[BaseException], None]


def raise_fault(error: BaseException) -> None:
    """What tests do with one: it goes wherever the event loop brings it."""
    raise error


def end_process(error: BaseException) -> NoReturn:
    """The traceback to standard error and to the termination message, then exit code 1, at once:
    no other task goes on with what the fault has left half done."""
    logger.critical("a fault of the master's own ends its process", exc_info=error)
    _leave_message("".join(traceback.format_exception(error)))
    os._exit(EXIT_FAULT)


def _leave_message(text: str) -> None:
    """The end of `text`, where the fault itself is named. The file is never made by us."""
    try:
        file = os.open(TERMINATION_LOG, os.O_WRONLY | os.O_TRUNC)
    except OSError:
        return
    os.write(file, text.encode("utf-8", "replace")[-TERMINATION_LOG_BYTES:])
    os.close(file)


class _HasFault(Protocol):
    _on_fault: OnFault


_Self = TypeVar("_Self", bound=_HasFault)
_Parameters = ParamSpec("_Parameters")


def own_work(
    method: Callable[Concatenate[_Self, _Parameters], None],
) -> Callable[Concatenate[_Self, _Parameters], None]:
    """Marks a method that the event loop calls: what it raises goes to `self._on_fault`."""

    @functools.wraps(method)
    def told(self: _Self, /, *args: _Parameters.args, **kwargs: _Parameters.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            self._on_fault(error)

    return told
