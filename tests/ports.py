"""Ports for tests that start a server a moment later."""

from __future__ import annotations

import random
import socket


def free_port() -> int:
    """A free port below those of outgoing connections, so that none of them takes it meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
