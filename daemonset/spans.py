"""OpenTelemetry spans of what the agent does, where they are wanted (docs/agent.md, Traces). The one place that knows the SDK."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from modelcache import __version__
from modelcache.errors import BadConfig

Attributes = Mapping[str, str | int | float | bool]
NAME = "modelcache-agent"
EXPORT_TIMEOUT_S = 2.0
"""With the time that calls have to end, within the 30 s that kubelet gives."""
NANO = 1_000_000_000


class Span(Protocol):
    """One piece of work under way."""

    def tell(self, attributes: Attributes) -> None: ...

    def failed(self, code: str) -> None: ...

    def leave_out(self) -> None:
        """Nobody needs to know of it."""


class Spans(Protocol):
    """Where spans go. Thread-safe."""

    def span(self, name: str, parent: str | None) -> Any:
        """A context manager that gives a `Span`, for work in this thread and what follows it (`modelcache.telemetry`).

        Args:
            parent: the caller's `traceparent` (W3C Trace Context), as it was sent; None or nonsense: there is none.
        """

    def ended(self, name: str, elapsed_s: float, attributes: Attributes) -> None:
        """A piece of the work of this thread has just ended."""

    def close(self) -> None:
        """Send what is left, for at most EXPORT_TIMEOUT_S."""


class _NoSpan:
    def tell(self, attributes: Attributes) -> None:
        pass

    def failed(self, code: str) -> None:
        pass

    def leave_out(self) -> None:
        pass


class _NoSpans:
    """Nobody wants them."""

    @contextmanager
    def span(self, name: str, parent: str | None) -> Iterator[Span]:
        yield _NoSpan()

    def ended(self, name: str, elapsed_s: float, attributes: Attributes) -> None:
        pass

    def close(self) -> None:
        pass


NO_SPANS: Spans = _NoSpans()


class OtelSpans:
    """Spans of the OpenTelemetry SDK."""

    def __init__(self, provider: Any) -> None:
        """`provider`: a `TracerProvider` of the SDK; closed with this."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("modelcache", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str) -> OtelSpans:
        """Sent by OTLP over HTTP to a collector, in batches. Raises BadConfig: the SDK is not installed, or that is no URL."""
        if not endpoint.startswith(("http://", "https://")):
            raise BadConfig("spans go to an OTLP endpoint over HTTP", got=endpoint, hint="as http://localhost:4318/v1/traces")
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise BadConfig(f"spans take {error.name}, which is not installed", hint="pip install 'modelcache[otel]'") from None
        provider = TracerProvider(resource=Resource.create({"service.name": NAME, "service.version": __version__}), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)))
        return cls(provider)

    @contextmanager
    def span(self, name: str, parent: str | None) -> Iterator[Span]:
        from opentelemetry import context, trace

        started_ns = time.time_ns()
        above = self._propagator.extract({"traceparent": parent}, context.Context()) if parent else context.Context()
        span = _OtelSpan(self._tracer.start_span(name, context=above, kind=trace.SpanKind.SERVER, start_time=started_ns))
        token = context.attach(trace.set_span_in_context(span.span, above))
        try:
            yield span
        finally:
            context.detach(token)
            if span.counts:
                span.span.end()

    def ended(self, name: str, elapsed_s: float, attributes: Attributes) -> None:
        now_ns = time.time_ns()
        span = self._tracer.start_span(name, start_time=now_ns - int(elapsed_s * NANO), attributes=dict(attributes))
        span.end(now_ns)

    def close(self) -> None:
        self._provider.force_flush(int(EXPORT_TIMEOUT_S * 1000))
        self._provider.shutdown()


class _OtelSpan:
    def __init__(self, span: Any) -> None:
        self.span = span
        self.counts = True

    def tell(self, attributes: Attributes) -> None:
        self.span.set_attributes(dict(attributes))

    def failed(self, code: str) -> None:
        from opentelemetry.trace import Status, StatusCode

        self.span.set_status(Status(StatusCode.ERROR, code))

    def leave_out(self) -> None:
        self.counts = False
