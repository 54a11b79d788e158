"""The journal of an unfinished output: what was finished is found again, also after a crash."""

from pathlib import Path

from merge.journal import FILE, Finished, open_journal, sha256_of


def shard(folder: Path, name: str) -> Finished:
    (folder / name).write_bytes(name.encode())
    return Finished(name, len(name), sha256_of(folder / name))


def test_what_is_finished_after_a_line_that_a_crash_cut_off_is_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    journal = open_journal(folder, "plan", {}, {})
    journal.add_shard(shard(folder, "one"))
    with (folder / FILE).open("a") as file:
        file.write('{"shard": {"file": "tw')
    again = open_journal(folder, "plan", {}, {})
    assert set(again.shards) == {"one"}
    again.add_shard(shard(folder, "two"))
    again.add_shared([1.5])
    last = open_journal(folder, "plan", {}, {})
    assert set(last.shards) == {"one", "two"} and last.shared == [1.5]


def test_another_plan_and_changed_shards_are_begun_anew(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    journal = open_journal(folder, "plan", {"a": "digest"}, {})
    journal.add_shard(shard(folder, "one"))
    (folder / "one").write_bytes(b"two")
    assert not open_journal(folder, "plan", {"a": "digest"}, {}).shards
    assert (folder / "one").exists()
    assert not open_journal(folder, "another plan", {"a": "digest"}, {}).shards
    assert not (folder / "one").exists()


def test_what_was_measured_to_another_extent_is_made_again_where_that_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "out.partial"
    open_journal(folder, "plan", {}, {}).add_shard(shard(folder, "plain"))
    open_journal(folder, "plan", {}, {}, "full").add_shard(shard(folder, "measured"))
    assert set(open_journal(folder, "plan", {}, {}, "full").shards) == {"measured"}
    assert set(open_journal(folder, "plan", {}, {}).shards) == {"plain", "measured"}
