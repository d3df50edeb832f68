"""The configuration of an nginx that shares requests out between two engines, and why it is as it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from labkit.errors import UsageError
from labkit.load.exchange import SERVED_BY

STATE = "/labkit/share"
"""Where the proxy itself tells which share is active."""

UNPRIVILEGED = "nobody"

_TEMPLATE = """\
# Made by labkit. A new share is a new file like this one and a SIGHUP: new workers take over, and the old
# ones finish the answers that they are sending. Keys of clients are in no log.
daemon off;
pid nginx.pid;
worker_processes 1;
error_log stderr;
{user}
events {{ worker_connections 1024; }}

http {{
  log_format labkit escape=json '{{"t_s": $msec, "id": "$request_id", "user": "$http_x_user", '
                                '"served_by": "$side", "status": $status, "took_s": $request_time, '
                                '"path": "$uri"}}';
  access_log access.log labkit;
{temporary}

  # who asks: a header, else the key, else the address
  map $http_authorization $by_key {{ default $http_authorization; "" $remote_addr; }}
  map $http_x_user $who {{ default $http_x_user; "" $by_key; }}

  # {meaning}
  split_clients "{key}" $side {{
{shares}
  }}
{upstreams}
  # an engine is asked under its own name: Ollama answers 403 to any other host
  map $side $host_of_side {{
{hosts}
  }}
  map $side $name_of_side {{
{names}
  }}
  map $side $scheme_of_side {{
{schemes}
  }}

  server {{
    listen 127.0.0.1:{port};
    client_max_body_size 64m;
    client_body_buffer_size 64m;

    location = {state} {{
      default_type application/json;
      return 200 '{{"share": {share}, "generation": {generation}}}';
    }}

    location / {{
      proxy_pass $scheme_of_side://$side;
      proxy_http_version 1.1;
      proxy_set_header Host $host_of_side;
      proxy_ssl_server_name on;
      proxy_ssl_name $name_of_side;
      proxy_buffering off;        # each token goes on as it comes
      proxy_connect_timeout 5s;
      proxy_read_timeout 1h;      # a long prompt, or a long queue, is silent for long
      proxy_send_timeout 1h;
      proxy_next_upstream off;    # a question is never asked twice unseen: the client hears of a failure
      add_header {served_by} $side always;
    }}
  }}
}}
"""

_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def check_share(share: float) -> float:
    """A share in per cent, with the two decimals that nginx knows.

    Raises:
        UsageError: outside 0 to 100.
    """
    if not 0 <= share <= 100:
        raise UsageError(f"send {share:g} % of the requests to vLLM", "a share is 0 to 100", "such as 10")
    return round(share, 2)


def config(
    targets: Mapping[str, str], *, port: int, share: float, sticky: bool = False, generation: int = 0
) -> str:
    """The text of ``nginx.conf``; relative paths in it are below nginx's prefix folder.

    Args:
        targets: root URLs by the names "ollama" and "vllm", or one of them, which then gets all requests.
        port: of 127.0.0.1.
        share: per cent for vLLM: of the requests, or of the users if sticky.
        sticky: all requests of one user go to one engine.
        generation: number that tells this file from the one before.

    Raises:
        UsageError: an impossible share or port, or a URL that nginx cannot take.
    """
    share = check_share(share)
    if not 0 < port < 65536:
        raise UsageError(f"start nginx on port {port}", "there is no such port", "1 to 65535, such as 18080")
    urls = {name: _checked(url) for name, url in targets.items()}
    unit = "user" if sticky else "request"
    return _TEMPLATE.format(
        user=_user(),
        temporary="\n".join(f"  {name}_temp_path tmp/{name};" for name in _TEMPORARY),
        meaning=f"each {unit} has a place between 0 and 100 %: a hash of its name",
        key="$who" if sticky else "$request_id",
        shares="\n".join(f"    {line}" for line in _shares(list(urls), share)),
        upstreams="\n".join(
            f"  upstream {name} {{ server {_authority(url)}; }}" for name, url in urls.items()
        ),
        hosts="\n".join(f"    {name} {urlsplit(url).netloc};" for name, url in urls.items()),
        names="\n".join(f'    {name} "{urlsplit(url).hostname}";' for name, url in urls.items()),
        schemes="\n".join(f"    {name} {urlsplit(url).scheme};" for name, url in urls.items()),
        port=port,
        state=STATE,
        share=f"{share:g}",
        generation=generation,
        served_by=SERVED_BY,
    )


def _shares(names: list[str], share: float) -> list[str]:
    """The lines of ``split_clients``, which takes no 0 %."""
    if len(names) == 1 or share in (0, 100):
        return [f"* {names[0] if len(names) == 1 else 'vllm' if share else 'ollama'};"]
    return [f"{share:g}% vllm;", "* ollama;"]


def _user() -> str:
    """Workers of a root's nginx give their rights up; those of others have none to give."""
    if os.geteuid() != 0:
        return ""
    import grp  # POSIX only; labkit itself is imported on Windows too
    import pwd

    nobody = pwd.getpwnam(UNPRIVILEGED)
    return f"user {UNPRIVILEGED} {grp.getgrgid(nobody.pw_gid).gr_name};\n"


def _checked(url: str) -> str:
    try:
        at = urlsplit(url)
        known = at.scheme in ("http", "https") and at.port != 0  # reading an impossible port raises
    except ValueError:
        known = False
    if not known or not re.fullmatch(r"[\w.\-:\[\]]+", at.netloc):
        raise UsageError(f"put nginx in front of {url!r}", "that is no such address", "http(s)://host[:port]")
    if at.path.strip("/") not in ("", "v1"):
        seen = f"it has the path {at.path}, and nginx would have to rewrite each request"
        raise UsageError(f"put nginx in front of {url}", seen, "give the server's root")
    return url


def _authority(url: str) -> str:
    at = urlsplit(url)
    return at.netloc if at.port else f"{at.netloc}:{443 if at.scheme == 'https' else 80}"
