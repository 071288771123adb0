"""Ports of this machine for servers of tests and benches."""

import socket


def free_port() -> int:
    """A port of TCP that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
