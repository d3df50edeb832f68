"""Loopback ports: which are free, and who holds the others."""

from __future__ import annotations

import socket
from contextlib import closing

import psutil

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
"""Host names of this machine as URLs have them; no proxy is asked for these."""


def is_free(port: int) -> bool:
    """Whether a server can listen on this loopback port now."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port(preferred: int) -> int:
    """``preferred`` if it is free, else any free port; 0 prefers none."""
    if preferred and is_free(preferred):
        return preferred
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listeners(port: int) -> list[int]:
    """Processes that listen on a port; those of other users, and on macOS all, cannot be seen."""
    try:
        found = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # macOS shows other processes' sockets to root only
        return []
    return [
        connection.pid
        for connection in found
        if connection.status == psutil.CONN_LISTEN
        and connection.laddr
        and connection.laddr.port == port
        and connection.pid is not None
    ]


def port_owner(port: int) -> str | None:
    """Who listens on a port, as "python3 (pid 123)"; None if nobody does."""
    if is_free(port):
        return None
    for pid in listeners(port):
        try:
            return f"{psutil.Process(pid).name()} (pid {pid})"
        except psutil.NoSuchProcess:
            continue
    return "a process that cannot be seen from here"
