"""The figure of a model's life: parts that add up to what was seen, said in words too."""

from __future__ import annotations

from typing import Any

import pytest

from labkit import figures, transcript
from labkit.errors import UsageError
from labkit.figures.life import HUES, life_data
from labkit.transcript import Transcript


def answer(turn: str, load_s: float | None, ttft_s: float, took_s: float) -> dict[str, Any]:
    told = {"load_s": load_s, "prompt_s": 0.1, "ttft_s": ttft_s, "took_s": took_s}
    return {"t_s": 0.0, "what": "answer", "turn": turn, **told}


LIFE = Transcript(
    "lifecycle",
    "simulated",
    {"engine": "ollama"},
    (answer("first", 0.5, 0.7, 1.0), answer("second", None, 0.05, 0.2)),
)


def test_parts_add_up_to_the_answer() -> None:
    first, second = life_data(LIFE).rows(named=True)
    assert sum(first[part] for part in HUES) == pytest.approx(1.0)
    assert first["other"] == pytest.approx(0.1)
    assert (second["loading"], second["other"]) == (0.0, 0.0)


def test_it_has_all_its_forms_and_says_its_depth() -> None:
    figure = figures.life(LIFE)
    assert figure.depth == "simulated"
    assert figure.caption.startswith("**simulated**")
    assert "first answer: loading 0.50 s" in figure.alt
    assert figure.png.startswith(b"\x89PNG")
    assert [bar.name for bar in figure.plotly.data] == list(HUES)


def test_the_recorded_life_can_be_drawn_and_another_transcript_is_refused() -> None:
    assert figures.life(transcript.recorded("lifecycle")).depth == "recorded"
    with pytest.raises(UsageError, match=r"lab\.lifecycle"):
        figures.life(transcript.recorded("pull"))
