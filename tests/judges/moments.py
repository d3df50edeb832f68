"""What runs with chosen moments, and transcripts, say of the claims of notebooks 00 to 04."""

from __future__ import annotations

from typing import Any

from judges.made import Request, ollama, refused, request, served, vllm
from labkit.judges import HELD, NOT_HELD, NOT_HERE
from labkit.transcript import Transcript

Rows = dict[str, list[Request]]

FOUR = "Ollama, 4 slots"
ONE_ANSWER: dict[str, Any] = {"rows": {"Ollama": served([0.0]), "vLLM": served([0.0])}}
ON_GPU = {"facts": {"vLLM": vllm(device="cuda:0 NVIDIA A100"), "Ollama": ollama(device="cuda:0 NVIDIA A100")}}
NO_DEVICE = {"facts": {"vLLM": vllm(device=None), "Ollama": ollama(device=None)}}
NOTHING: Rows = {"Ollama": [refused(0.0)], "vLLM": [refused(0.0)]}


def default(slots: int | None, **more: Any) -> dict[str, Any]:
    """Ollama, started without a number of slots."""
    return {
        "rows": {"Ollama": served([0.0])},
        "facts": {"Ollama": ollama(slots, **more.pop("read", {}))},
        "settings": {"Ollama": {"num_parallel": None}},
        **more,
    }


def asked(number: int, slots: int | None) -> dict[str, Any]:
    return {
        "rows": {FOUR: served([0.0])},
        "facts": {FOUR: ollama(slots)},
        "settings": {FOUR: {"num_parallel": number}},
    }


# one slot; requests come 0.2 s apart and take 1 s each
LINE = served([0.2 * n for n in range(6)])
PASSED = [*LINE[:2], {**LINE[2], "first_token_s": LINE[5]["first_token_s"] + 1}, *LINE[3:]]
FOUR_LINE = served([0.2 * n for n in range(12)], slots=4)


def trap(limit: int | None, whole: int, turned_away: int, *, cold: bool = False) -> dict[str, Any]:
    """A burst that is larger than the queue."""
    return {
        "rows": {"Ollama": served([0.0] * whole) + [refused(0.0)] * turned_away},
        "settings": {"Ollama": {} if limit is None else {"max_queue": limit}},
        "load": {"arrivals": "burst", "cold": cold},
        "level": whole + turned_away,
    }


def cache(*sizes: tuple[int, int, int]) -> dict[str, Any]:
    """An arm for each: slots, context, MiB of KV memory."""
    arms = [f"Ollama, arm {number}" for number in range(len(sizes))]
    read = [ollama(slots, context=context, kv_bytes=mib * 2**20) for slots, context, mib in sizes]
    return {"rows": {arm: served([0.0]) for arm in arms}, "facts": dict(zip(arms, read, strict=True))}


def gauged(
    *readings: tuple[float, float, float | None], slots: int | None = 4, seconds: float = 10.0
) -> dict[str, Any]:
    """vLLM with these readings of running, waiting, and use of its pool, once a second."""
    gauges = [
        (
            "vLLM",
            float(t),
            {k: v for k, v in zip(("running", "waiting", "kv_use"), one, strict=True) if v is not None},
        )
        for t, one in enumerate(readings)
    ]
    return {
        "rows": {"vLLM": [request(0.0, 0.1, seconds)]},
        "facts": {"vLLM": vllm(slots)},
        "gauges": gauges,
    }


def growing(blocks: list[int], **more: Any) -> dict[str, Any]:
    """One answer that outgrows a block every second, and the blocks that the gauge shows at each half second.

    128 tokens a second, from a prompt of 60: it crosses borders at 0.64 s, 1.64 s and so on.
    """
    gauges = [("vLLM", n + 0.2, {"running": 1.0, "kv_use": used / 100}) for n, used in enumerate(blocks)]
    answer = request(0.0, 0.1, 8.1, output_tokens=1025)
    return {"rows": {"vLLM": [answer]}, "gauges": gauges, "facts": {"vLLM": vllm(**more)}}


def lengths(tokens: int, **more: Any) -> dict[str, Any]:
    """Answers that hold so many tokens at their end."""
    rows = [request(0.0, 0.1, 1.0, output_tokens=tokens - 60)] * 3
    return {"rows": {"vLLM": rows}, "facts": {"vLLM": vllm(**more)}}


