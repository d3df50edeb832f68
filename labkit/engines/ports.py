"""Loopback ports: which are free, and who holds the others."""

from __future__ import annotations

import socket
from contextlib import closing

import psutil


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


def port_owner(port: int) -> str | None:
    """Who listens on a port, as "python3 (pid 123)"; None if nobody does."""
    if is_free(port):
        return None
    try:
        listeners = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:  # macOS shows other processes' sockets to root only
        return "another process"
    for connection in listeners:
        if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.pid is None:
            continue
        if connection.laddr.port == port:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.NoSuchProcess:
                continue
    return "a process of another user"
