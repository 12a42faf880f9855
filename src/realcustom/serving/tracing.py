"""Where requests and generations take their time, for OpenTelemetry where it is installed; nothing elsewhere.

Spans go to whatever the operator has set up, for one with `opentelemetry-instrument realcustom serve`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

try:
    from opentelemetry import propagate, trace
except ImportError:
    propagate = trace = None

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)


@dataclass(frozen=True)
class Origin:
    """The HTTP request that a generation came with.

    request_id: its id. context: its OpenTelemetry context, or None.
    """

    request_id: str | None
    context: Any = None


def here() -> Origin | None:
    """The request that is being answered; None outside of one."""
    request_id = REQUEST_ID.get()
    if request_id is None:
        return None
    return Origin(request_id, None if trace is None else trace.set_span_in_context(trace.get_current_span()))


def caller(headers: Mapping[str, str]) -> Origin | None:
    """The trace that a client says its request belongs to (`traceparent`)."""
    return None if propagate is None else Origin(None, propagate.extract(headers))


@contextmanager
def span(name: str, origin: Origin | None = None, **attributes: Any) -> Iterator[Any]:
    """A span below that of `origin` with realcustom.NAME attributes; yields it, or None without OpenTelemetry."""
    if trace is None:
        yield None
        return
    facts = {f"realcustom.{key}": value for key, value in attributes.items() if value is not None}
    tracer = trace.get_tracer("realcustom")
    with tracer.start_as_current_span(name, context=origin and origin.context, attributes=facts) as current:
        yield current
