"""Statistics over the whole model by a guess: the same bytes, whether it was right or wrong."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from merge.run import run
from merge.running import guesses
from merge.running.fused import loops, windows
from merge.running.fused.windows import Window
from tests.merge.references import CHAINS, DIGESTS, planned, tensors_digest

COMMITTED = json.loads(DIGESTS.read_text(encoding="utf-8"))
WHOLE: Mapping[str, tuple[str, list[dict[str, Any]], int]] = {
    "ties_global": (*CHAINS["ties_global"], 1),
    "pcb.defaults": ("abc", [{"method": "pcb"}], 2),
}
"""Steps, and how many passes over all tensors a right guess takes."""


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Small jobs too, sampled whole; whether each guess was right is kept here."""
    monkeypatch.setattr(loops, "LEAST_ENTRIES", 1000)
    monkeypatch.setattr(loops, "LEAST_TOTAL", 0)
    monkeypatch.setattr(windows, "MOST_SHARE", 1.0)
    monkeypatch.setattr(guesses, "SHARE_SAMPLED", 1.0)
    monkeypatch.setattr(guesses, "MOST_UNSEEN", 0.5)
    found: list[bool] = []
    settle = guesses.settle

    def noted(*facts: Any) -> bool:
        found.append(settle(*facts))
        return found[-1]

    monkeypatch.setattr(guesses, "settle", noted)
    return found


def digest_of(folders: Mapping[str, Path], out: Path, name: str, threads: int) -> str:
    used, steps, _ = WHOLE[name]
    run(planned(folders, used, steps), folders, out, budget_bytes=1 << 30, threads=threads)
    return tensors_digest(out)


@pytest.mark.parametrize("name", WHOLE)
def test_a_guess_gives_the_committed_bytes(
    folders: Mapping[str, Path], tmp_path: Path, name: str, settled: list[bool]
) -> None:
    for threads in (1, 3):
        assert digest_of(folders, tmp_path / str(threads), name, threads) == COMMITTED[name]
    assert settled == [True] * 2 * WHOLE[name][2]


def test_a_wrong_guess_costs_the_usual_passes(
    folders: Mapping[str, Path], tmp_path: Path, settled: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = Window(1 << 30, (1 << 30) + 5, 0.1)
    monkeypatch.setattr(guesses, "windows_of", lambda samples, *_: [[beyond] for _ in samples])
    assert digest_of(folders, tmp_path / "out", "ties_global", 2) == COMMITTED["ties_global"]
    assert settled == [False]


def test_too_many_tensors_that_are_not_sampled_forbid_it(
    folders: Mapping[str, Path], tmp_path: Path, settled: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guesses, "MOST_UNSEEN", 0.0)
    assert digest_of(folders, tmp_path / "out", "ties_global", 2) == COMMITTED["ties_global"]
    assert settled == []
