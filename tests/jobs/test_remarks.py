"""What a plan says of the licences of its inputs, and of who may read them."""

from hub.snapshot import Snapshot
from jobs.pinned import PinnedInput
from jobs.remarks import remarks


def on_hub(name: str, license_: str | None, *, private: bool = False, gated: bool = False) -> PinnedInput:
    snapshot = Snapshot(name, None, "0" * 40, private, gated, license_, (), ())
    return PinnedInput(name.partition("/")[2], name, snapshot, None, 0)


def test_licences_and_rights_are_told_once_a_repository() -> None:
    free, bound = on_hub("a/free", "mit"), on_hub("a/bound", "CC-BY-ND-4.0")
    told = [(each.code, each.model) for each in remarks([free, free, bound])]
    assert told == [("license_no_derivatives", "bound"), ("licenses_differ", None)]
    assert [each.code for each in remarks([free, on_hub("a/other", "mit")])] == []
    unsaid = [on_hub("a/p", None, private=True), on_hub("a/g", None, private=True, gated=True)]
    codes = [each.code for each in remarks(unsaid)]
    assert codes == ["input_private", "license_missing", "input_gated", "license_missing"]


def test_a_folder_has_no_licence_to_speak_of() -> None:
    assert list(remarks([PinnedInput("base", "here", None, None, 0)])) == []
