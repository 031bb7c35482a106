"""Spans to an OpenTelemetry collector, over OTLP/HTTP. Needs the extra `cnimeta[otel]`.

Where to, with which headers and certificates: by the SDK's own variables, OTEL_EXPORTER_OTLP_ENDPOINT first
(https://opentelemetry.io/docs/specs/otel/protocol/exporter/). A thread of the SDK sends; what a collector does not take
in time is dropped, and nobody waits for it.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from cnimeta import __version__
from cnimeta.errors import IoFailure
from cnimeta.observe.spans import spans

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from cnimeta.observe.spans import Span


class Export:
    """Takes reports. Raises IoFailure (code 5) when the SDK is not installed."""

    def __init__(self) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise IoFailure(f"spans cannot be exported: {error.name} is missing: pip install 'cnimeta[otel]'") from None
        self._resource = Resource.create({"service.name": "cnimeta", "service.version": __version__})
        self._processor = BatchSpanProcessor(OTLPSpanExporter())

    def __call__(self, reports: Iterable[dict[str, Any]]) -> None:
        """Export them; what is not as it should be is left out."""
        for report in reports:
            try:
                found = spans(report, _new_id)
            except (ValueError, TypeError, KeyError):
                continue
            for span in found:
                self._processor.on_end(_finished(span, self._resource))

    def flush(self) -> None:
        """Send what waits."""
        self._processor.force_flush()


def _new_id(bits: int) -> int:
    return secrets.randbits(bits) or 1


def _finished(span: Span, resource: Any) -> Any:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, TraceState
    from opentelemetry.trace.status import Status, StatusCode

    state = TraceState.from_header([span.state]) if span.state else TraceState()
    flags = TraceFlags(TraceFlags.SAMPLED)
    parent = SpanContext(span.trace, span.parent, is_remote=not span.is_call, trace_flags=flags, trace_state=state)
    return ReadableSpan(
        name=span.name,
        context=SpanContext(span.trace, span.id, is_remote=False, trace_flags=flags, trace_state=state),
        parent=parent if span.parent else None,
        resource=resource,
        attributes=dict(span.attributes),
        kind=SpanKind.CLIENT if span.is_call else SpanKind.SERVER,
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
        start_time=span.began_ns,
        end_time=span.ended_ns,
    )