# two places: a long request takes one for 10 s, short ones take turns in the other
JOINING = served([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], slots=2, work_s=[10.0, 1.0, 1.0, 1.0, 1.0, 1.0])
# the same, but the next two begin when both have ended
STATIC = [
    row
    for batch in range(4)
    for row in (
        request(0.0, 10.0 * batch + 0.1, 10.0 * (batch + 1)),
        request(0.0, 10.0 * batch + 0.1, 10.0 * batch + 1),
    )
]
TOGETHER = served([0.0] * 6, slots=2)  # both end at the same time
COMING = [request(1.0 * n, 1.0 * n + 0.15, 1.0 * n + 5) for n in range(6)]  # there is room for each


def batch(arm: str, rows: list[Request], slots: int | None = 2) -> dict[str, Any]:
    read = ollama(slots) if arm.startswith("Ollama") else vllm(slots)
    return {"rows": {arm: rows}, "facts": {arm: read}}


def started(asked_for: dict[str, int], context: int | None) -> dict[str, Any]:
    return {
        "rows": {"vLLM": served([0.0])},
        "facts": {"vLLM": vllm(context=context)},
        "settings": {"vLLM": asked_for},
    }


def from_files(source: str | None, rows: Rows | None = None) -> dict[str, Any]:
    """vLLM, with files that came from there."""
    return {"rows": rows or {"vLLM": served([0.0])}, "facts": {"vLLM": vllm(model_source=source)}}


def two_files(first: str | None, second: str | None) -> dict[str, Any]:
    """Both engines, by the digest of what they serve."""
    read = {"Ollama": ollama(model_digest=first), "vLLM": vllm(model_digest=second)}
    return {"rows": {"Ollama": served([0.0]), "vLLM": served([0.0])}, "facts": read}


def told_apart(number: int, slots: int, owner: str = "kernel") -> dict[str, Any]:
    """Ollama with a number of slots asked for, and who started it."""
    return {**asked(number, slots), "facts": {FOUR: ollama(slots, owner=owner)}}


