"""The folder in which statistics grow: one file a finished block, a journal, and how they become the
result.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from merge.checkpoint.layout import lay_out
from merge.checkpoint.saving import save_tensors
from merge.checkpoint.writer import ShardWriter
from merge.learn.findings import Findings
from merge.learn.statistics import FILE, MANIFEST, Manifest

_JOURNAL = "progress.json"
_FACTS = ("axis", "shared", "counted", "dead_channels")


class Partial:
    """An unfinished folder of statistics; what another measurement left in it is dropped."""

    def __init__(self, out: Path, manifest: Manifest) -> None:
        self.folder = out.with_name(out.name + ".partial")
        self.manifest = manifest
        self.facts: dict[str, Any] = {"digest": manifest.digest}
        try:
            found = json.loads((self.folder / _JOURNAL).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = {}
        if isinstance(found, dict) and found.get("digest") == manifest.digest:
            self.facts = found
        else:
            self.clear()

    def clear(self) -> None:
        """Starts from nothing."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.facts = {"digest": self.manifest.digest}

    def note(self, **facts: Any) -> None:
        """Adds to the journal, durably."""
        self.facts |= facts
        beside = self.folder / f"{_JOURNAL}.new"
        with beside.open("w", encoding="utf-8") as file:
            json.dump(self.facts, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.folder / _JOURNAL)

    def stage_file(self, name: str) -> Path:
        """Where what a stage gave is, or will be."""
        return self.folder / f"{name}.stage"

    def save(self, name: str, found: Findings) -> None:
        """Writes what a stage gave, durably."""
        facts = {key: getattr(found, key) for key in _FACTS}
        tensors = {key: value.contiguous() for key, value in found.tensors.items()}
        beside = self.folder / f"{name}.new"
        save_tensors(tensors or {"none": torch.zeros(0)}, beside, {"facts": json.dumps(facts)})
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(self.stage_file(name))

    def finish(self, out: Path, tensors: Mapping[str, Any]) -> Manifest:
        """Puts the stages' files together and gives the folder its name. ``tensors`` are all the model
        has.
        """
        files = sorted(self.folder.glob("*.stage"))
        facts: dict[str, dict[str, Any]] = {key: {} for key in _FACTS}
        specs, places = [], {}
        for path in files:
            with safe_open(path, framework="pt") as held:
                found = json.loads(held.metadata()["facts"])
                for key in _FACTS:
                    facts[key] |= found[key]
                for name in held.keys():  # noqa: SIM118 - not a mapping
                    if name != "none":
                        part = held.get_slice(name)
                        specs.append((name, part.get_dtype(), tuple(part.get_shape())))
                        places[name] = path
        reached = {name.partition("/")[2] for name in places} | facts["shared"].keys()
        unmeasured = tuple(sorted(set(tensors) - reached))
        manifest = replace(
            self.manifest,
            unmeasured=unmeasured,
            axis=facts["axis"],
            shared=facts["shared"],
            counted=facts["counted"],
            dead_channels=facts["dead_channels"],
        )
        self._write(sorted(specs), places)
        text = json.dumps(manifest.as_dict(), indent=1, sort_keys=True) + "\n"
        (self.folder / MANIFEST).write_text(text, encoding="utf-8")
        for path in self.folder.iterdir():
            if path.name not in (FILE, MANIFEST):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.folder.replace(out)
        return manifest

    def _write(self, specs: list[Any], places: Mapping[str, Path]) -> None:
        with ShardWriter(self.folder / FILE, lay_out(FILE, specs)) as writer:
            for path in sorted(set(places.values())):
                with safe_open(path, framework="pt") as held:
                    for name in (name for name, place in places.items() if place == path):
                        tensor = held.get_tensor(name)
                        if tensor.numel():
                            writer.write_at(name, 0, tensor.contiguous())
            writer.finish()
