"""Client of the gRPC health checking protocol, which container platforms also use."""

from __future__ import annotations

TIMEOUT_SECONDS = 5.0


def is_serving(address: str, timeout: float = TIMEOUT_SECONDS) -> bool:
    """Return whether the server at an address reports that it is serving.

    Parameters
    ----------
    address
        ``host:port`` of a server without TLS.
    timeout
        Seconds to wait for the answer.
    """
    # Imported late: gRPC takes longer to import than everything else that a command needs.
    import grpc
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
    from grpc_health.v1.health_pb2_grpc import HealthStub

    # Never through a proxy: the server is on this machine.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=timeout)
        except grpc.RpcError:
            return False
    return bool(answer.status == HealthCheckResponse.SERVING)