CASES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("C02", HELD, "chose cuda:0 NVIDIA A100 and gave 1 whole answer.", {**ONE_ANSWER, **ON_GPU}),
    ("C02", NOT_HELD, "gave 0 whole answers", {"rows": NOTHING, **ON_GPU}),
    ("C02", NOT_HERE, "ran on the CPU here", ONE_ANSWER),
    ("C15", HELD, "1 whole answers from the files of the registry a/b@c", from_files("registry a/b@c")),
    ("C15", NOT_HELD, "0 whole answers", from_files("registry a/b@c", {"vLLM": [refused(0.0)]})),
    ("C15", NOT_HERE, "from the package p==1, and not published ones", from_files("package p==1")),
    ("C15", NOT_HERE, "where its files came from", from_files(None)),
    ("C68", HELD, "Asked for 4, got 4", told_apart(4, 4)),
    ("C68", NOT_HELD, "Asked for 4, got 1", told_apart(4, 1)),
    ("C68", NOT_HERE, "2 slots or more", told_apart(1, 1)),
    ("C68", NOT_HERE, "its environment", told_apart(4, 4, "foreign")),
    ("C84", HELD, "Ollama aa, vLLM bb", two_files("aa", "bb")),
    ("C84", NOT_HELD, "Ollama aa, vLLM aa", two_files("aa", "aa")),
    ("C84", NOT_HERE, "Not both engines", two_files("aa", None)),
    (
        "C86",
        HELD,
        "1 × 4,096 tokens: 90 MiB; 4 × 4,096 tokens: 360 MiB",
        cache((1, 4096, 90), (4, 4096, 360)),
    ),
    ("C86", NOT_HELD, "4 × 4,096 tokens: 90 MiB", cache((1, 4096, 90), (4, 4096, 90))),
    ("C86", NOT_HERE, "one model and context", cache((1, 4096, 90), (4, 2048, 180))),
    *[
        case
        for claim in ("C03", "C37", "C82")
        for case in (
            (claim, NOT_HELD, "1 whole answer on a CPU", ONE_ANSWER),
            (claim, NOT_HERE, "imulated", {**ONE_ANSWER, "kind": "simulated"}),
            (claim, NOT_HERE, "does not tell what else", {**ONE_ANSWER, **ON_GPU}),
            (claim, NOT_HERE, "its device", {**ONE_ANSWER, **NO_DEVICE}),
            (claim, NOT_HERE, "no whole answer", {"rows": NOTHING}),
        )
    ],
    ("C09", HELD, "1 whole answer on Linux", ONE_ANSWER),
    ("C09", HELD, "A100", {**ONE_ANSWER, **ON_GPU}),
    ("C09", NOT_HELD, "no whole answer", {"rows": NOTHING}),
    ("C09", NOT_HERE, "imulated", {**ONE_ANSWER, "kind": "simulated"}),
    ("C04", HELD, "took 4 slots", default(4)),
    ("C04", NOT_HELD, "took 1 slot", default(1)),
    ("C04", NOT_HERE, "its own default", ONE_ANSWER),
    ("C04", NOT_HERE, "how many slots", default(None)),
    ("C64", HELD, "took 4 slots", default(4)),
    ("C64", NOT_HELD, "neither 4 nor 1", default(2)),
    ("C64", NOT_HELD, "although the KV memory of 4 is 0.35 GiB", default(1)),
    ("C64", NOT_HERE, "would be 0.4 GiB of 0", default(1, memory_gib=0.5)),
    ("C64", NOT_HERE, "not known whether", default(1, memory_gib=None)),
    ("C64", NOT_HERE, "not known whether", default(1, read={"device": "cuda:0"})),
    ("C05", HELD, "Asked for 4, got 4", asked(4, 4)),
    ("C05", NOT_HELD, "Asked for 4, got 1", asked(4, 1)),
    ("C05", NOT_HERE, "2 slots or more", asked(1, 1)),
    ("C05", NOT_HERE, "2 slots or more", ONE_ANSWER),
    ("C06", NOT_HELD, "2 were refused", {"rows": {"Ollama": [*LINE, refused(0.0), refused(0.1)]}}),
    ("C06", NOT_HERE, "at a rate", {"rows": {"Ollama": LINE}, "load": {"arrivals": "poisson"}}),
    ("C33", NOT_HERE, "stood still on purpose", {"rows": {"Ollama": LINE}, "load": {"stall_s": 3.0}}),
    ("C36", NOT_HERE, "load its model on purpose", {"rows": {"Ollama": LINE}, "load": {"cold": True}}),
    ("C20", HELD, "0 were overtaken.", {"rows": {"Ollama": LINE}}),
    ("C20", NOT_HELD, "1 were overtaken.", {"rows": {"Ollama": PASSED}}),
    ("C20", HELD, "by more than the 3", {"rows": {FOUR: FOUR_LINE}, "facts": {FOUR: ollama(4)}}),
    ("C20", HELD, "by more than the 3", {"rows": {FOUR: PASSED}, "facts": {FOUR: ollama(4)}}),
    ("C20", NOT_HERE, "in a burst", {"rows": {"Ollama": served([0.0] * 6)}}),
    ("C20", NOT_HERE, "in a burst", {"rows": {"Ollama": LINE}, "facts": {"Ollama": ollama(None)}}),
    ("C66", HELD, "not loaded, 18 of 20", trap(1, 2, 18, cold=True)),
    ("C66", HELD, "model loaded, 18 of 20", trap(1, 2, 18)),
    ("C66", NOT_HELD, "model loaded, 0 of 20", trap(1, 20, 0)),
    ("C66", NOT_HELD, "not loaded, 0 of 20", trap(1, 20, 0, cold=True)),
    ("C66", NOT_HERE, "In no run", trap(64, 20, 0)),
    ("C66", NOT_HERE, "In no run", {**trap(1, 20, 0), "load": {"arrivals": "constant"}}),
    ("C21", HELD, "max_queue=512", trap(None, 513, 7)),
    ("C21", NOT_HELD, "max_queue=512", trap(None, 520, 0)),
    ("C21", NOT_HELD, "does not end at 512 either", trap(1, 20, 0)),
    ("C21", NOT_HERE, "does not tell what it is by default", trap(1, 2, 18, cold=True)),
    ("C21", NOT_HERE, "In no run", trap(None, 20, 0)),
    (
        "C67",
        HELD,
        "1 × 8,192 tokens: 180 MiB, 4 × 2,048 tokens: 180 MiB",
        cache((4, 2048, 180), (1, 8192, 180)),
    ),
    ("C67", NOT_HELD, "4 × 2,048 tokens: 720 MiB", cache((4, 2048, 720), (1, 8192, 180))),
    ("C67", HELD, "22.50 KiB a token. No two", cache((1, 4096, 90), (4, 4096, 360))),
    ("C67", NOT_HELD, "90.00 KiB a token", cache((1, 4096, 90), (4, 4096, 1440))),
    ("C67", NOT_HERE, "different numbers of slots", cache((1, 4096, 90), (1, 8192, 180))),
    ("C67", NOT_HERE, "different numbers of slots", cache((1, 4096, 90), (4, 4096, 0))),
    (
        "C07",
        NOT_HELD,
        "never worked on more than 4 requests while up to 12 waited",
        gauged((4, 12, 0.1), (4, 8, 0.1)),
    ),
    ("C07", HELD, "worked on 6 requests", gauged((4, 2, 0.1), (6, 0, 0.1))),
    ("C07", NOT_HERE, "never reached", gauged((3, 0, 0.1))),
    ("C07", NOT_HERE, "its max_num_seqs", gauged((3, 0, 0.1), slots=None)),
    ("C08", HELD, "1 at work used 1.0% of it, 4 used 4.0%", gauged((1, 0, 0.01), (4, 0, 0.04))),
    ("C08", NOT_HELD, "4 used 1.0%", gauged((1, 0, 0.01), (4, 0, 0.01))),
    ("C08", NOT_HERE, "different numbers of requests", gauged((4, 0, 0.04), (4, 0, 0.04))),
    ("C26", HELD, "blocks of 16 tokens", lengths(100, block_size=16)),
    ("C26", NOT_HELD, "blocks of 128 tokens", lengths(100)),
    ("C26", NOT_HERE, "block size", lengths(100, block_size=None)),
    ("C27", HELD, "past 6 borders", growing([1, 2, 3, 4, 5, 6, 7])),
    ("C27", NOT_HELD, "grew by 0 blocks", growing([9, 9, 9, 9, 9, 9, 9])),
    ("C27", NOT_HERE, "Not 3 times", growing([1, 2, 3])),
    ("C27", NOT_HERE, "Not 3 times", growing([1, 2, 3, 4, 5, 6], block_size=None)),
    ("C28", HELD, "2.3% of their blocks", lengths(125)),
    ("C28", NOT_HELD, "21.9% of their blocks", lengths(100)),
    ("C28", NOT_HELD, "would leave 2.3%", lengths(125, context=128)),
    ("C28", NOT_HERE, "block size, context", lengths(125, block_size=None)),
    ("C29", HELD, "4 were filled before those had ended and 0 after", batch("vLLM", JOINING)),
    ("C29", NOT_HELD, "0 were filled", batch("vLLM", STATIC)),
    ("C29", HELD, "filled", batch("vLLM", COMING, 128)),
    ("C29", NOT_HERE, "Fewer than 3", batch("vLLM", TOGETHER)),
    ("C29", NOT_HERE, "works on at once", batch("vLLM", JOINING, None)),
    ("C30", NOT_HELD, "at Ollama, 2 slots while", batch("Ollama, 2 slots", JOINING)),
    ("C30", HELD, "0 were filled", batch("Ollama, 2 slots", STATIC)),
    ("C30", NOT_HERE, "Fewer than 3", batch("Ollama, 2 slots", TOGETHER)),
    ("C30", NOT_HERE, "2 slots or more", batch("Ollama", JOINING, 1)),
    ("C49", HELD, "tells a context of 8192", started({"max_model_len": 8192}, 8192)),
    ("C49", NOT_HELD, "tells a context of 4096", started({"max_model_len": 8192}, 4096)),
    ("C49", NOT_HERE, "of its own", started({}, 4096)),
    ("C49", NOT_HERE, "of its own", started({"max_model_len": 8192}, None)),
]


