"""Makes the folder of a bundle: its tensors, the small files of members that differ from the base's, the base
where it is kept inside, and ``bundle.json``.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from merge.bundle import factors, masks
from merge.bundle.factors import Directions
from merge.bundle.masks import Masks
from merge.checkpoint.bundle import BASE, FORMAT, MANIFEST, MEMBERS, SHARED
from merge.checkpoint.layout import ShardLayout
from merge.checkpoint.tokenizer import READER_FILES
from merge.checkpoint.writer import ShardWriter
from merge.errors import NothingChanged
from merge.journal import Finished, Journal, copy_file
from merge.plan import Plan
from merge.planning.forms.bundle import BundlePlan
from merge.planning.result_config import output_config
from merge.results.finish import MODEL_FILES, small_files, write_json
from merge.results.merging import Merging

WaitFor = Callable[[str, str, int, int], None]


class BundleWork:
    """The tensors of a tall, emr or rmm bundle, file by file: what ``Work`` is for a checkpoint."""

    def __init__(self, bundle: BundlePlan, work: Merging) -> None:
        self._bundle, self._work = bundle, work
        maker = Directions if bundle.kind == "rmm" else Masks
        self._maker = maker(bundle, work, self._note)
        self._measured: dict[str, list[float]] = {}
        self._facts: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def write(self, layouts: Sequence[ShardLayout], folder: Path) -> list[ShardWriter]:
        """Computes and writes the tensors of some files, which the caller must finish."""
        return [self._write(layout, folder / layout.file) for layout in layouts]

    def _write(self, layout: ShardLayout, path: Path) -> ShardWriter:
        kept = self._bundle.kept
        names = [name for name in kept if kept[name].names[0] in layout.entries]
        with ExitStack() as stack:
            writer = stack.enter_context(ShardWriter(path, layout))

            def make(name: str) -> None:
                found = self._maker.make(writer, kept[name])
                with self._lock:
                    self._facts[name] = found
                self._work.finished(kept[name].output)

            for batch in self._work.ready([kept[name].output for name in names]):
                self._work.crew.each([output.name for output in batch], make)
                self._work.forget(batch)
            stack.pop_all()
            return writer

    def skip(self, layout: ShardLayout) -> None:
        """Counts a file that need not be made."""
        kept = self._bundle.kept.values()
        self._work.skip_outputs([each.output for each in kept if each.names[0] in layout.entries])

    def measured(self, layout: ShardLayout) -> dict[str, list[float]]:
        """What the merge report says of the tensors of a file."""
        kept = self._bundle.kept.values()
        names = [each.output.name for each in kept if each.names[0] in layout.entries]
        return {name: self._measured[name] for name in names if name in self._measured}

    def _note(self, found: dict[str, list[float]]) -> None:
        with self._lock:
            self._measured |= found

    def facts(self, layout: ShardLayout) -> dict[str, list[float]]:
        """The sums of the tensors of a file that was written."""
        kept = self._bundle.kept
        return {name: self._facts[name] for name in kept if kept[name].names[0] in layout.entries}


def write_bundle(
    plan: Plan, inputs: Mapping[str, Any], folders: Mapping[str, Path], journal: Journal
) -> tuple[list[str], dict[str, Any]]:
    """Writes the manifest and the small files of members, when all tensors are there; gives their names and
    what is to be told in the result's own manifest.
    """
    bundle = plan.bundle
    assert bundle is not None
    facts = {name: sums for done in journal.shards.values() for name, sums in done.facts.items()}
    told = _told(bundle, facts)
    names: list[str] = []
    for member in bundle.members:
        small = {} if bundle.kind == "twin" else _own_files(plan, folders, member)
        for name, content in small.items():
            path = journal.folder / MEMBERS / member / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            names.append(f"{MEMBERS}/{member}/{name}")
        given = inputs.get(member, {})
        told[member] = {**told[member], **{key: given[key] for key in _IDENTITY if key in given}}
        told[member] |= {"files": sorted(small)} if small else {}
        config = _own_config(plan, member)
        told[member] |= {"config": config} if config is not None else {}
    document = {
        "format": FORMAT,
        "kind": bundle.kind,
        "settings": bundle.asked.settings(),
        "base": _base(plan, inputs),
        "members": told,
        "files": [layout.file for layout in bundle.layouts],
        "left_out": dict(bundle.left),
    }
    write_json(journal.folder / MANIFEST, document)
    public = {name: {key: each[key] for key in each if key != "config"} for name, each in told.items()}
    return [*names, MANIFEST], {"bundle": {"kind": bundle.kind, "members": public}}


_DTYPE = "float32"
"""Configs are compared as if their models were stored so: what a member is stored in is decided later."""
_IDENTITY = ("model", "adapter", "structure_sha256", "files_sha256", "samples_sha256")
"""What the manifest repeats of a member's source."""


def copy_base(
    plan: Plan, folder: Path, journal: Journal, wait_for: WaitFor | None, check: Callable[[], None]
) -> list[Finished]:
    """The base's weight files and small files, byte by byte, into the bundle; what is there is kept."""
    index = plan.models["base"]
    small = [
        name
        for name in index.files
        if name in ("config.json", *MODEL_FILES, *READER_FILES) or name.endswith(".safetensors.index.json")
    ]
    found = []
    (journal.folder / BASE).mkdir(exist_ok=True)
    for name in (*index.shards, *sorted(small)):
        done = journal.shards.get(f"{BASE}/{name}")
        if done is None and (name in index.shards or (folder / name).is_file()):
            if wait_for is not None and name in index.shards:
                wait_for("base", name, 0, index.files[name])
            done = copy_file(folder / name, journal.folder, f"{BASE}/{name}", check)
            journal.add_shard(done)
        found += [done] if done is not None else []
    return found


def _told(bundle: BundlePlan, facts: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    if bundle.kind == "twin":
        return {member: {} for member in bundle.members}
    if bundle.kind == "rmm":
        return {name: dict(each) for name, each in factors.members_of(bundle, facts).items()}
    if not any(any(sums) for sums in facts.values()):
        raise NothingChanged("No source differs from the base: a bundle would be empty.")
    return {name: dict(each) for name, each in masks.members_of(bundle, facts).items()}


def _base(plan: Plan, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """How the base is called, and what identifies it."""
    bundle = plan.bundle
    assert bundle is not None
    if bundle.kind == "twin":
        shared = next(iter(plan.members.values())).models["base"]
        return {"model": SHARED, "inside": SHARED, "structure_sha256": shared.digest, "samples_sha256": {}}
    given = inputs["base"]
    inside = BASE if bundle.keeps_base else None
    kept = {key: given[key] for key in ("files_sha256", "samples_sha256") if key in given}
    return {"model": given["model"], "inside": inside, "structure_sha256": given["structure_sha256"], **kept}


def _own_config(plan: Plan, member: str) -> dict[str, Any] | None:
    """A member's config, where it is another than the base's."""
    if plan.members:
        return None
    ours, theirs = plan.models[member].config, plan.models["base"].config
    same = output_config(ours, _DTYPE) == output_config(theirs, _DTYPE)
    return None if same else output_config(ours, None)


def _own_files(plan: Plan, folders: Mapping[str, Path], member: str) -> dict[str, bytes]:
    """A member's tokenizer files (all, if one differs from the base's) and its generation config."""
    if member not in folders or "base" not in folders:
        return {}
    found: dict[str, bytes] = {}
    for names in (MODEL_FILES, READER_FILES):
        ours, theirs = (small_files(plan, folders, key, names) for key in (member, "base"))
        found |= ours if ours != theirs else {}
    return found
