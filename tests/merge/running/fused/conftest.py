"""What tests of compiled loops have in common."""

import pytest

from merge.running.fused import loops


@pytest.fixture
def small_jobs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops are made for every tensor, however small it and its job are."""
    monkeypatch.setattr(loops, "LEAST_ENTRIES", 1)
    monkeypatch.setattr(loops, "LEAST_TOTAL", 0)