def told(name: str, *events: dict[str, Any], kind: str = "live", **about: Any) -> Transcript:
    return Transcript(name, kind, about, tuple({"t_s": float(n), **one} for n, one in enumerate(events)))


def loads(limit: int | None, *steps: tuple[str, list[str], list[str]]) -> Transcript:
    """Each step: which model was asked for, which are in memory then, which went."""
    events = [
        {"what": "load", "model": m, "loaded": there, "evicted": gone, "was_loaded": False, "took_s": 1.5}
        for m, there, gone in steps
    ]
    return told("evictions", {"what": "limit", "max_loaded_models": limit}, *events)


A, B, C = ("a", ["a"], []), ("b", ["a", "b"], []), ("c", ["b", "c"], ["a"])
SERVER = {"what": "process", "role": "server", "program": "ollama", "memory_mib": 40}
CHILD = {"what": "process", "role": "child", "program": "llama-server", "memory_mib": 400}
FIRST = {"what": "answer", "turn": "first", "load_s": 0.6}
API = {"what": "api", "path": "/api/chat"}
DONE = {"what": "done", "took_s": 3.0, "bytes": 271_000_000}


def head(magic: str = "GGUF", bits: int = 16) -> Transcript:
    """The head of a file with a million weights of so many bits."""
    return told(
        "gguf_smollm2-135m",
        {"what": "header", "magic": magic},
        {"what": "type", "type": f"{bits} bit", "elements": 1_000_000},
        {"what": "file", "bytes": 1_000_000 * bits // 8 + 1000},
        model="smollm2:135m",
    )


def listening(options: str, where: str) -> Transcript:
    """vLLM's own words on its options and on its address."""
    said = {"imports": f"non-default args: {{{options}}}", "HTTP server": f"Starting vLLM server on {where}"}
    return told(
        "start_log_vllm", *({"what": "phase", "phase": phase, "says": says} for phase, says in said.items())
    )


TOLD: list[tuple[str, str, str, Transcript]] = [
    ("C14", HELD, "smollm2:135m from begins with 'GGUF'", head()),
    ("C14", NOT_HERE, "The head of no file", told("gguf_smollm2-135m")),
    ("C41", NOT_HERE, "The types of no file", told("gguf_smollm2-135m")),
    ("C14", NOT_HELD, "begins with 'ggml'", head(magic="ggml")),
    ("C41", HELD, "4 bit, and it is that which makes", head(bits=4)),
    ("C41", NOT_HELD, "2.0 MB for 1.0 million weights, which are 2.0 MB in 16 bit", head()),
    ("C43", HELD, "One program serves the model: ollama", told("lifecycle", SERVER)),
    ("C43", NOT_HELD, "ollama and llama-server", told("lifecycle", SERVER, CHILD)),
    ("C43", NOT_HERE, "No process", told("lifecycle", FIRST)),
    ("C43", NOT_HERE, "imulated", told("lifecycle", SERVER, kind="simulated")),
    ("C51", HELD, "is no port, and it says", listening("'host': '127.0.0.1'", "http://127.0.0.1:8000")),
    ("C51", NOT_HELD, ":9000", listening("'host': '127.0.0.1'", "http://127.0.0.1:9000")),
    ("C51", NOT_HERE, "its own, 8100", listening("'host': 'x', 'port': 8100", "http://127.0.0.1:8100")),
    ("C51", NOT_HERE, "neither the options", listening("", "http://127.0.0.1:8000")),
    ("C01", HELD, "271 MB in 3.0 s", told("pull", {"what": "status", "status": "success"}, DONE)),
    ("C01", NOT_HELD, "ended with 'error'", told("pull", {"what": "status", "status": "error"}, DONE)),
    ("C01", NOT_HERE, "not whole", told("pull", {"what": "status", "status": "pulling manifest"})),
    ("C17", HELD, "child process llama-server", told("lifecycle", SERVER, CHILD)),
    ("C17", NOT_HELD, "no child process", told("lifecycle", SERVER)),
    ("C17", NOT_HELD, "child process runner", told("lifecycle", SERVER, {**CHILD, "program": "runner"})),
    ("C17", NOT_HERE, "No process", told("lifecycle", FIRST)),
    ("C17", NOT_HERE, "imulated", told("lifecycle", SERVER, kind="simulated")),
    ("C18", HELD, "Q4_1, 4 bits", told("lifecycle", quantisation="Q4_1")),
    ("C18", NOT_HELD, "F16, 16 bits", told("lifecycle", quantisation="F16")),
    ("C18", NOT_HERE, "no precision", told("lifecycle")),
    ("C18", NOT_HERE, "no model file", told("lifecycle", kind="simulated", quantisation="F16")),
    ("C19", NOT_HELD, "in 0.60 s, and /api/chat answered", told("lifecycle", FIRST, API)),
    ("C19", NOT_HERE, "first answer", told("lifecycle", FIRST)),
    ("C22", HELD, "1 models were in memory", loads(None, A, ("b", ["b"], ["a"]))),
    ("C22", NOT_HELD, "2 models were in memory at once (a, b)", loads(None, A, B)),
    ("C22", NOT_HERE, "set to 3 here", loads(3, A, B)),
    ("C22", NOT_HERE, "Only one model", loads(None, A)),
    ("C22", NOT_HERE, "Nothing was loaded", loads(None)),
    ("C23", HELD, "c took 1.50 s to load, and a went", loads(2, A, B, C)),
    ("C23", NOT_HELD, "c was asked for", loads(2, A, B, ("c", ["a", "b"], []))),
    ("C23", NOT_HERE, "Nothing had to go", loads(2, A, B)),
    ("C65", HELD, "2 were allowed", loads(2, A, B, C)),
    ("C65", NOT_HELD, "3 models were in memory", loads(2, A, B, ("c", ["a", "b", "c"], []))),
    ("C65", NOT_HERE, "were asked for", loads(2, A, B)),
    ("C65", NOT_HERE, "no number was set", loads(None, A, B, C)),
]
