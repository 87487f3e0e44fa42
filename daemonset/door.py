"""What may be asked on the CSI driver's socket: for its pods' models and its own holds, and nothing that is the administrator's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from daemonset.calls import Calls
from modelcache.agent.v1 import agent_pb2 as pb
from modelcache.errors import AccessDenied

SERVICE = f"/{pb.DESCRIPTOR.services_by_name['Agent'].full_name}/"
DRIVERS = frozenset({"Ensure", "Cached", "Lease", "Renew", "Release", "Show", "Residency", "Status"})


class DriversDoor(grpc.ServerInterceptor):
    """Calls of `Agent` that are not `DRIVERS` end with AccessDenied, those to come among them; health and reflection are everybody's."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None], details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler, asked = continuation(details), details.method.removeprefix(SERVICE)
        if handler is None or asked == details.method or asked in DRIVERS:
            return handler

        def refuse(request: object, context: grpc.ServicerContext) -> object:
            with self._calls.under_way(context, begins_work=False, awaited=False):
                raise AccessDenied(
                    f"`{asked}` is for the administrator's socket alone", hint=f"here may be asked: {', '.join(sorted(DRIVERS))}"
                )
            raise AssertionError("unreachable")

        def refuse_all(request: object, context: grpc.ServicerContext) -> Iterator[object]:
            yield refuse(request, context)

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(refuse_all, handler.request_deserializer, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(refuse, handler.request_deserializer, handler.response_serializer)
