"""vLLM's ``/metrics``: what was served since the start, in Prometheus' text format and by vLLM's names."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from labkit.sim.request import Request
from labkit.sim.vllm import VLLM

LATENCY = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
BETWEEN = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
STEP = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
FEW = (1, 2, 3, 4, 5, 10, 20)

HISTOGRAMS: Mapping[str, tuple[Sequence[float], str]] = {
    "time_to_first_token_seconds": (FIRST_TOKEN, "Histogram of time to first token in seconds."),
    "inter_token_latency_seconds": (BETWEEN, "Histogram of inter-token latency in seconds."),
    "request_time_per_output_token_seconds": (
        BETWEEN,
        "Histogram of time_per_output_token_seconds per request.",
    ),
    "e2e_request_latency_seconds": (LATENCY, "Histogram of e2e request latency in seconds."),
    "request_queue_time_seconds": (LATENCY, "Histogram of time spent in WAITING phase for request."),
    "request_inference_time_seconds": (LATENCY, "Histogram of time spent in RUNNING phase for request."),
    "request_prefill_time_seconds": (LATENCY, "Histogram of time spent in PREFILL phase for request."),
    "request_decode_time_seconds": (LATENCY, "Histogram of time spent in DECODE phase for request."),
    "request_num_preemptions": (FEW, "Histogram of the number of times a request was preempted."),
    "iteration_tokens_total": (STEP, "Histogram of number of tokens per engine_step."),
}

GAUGES: Mapping[str, str] = {
    "num_requests_running": "Number of requests in model execution batches.",
    "num_requests_waiting": "Number of requests waiting to be processed.",
    "kv_cache_usage_perc": "KV-cache usage. 1 means 100 percent usage.",
}
COUNTERS: Mapping[str, str] = {
    "prefix_cache_queries_total": "Prefix cache queries, in terms of number of queried tokens.",
    "prefix_cache_hits_total": "Prefix cache hits, in terms of number of cached tokens.",
    "prompt_tokens_total": "Number of prefill tokens processed.",
    "prompt_tokens_cached_total": "Number of cached prompt tokens (local + external).",
    "generation_tokens_total": "Number of generation tokens processed.",
    "num_preemptions_total": "Cumulative number of preemption from the engine.",
}
REASONS = ("stop", "length", "abort", "error", "repetition")
LIMITS = ("max_num_queued_reqs", "max_num_queued_tokens")


class Histogram:
    """Observations by upper bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class Metrics:
    """All that a vLLM with this core counts; times are simulated."""

    def __init__(self, engine: VLLM, model: str, cache: Mapping[str, object]) -> None:
        """``cache`` is what it says of its KV cache's configuration."""
        self._engine = engine
        self._model = f'model_name="{model}"'
        self._labels = f'engine="0",{self._model}'
        self._cache = cache
        self._histograms = {name: Histogram(bounds) for name, (bounds, _) in HISTOGRAMS.items()}
        self._counters = dict.fromkeys(COUNTERS, 0)
        self.finished: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def step(self, wrote: Sequence[Request]) -> None:
        """A step has ended in which these got a token."""
        computed = 0
        for request in wrote:
            if len(request.token_s) == 1:
                prompt = len(request.prompt)
                computed += prompt - request.cached
                self._observe("time_to_first_token_seconds", request.token_s[0] - request.sent_s)
                if self._cache["enable_prefix_caching"]:
                    self._count(prefix_cache_queries=prompt, prefix_cache_hits=request.cached)
                self._count(prompt_tokens=prompt, prompt_tokens_cached=request.cached)
            else:
                self._observe("inter_token_latency_seconds", request.token_s[-1] - request.token_s[-2])
            if request.ended_s is not None:
                self._ended(request)
        self._count(generation_tokens=len(wrote))
        self._observe("iteration_tokens_total", computed + len(wrote))

    def _ended(self, request: Request) -> None:
        admitted, first, last = request.admitted_s or 0.0, request.token_s[0], request.token_s[-1]
        times = {
            "request_time_per_output_token": (last - first) / max(1, len(request.token_s) - 1),
            "e2e_request_latency": last - request.sent_s,
            "request_queue_time": admitted - request.sent_s,
            "request_inference_time": last - admitted,
            "request_prefill_time": first - admitted,
            "request_decode_time": last - first,
        }
        for name, seconds in times.items():
            self._observe(f"{name}_seconds", seconds)
        self._observe("request_num_preemptions", request.preemptions)

    def _count(self, **more: int) -> None:
        for name, number in more.items():
            self._counters[f"{name}_total"] += number

    def _observe(self, name: str, value: float) -> None:
        self._histograms[name].observe(value)

    def text(self) -> str:
        """The page."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        for name, value in self._gauges().items():
            yield from self._family(name, "gauge", GAUGES[name], {"": value})
        waiting = {"capacity": len(self._engine.waiting), "deferred": 0}
        said = "Number of waiting requests by reason."
        yield from self._family("num_requests_waiting_by_reason", "gauge", said, _by("reason", waiting))
        counted = {**self._counters, "num_preemptions_total": self._engine.preemptions}
        for name, said in COUNTERS.items():
            yield from self._family(name, "counter", said, {"": counted[name]})
        cached = counted["prompt_tokens_cached_total"]
        sources = {"local_compute": counted["prompt_tokens_total"] - cached, "local_cache_hit": cached}
        said = "Number of prompt tokens by source."
        yield from self._family("prompt_tokens_by_source_total", "counter", said, _by("source", sources))
        finished = {reason: self.finished[reason] for reason in REASONS}
        said = "Count of successfully processed requests."
        yield from self._family("request_success_total", "counter", said, _by("finished_reason", finished))
        rejected = {limit: self.rejected[limit] for limit in LIMITS}
        said = "Number of admission attempts rejected by a queue limit, by reason."
        yield from _head("admission_rejections_total", "counter", said)
        for label, number in _by("reason", rejected).items():
            yield f"vllm:admission_rejections_total{{{self._model},{label}}} {float(number)}"
        for name, histogram in self._histograms.items():
            yield from self._histogram(name, histogram)
        yield from _head("cache_config_info", "gauge", "Information of the LLMEngine CacheConfig")
        labels = ",".join(f'{key}="{value}"' for key, value in self._cache.items())
        yield f"vllm:cache_config_info{{{labels}}} 1.0"

    def _gauges(self) -> dict[str, float]:
        pool = self._engine.pool
        return {
            "num_requests_running": len(self._engine.running),
            "num_requests_waiting": len(self._engine.waiting),
            "kv_cache_usage_perc": 1 - pool.free / pool.total,
        }

    def _family(self, name: str, kind: str, said: str, values: Mapping[str, float]) -> Iterator[str]:
        """One metric, with a value for each of some more labels."""
        yield from _head(name, kind, said)
        for more, value in values.items():
            labels = f"{self._labels},{more}" if more else self._labels
            yield f"vllm:{name}{{{labels}}} {float(value)}"

    def _histogram(self, name: str, histogram: Histogram) -> Iterator[str]:
        yield from _head(name, "histogram", HISTOGRAMS[name][1])
        bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
        below = list(accumulate(histogram.counts))
        for bound, number in zip(bounds, below, strict=True):
            yield f'vllm:{name}_bucket{{{self._labels},le="{bound}"}} {float(number)}'
        yield f"vllm:{name}_count{{{self._labels}}} {float(below[-1])}"
        yield f"vllm:{name}_sum{{{self._labels}}} {histogram.sum}"


def _by(label: str, values: Mapping[str, float]) -> dict[str, float]:
    """Values by what they are labelled with."""
    return {f'{label}="{key}"': value for key, value in values.items()}


def _head(name: str, kind: str, said: str) -> Iterator[str]:
    yield f"# HELP vllm:{name} {said}"
    yield f"# TYPE vllm:{name} {kind}"
