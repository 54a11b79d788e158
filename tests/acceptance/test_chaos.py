"""The short form of the crash test."""

from pathlib import Path

import pytest

from tests.acceptance.chaos import VICTIMS, Script, run


@pytest.mark.chaos
def test_no_kill_at_any_moment_loses_or_repeats_anything(tmp_path: Path, postgres_url: str) -> None:
    outcome = run(Script(jobs=5, kills=6, seed=20260101), tmp_path, postgres_url)
    assert set(outcome.kills) == set(VICTIMS)
