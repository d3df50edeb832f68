"""A real LiteLLM proxy: one address that speaks OpenAI's protocol for whatever is behind it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path

from labkit import paths
from labkit.engines import install
from labkit.engines.base import Engine
from labkit.engines.fronts.front import Front, program
from labkit.engines.wanted import Command

DEADLINE_S = 120.0
"""It imports a great deal: ten seconds on an idle core, more beside working engines."""

ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # else it fetches a list of prices from the network
    "LITELLM_MODE": "PRODUCTION",  # reads no .env file
    "LITELLM_TELEMETRY": "False",
    "DISABLE_ADMIN_UI": "True",
    "NO_COLOR": "1",
}


class LiteLLM(Front):
    """LiteLLM with one public name for the engines behind it, and one for each of them.

    Its key is new each time. No key is on disk or on a command line: those of the engines are in its
    environment.
    """

    name = "litellm"
    title = "LiteLLM"
    default_port = 14000
    health = "/health/liveliness"

    def __init__(self, behind: Mapping[str, Engine], model: str) -> None:
        """Prepare it.

        Args:
            model: what the engines call the model; clients may use the same name.
        """
        super().__init__(behind)
        self.model = model
        # it refuses to start without a key, since it would answer anybody who reaches it
        self.api_key = f"sk-{secrets.token_urlsafe(24)}"

    def version(self) -> str:
        """The version that labkit pins and installs."""
        return str(install.pins("litellm")["version"])

    def _command(self, port: int) -> Command:
        written = paths.folder("proxies") / f"litellm-{port}.json"
        written.write_text(json.dumps(self.config(), indent=1))
        keys = {_variable(name): engine.api_key or "none" for name, engine in self.behind.items()}
        env = {**ENVIRONMENT, **keys, "LITELLM_MASTER_KEY": self.api_key or ""}
        return Command(self._argv(written, port), env, DEADLINE_S)

    def _argv(self, written: Path, port: int) -> list[str]:
        # JSON is YAML too
        where = ["--config", str(written), "--host", "127.0.0.1", "--port", str(port)]
        return [program("litellm", "LiteLLM"), *where, "--telemetry", "False"]

    def config(self) -> dict[str, object]:
        """Its configuration: entries with one public name share that name's requests out among them."""
        entries = [
            {
                "model_name": public,
                "litellm_params": {
                    "model": f"openai/{self.model}",
                    "api_base": f"{engine.url}/v1",
                    "api_key": f"os.environ/{_variable(name)}",
                },
                # said in the header of an answer
                "model_info": {"id": name if public == self.model else f"{name}-alone"},
            }
            for name, engine in self.behind.items()
            for public in (self.model, name)
        ]
        return {
            "model_list": entries,
            "router_settings": {"num_retries": 0},  # the client hears of a failure
            "litellm_settings": {"request_timeout": 3600, "drop_params": False},
        }


def _variable(engine: str) -> str:
    """The environment variable that has an engine's key."""
    return f"LABKIT_KEY_OF_{engine.upper()}"
