"""Asks a process how it is, by the health protocol of gRPC, as container platforms do."""

from __future__ import annotations

TIMEOUT_SECONDS = 5.0


def is_serving(address: str, timeout: float = TIMEOUT_SECONDS) -> bool:
    """Whether whoever listens says that it serves.

    Parameters
    ----------
    address
        host:port, without TLS.
    timeout
        seconds to wait for the answer.
    """
    # Late: takes longer to import than everything else that a command line needs.
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    # Never through a proxy: what is asked is on this machine.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError:
            return False
    return bool(answer.status == HealthCheckResponse.SERVING)
