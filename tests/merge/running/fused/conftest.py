"""What tests of compiled loops have in common."""

import pytest

from merge.running.fused import loops


@pytest.fixture
def small_jobs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops are made for every tensor, however small it and its job are."""
    monkeypatch.setattr(loops, "LEAST_ENTRIES", 1)
    monkeypatch.setattr(loops, "LEAST_TOTAL", 0)


@pytest.fixture
def made(small_jobs_too: None, monkeypatch: pytest.MonkeyPatch) -> list[loops.Loops]:
    """The loops of each run."""
    found: list[loops.Loops] = []
    start = loops.Loops.__init__

    def noted(self: loops.Loops, *facts: object) -> None:
        start(self, *facts)  # type: ignore[arg-type]
        found.append(self)

    monkeypatch.setattr(loops.Loops, "__init__", noted)
    return found
