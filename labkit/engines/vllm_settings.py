"""vLLM's settings as labkit offers them: names, limits, command line, environment, known causes of death."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from labkit.engines.causes import Cause
from labkit.engines.settings import Settings, setting
from labkit.errors import UsageError

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class VLLMSettings(Settings):
    """How a vLLM server is started. None: what :meth:`resolved` fills in, else vLLM's own default.

    Field names are the CLI flags (``max_model_len`` is ``--max-model-len``).
    """

    title: ClassVar[str] = "vLLM"

    max_model_len: int = setting(4096, "tokens one request may use, prompt and answer together", low=1)
    max_num_seqs: int | None = setting(
        None, "requests computed together in one step (default: 128 on a CPU, 256 on a GPU)", low=1
    )
    prefix_caching: bool = setting(True, "reuse KV blocks of equal prompt beginnings")
    tensor_parallel_size: int = setting(1, "ranks that share each layer; must divide the heads", low=1)
    gpu_memory_utilization: float | None = setting(
        None, "share of the device's memory to take (default on a GPU: vLLM's own)", low=0.01, high=1
    )
    kv_cache_gib: float | None = setting(
        None, "GiB of KV cache a rank (default: 1 on a CPU; on a GPU what the share above leaves)", low=0.01
    )
    block_size: int | None = setting(None, "tokens a KV block (default: vLLM's own; 128 on a CPU)", low=1)
    eager: bool | None = setting(
        None,
        "run without compilation (default on a CPU, where compiling costs minutes and gains a tenth)",
    )
    cpu_threads: int | str = setting(
        "all", "on a CPU: all, a number, or default (vLLM's own choice, which leaves a core idle)", low=1
    )

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """See :meth:`Settings.of`."""
        settings = super().of(given)
        if isinstance(settings.cpu_threads, str) and settings.cpu_threads not in {"all", "default"}:
            raise cls.refuse("cpu_threads", settings.cpu_threads, "it must be all, default or a number")
        return settings

    def resolved(self, device: Device) -> Self:
        """The same with labkit's defaults for this kind of device in place of None."""
        if device == "cuda":
            return replace(
                self,
                max_num_seqs=self.max_num_seqs or 256,
                eager=bool(self.eager),
                cpu_threads="default",
            )
        pool = 1.0 if self.gpu_memory_utilization is None else None
        return replace(
            self,
            max_num_seqs=self.max_num_seqs or 128,
            eager=self.eager is not False,
            kv_cache_gib=self.kv_cache_gib or pool,
        )

    def argv(self, python: Path, folder: Path, name: str, port: int) -> list[str]:
        """Command line of the server. The ``vllm`` command itself does not work with the CPU distribution."""
        options: dict[str, Any] = {
            "model": folder,
            "served-model-name": name,
            "host": "127.0.0.1",
            "port": port,
            "max-model-len": self.max_model_len,
            "max-num-seqs": self.max_num_seqs,
            "tensor-parallel-size": self.tensor_parallel_size,
            "gpu-memory-utilization": self.gpu_memory_utilization,
            "kv-cache-memory-bytes": int(self.kv_cache_gib * 2**30) if self.kv_cache_gib else None,
            "block-size": self.block_size,
            "disable-access-log-for-endpoints": "/metrics,/health,/version,/v1/models",
        }
        given = [f"--{key}={value}" for key, value in options.items() if value is not None]
        switches = [
            "--enable-prompt-tokens-details",  # reports cached tokens per request
            *([] if self.prefix_caching else ["--no-enable-prefix-caching"]),  # vLLM's own default is on
            *(["--enforce-eager"] if self.eager else []),
        ]
        return [str(python), "-m", "vllm.entrypoints.openai.api_server", *given, *switches]

    def environment(self, device: Device, cores: Sequence[int]) -> dict[str, str]:
        """Variables of the server: no telemetry, no hub, loopback only, and on a CPU its threads.

        Args:
            cores: numbers of the cores that may be used.

        Raises:
            UsageError: more threads than cores, or fewer cores than ranks.
        """
        env = {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_LOGGING_COLOR": "0",  # a notebook's kernel asks for colours, which its log is then full of
            "NO_COLOR": "1",
        }
        if device == "cuda":
            return env
        env["VLLM_TARGET_DEVICE"] = "cpu"
        if self.cpu_threads != "default":
            env["VLLM_CPU_OMP_THREADS_BIND"] = self._bind(cores)
        return env

    def _bind(self, cores: Sequence[int]) -> str:
        """Core numbers for each rank, as ``0,1|2,3``."""
        wanted = len(cores) if self.cpu_threads == "all" else int(self.cpu_threads)
        ranks = self.tensor_parallel_size
        if not ranks <= wanted <= len(cores):
            raise UsageError(
                f"start vLLM with cpu_threads={self.cpu_threads!r}, tensor_parallel_size={ranks}",
                f"{len(cores)} cores may be used here, and each rank needs one of its own",
                f"choose cpu_threads from {ranks} to {len(cores)}"
                if ranks <= len(cores)
                else f"choose tensor_parallel_size up to {len(cores)}",
            )
        share = wanted // ranks
        return "|".join(",".join(map(str, cores[rank * share : (rank + 1) * share])) for rank in range(ranks))


CAUSES: tuple[Cause, ...] = (
    Cause(
        r"larger than the available KV cache memory|No available memory for the cache blocks",
        "the context (max_model_len) needs more KV cache than there is",
        "raise kv_cache_gib (on a GPU gpu_memory_utilization), or lower max_model_len to what the log names",
    ),
    Cause(
        r"less than desired GPU memory utilization|less than requested memory for kv",
        "the memory it wants at the start is not free",
        "free it (labkit engines stop --all), or lower gpu_memory_utilization or kv_cache_gib",
    ),
    Cause(
        r"attention heads .* must be divisible by tensor parallel size",
        "tensor_parallel_size does not divide the model's attention heads",
        "choose a tensor_parallel_size that divides the number of heads in the log",
    ),
    Cause(
        r"than the derived max_model_len",
        "max_model_len is above the context that the model was trained for",
        "lower max_model_len to the number that the log names",
    ),
    Cause(
        r"Can't load the configuration of|not a valid JSON file|(no|have a) file named"
        r"|Invalid repository ID or local directory|Cannot find any model weights",
        "the model's folder is missing or damaged",
        "labkit models get",
    ),
    Cause(
        r"No module named 'vllm'|Failed to infer device type|not compiled with|no kernel image is available"
        r"|has no attribute '_C'",
        "this build of vLLM does not fit this machine",
        "labkit engines remove vllm, then labkit engines install vllm",
    ),
    Cause(
        r"libnuma",
        "the system library libnuma is missing",
        "sudo apt-get install -y libnuma1",
    ),
    Cause(
        r"unrecognized arguments",
        "this version of vLLM does not know one of the options",
        "take the version that this course pins: labkit engines install vllm",
    ),
)
"""Why vLLM servers die, by what their log says."""
