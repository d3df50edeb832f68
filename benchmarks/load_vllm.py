"""``vllm bench serve``, to be run by a Python that has vLLM; prints what ``load_clients.py`` prints.

    PYTHON benchmarks/load_vllm.py TOKENIZER URL USERS REQUESTS TOKENS

The CPU build's own ``vllm`` command fails, so the function behind it is called.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import sys

from vllm.benchmarks.serve import add_cli_args, main_async


def main(tokenizer: str, url: str, users: str, requests: str, tokens: str) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    options = {
        "--backend": "openai-chat",
        "--base-url": url.removesuffix("/v1"),
        "--endpoint": "/v1/chat/completions",
        "--model": "ref",
        "--tokenizer": tokenizer,
        "--dataset-name": "random",
        "--random-input-len": "10",
        "--random-output-len": tokens,
        "--num-prompts": requests,
        "--max-concurrency": users,
        "--ready-check-timeout-sec": "0",
        "--percentile-metrics": "ttft,itl",
        "--metric-percentiles": "50,99",
    }
    arguments = [word for pair in options.items() for word in pair]
    with contextlib.redirect_stdout(sys.stderr):
        found = asyncio.run(main_async(parser.parse_args([*arguments, "--disable-tqdm"])))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "tokens": found["total_output_tokens"],
        "tokens_per_s": found["output_throughput"],
        **{f"{name}_ms": {q: found[f"{q}_{name}_ms"] for q in ("p50", "p99")} for name in ("ttft", "itl")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
