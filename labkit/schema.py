"""Column names and types of the three tables in a run bundle, without any dependency.

The load process writes rows by these names and must start in a tenth of a second, so the names live apart
from :mod:`labkit.bundle`, which turns rows into parquet with polars.

On disk while a run is going:

* ``requests.rows`` and ``gauges.rows``: one JSON object a line, keys as below, missing keys are null;
* ``tokens.rows``: fixed records packed by :data:`TOKEN`, little-endian.

A last line or record cut short by a kill is dropped on reading and counted.
"""

from __future__ import annotations

import struct

SCHEMA_VERSION = 1
"""Version of the bundle format; a reader refuses a larger one."""

REQUESTS: dict[str, str] = {
    "id": "i64",
    "engine": "str",
    "arm": "str",
    "level": "i64",  # users in a closed loop; the index of the phase otherwise
    "repeat": "i64",
    "warmup": "bool",
    "user": "i64",
    "group": "str",  # shared-prefix or prompt group
    "intended_s": "f64",  # when the plan wanted the request sent
    "connect_s": "f64",  # when its connection was ready (may precede the run)
    "sent_s": "f64",  # when the request had been handed to the socket
    "headers_s": "f64",
    "first_byte_s": "f64",
    "role_s": "f64",  # first role-only chunk; never a token
    "first_reasoning_s": "f64",
    "first_token_s": "f64",  # first non-empty content or reasoning
    "last_token_s": "f64",
    "end_s": "f64",
    "prompt_tokens": "i64",
    "output_tokens": "i64",
    "cached_tokens": "i64",
    "bytes": "i64",
    "outcome": "str",  # ok | failed | cancelled | unfinished
    "http_status": "i64",
    "finish_reason": "str",
    "error": "str",
    "load_s": "f64",  # the next three as the engine reports them, null if it does not
    "prefill_s": "f64",
    "decode_s": "f64",
    "queue_s": "f64",
    "queue_basis": "str",  # reported | estimated | unknown
    "served_by": "str",  # the engine behind a proxy that answered, as the proxy says
}
"""Columns of ``requests``: name to type. Times in seconds since the start of the run, one monotonic clock."""

LATER = ("served_by",)
"""Columns that bundles written before them lack: read as null."""

OUTCOMES = ("ok", "failed", "cancelled", "unfinished")

GAUGES: dict[str, str] = {"t_s": "f64", "engine": "str", "arm": "str", "name": "str", "value": "f64"}

TOKENS: dict[str, str] = {"request_id": "i64", "t_s": "f64", "tokens": "i64", "coalesced": "bool"}

TOKEN = struct.Struct("<IdHB")
"""One token record on disk: request_id, t_s, tokens in the chunk, coalesced (0 or 1)."""
