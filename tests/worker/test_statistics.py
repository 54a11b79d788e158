"""Statistics on the disk: what a job holds stays."""

import tempfile
from pathlib import Path
from typing import Any

import pytest

from jobs.scratch import bytes_in
from worker.artifacts import keep
from worker.statistics import Store, evict


def test_nothing_that_a_job_holds_is_removed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "t" / name).mkdir(parents=True)
        (tmp_path / "t" / name / "file").write_bytes(bytes(5000))
    with Store(tmp_path, "t") as store:
        assert store.hold("a") and not store.hold("c")
        assert evict(tmp_path, 0, [("t", "a"), ("t", "b")]) == [("t", "b")]
    assert evict(tmp_path, 0, []) == [("t", "a")]
    assert not any((tmp_path / "t").iterdir())


def test_what_was_used_longest_ago_goes_first_and_no_more_than_has_to(tmp_path: Path) -> None:
    for name in ("a", "b", "unknown", "z"):
        (tmp_path / "t" / name).mkdir(parents=True)
        (tmp_path / "t" / name / "file").write_bytes(bytes(1 << 16))
    each = bytes_in(tmp_path / "t" / "a")
    oldest = [("t", "z"), ("t", "a"), ("t", "b")]
    assert evict(tmp_path, 4 * each, oldest) == []
    assert evict(tmp_path, 2 * each, oldest) == [("t", "unknown"), ("t", "z")]
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["a", "b"]


@pytest.mark.parametrize("made_on", ["the same disk", "another disk"])
def test_what_was_just_measured_is_not_removed_before_its_job_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_on: str
) -> None:
    def keep_while_others_make_room(*arguments: Any) -> None:
        keep(*arguments)
        assert evict(tmp_path / "kept", 0, []) == []

    monkeypatch.setattr("worker.statistics.keep", keep_while_others_make_room)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if made_on == "another disk" else tmp_path) as other:
        made = Path(other) / "made"
        made.mkdir()
        (made / "file").write_bytes(bytes(5000))
        with Store(tmp_path / "kept", "t") as store:
            assert (store.put("a", made) / "file").stat().st_size == 5000
            assert evict(tmp_path / "kept", 0, []) == []
        assert evict(tmp_path / "kept", 0, []) == [("t", "a")]
