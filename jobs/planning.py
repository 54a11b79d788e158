"""Where recipe and Hub meet: every model is pinned and looked at (small files and headers only), then
planned.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, Generic, TypeVar

from hub.errors import HubError
from hub.snapshot import Hub, Snapshot
from jobs.errors import ModelNameInvalid, PlanTimeout
from jobs.places import FolderPlace, find_model
from merge.checkpoint import index as indexing
from merge.checkpoint.adapter import CONFIG_FILE as ADAPTER_CONFIG
from merge.checkpoint.adapter import WEIGHT_FILE as ADAPTER_WEIGHTS
from merge.checkpoint.adapter import AdapterIndex
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding, MergeError, PlanRefused
from merge.plan import Plan, check_recipe, make_plan
from merge.recipe import Recipe

ADAPTER = "+adapter"
THREADS = 16
INDEX_CACHE = 64
PIN_CACHE = 1024
PIN_SECONDS = 2.0
PINNED_SECONDS = 60.0
COMMIT_LENGTH = 40

Value = TypeVar("Value")
HubFactory = Callable[[str, str | None], Hub]


@dataclass(frozen=True)
class PinnedInput:
    """One model that the job reads. ``role`` is ``base``, a source id, or ``<source id>+adapter``.

    A Hub model has a ``snapshot``, a folder model a ``folder``; ``size_bytes`` counts what is read of it.
    """

    role: str
    name: str
    snapshot: Snapshot | None
    folder: Path | None
    size_bytes: int

    @property
    def pinned_name(self) -> str:
        """The name with the commit it was pinned to."""
        return f"{self.snapshot.repo}@{self.snapshot.sha}" if self.snapshot else self.name

    @property
    def is_restricted(self) -> bool:
        """Whether not everybody may read it."""
        return self.snapshot is not None and (self.snapshot.private or self.snapshot.gated)

    def row(self) -> dict[str, Any]:
        """The columns of ``job_input``."""
        pinned = self.snapshot
        return {
            "role": self.role,
            "kind": "hub" if pinned else "folder",
            "repo": pinned.repo if pinned else self.name,
            "requested_revision": pinned.requested_revision if pinned else None,
            "sha": pinned.sha if pinned else None,
            "size_bytes": self.size_bytes,
            "license": pinned.license if pinned else None,
            "private": bool(pinned and pinned.private),
            "gated": bool(pinned and pinned.gated),
            "params": {},
        }


@dataclass(frozen=True)
class Planned:
    """A recipe that can work. ``recipe`` names every Hub model with its commit; ``summary`` is JSON for
    people.
    """

    summary: dict[str, Any]
    plan: Plan
    inputs: tuple[PinnedInput, ...]
    recipe: Recipe
    queue: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class _Seen:
    """A model or an adapter as its small files describe it, and where it was found."""

    index: ModelIndex | AdapterIndex
    snapshot: Snapshot | None
    folder: Path | None
    size_bytes: int


@dataclass(frozen=True)
class _Wish:
    """One name in the recipe. ``pointer`` is its JSON pointer."""

    role: str
    name: str
    pointer: str

    @property
    def is_adapter(self) -> bool:
        return self.role.endswith(ADAPTER)

    @property
    def model(self) -> str:
        return self.role.removesuffix(ADAPTER)


class _Kept(Generic[Value]):
    """A small cache, oldest out first; a value may be too old."""

    def __init__(self, most: int, clock: Callable[[], float]) -> None:
        self._most, self._clock = most, clock
        self._held: OrderedDict[Hashable, tuple[float, Value]] = OrderedDict()
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], Value], seconds: float = float("inf")) -> Value:
        with self._lock:
            held = self._held.get(key)
        if held is not None and self._clock() - held[0] < seconds:
            return held[1]
        value = make()
        with self._lock:
            self._held[key] = (self._clock(), value)
            self._held.move_to_end(key)
            while len(self._held) > self._most:
                self._held.popitem(last=False)
        return value


@dataclass
class Planner:
    """One a process. ``hub_factory`` gives the Hub as (tenant id, token) sees it; ``budget`` is bytes of
    memory.

    What a commit contains is remembered per tenant; what a branch points to only for two seconds.
    """

    hub_factory: HubFactory
    model_roots: Sequence[Path]
    budget: int
    clock: Callable[[], float] = time.monotonic
    _pool: ThreadPoolExecutor = field(init=False, repr=False)
    _pins: _Kept[Snapshot] = field(init=False, repr=False)
    _indices: _Kept[_Seen] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="plan")
        self._pins = _Kept(PIN_CACHE, self.clock)
        self._indices = _Kept(INDEX_CACHE, self.clock)

    def close(self) -> None:
        """Ends the threads; fetches under way are not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def plan(
        self,
        recipe: Recipe,
        token: str | None,
        tenant: str,
        deadline_seconds: float | None = None,
        *,
        notes: Sequence[str] = (),
        scratch_free: int | None = None,
    ) -> Planned:
        """Pins and looks at all models at once, then plans; not one byte of weights is fetched.

        Raises ``PlanRefused`` with every finding, a retryable ``HubError`` when the Hub does not answer
        well enough to say, and ``PlanTimeout`` after ``deadline_seconds``. ``notes`` tell how a foreign
        configuration was translated.
        """
        _refuse(check_recipe(recipe))
        wishes = tuple(_wishes(recipe))
        seen = self._look(wishes, token, tenant, deadline_seconds)
        inputs = tuple(_input(wish, seen[wish.role]) for wish in wishes)
        pinned = _pin_recipe(recipe, {each.role: each.pinned_name for each in inputs})
        models = _attach(wishes, seen)
        plan = make_plan(pinned, models, budget=self.budget, scratch_free=scratch_free, notes=notes)
        remarks = tuple(_remarks(inputs))
        findings = (*plan.findings, *remarks)
        summary = plan.summary()
        summary["findings"] = [each.as_dict() for each in findings]
        summary["inputs"] = [each.row() for each in inputs]
        summary["estimate"] = {**summary["estimate"], "download_bytes": _download_bytes(inputs)}
        return Planned(summary, plan, inputs, pinned, plan.queue, findings)

    def _look(
        self, wishes: Sequence[_Wish], token: str | None, tenant: str, deadline_seconds: float | None
    ) -> dict[str, _Seen]:
        hub = self.hub_factory(tenant, token)
        who = (tenant, hashlib.sha256((token or "").encode()).digest())
        asked: dict[tuple[str, bool], Future[_Seen]] = {}
        for wish in wishes:
            key = (wish.name, wish.is_adapter)
            if key not in asked:
                asked[key] = self._pool.submit(self._see, hub, who, *key)
        late = wait_for(asked.values(), timeout=deadline_seconds).not_done
        if late:
            for future in late:
                future.cancel()
            raise PlanTimeout(deadline_seconds or 0.0)
        seen: dict[str, _Seen] = {}
        findings: list[Finding] = []
        unclear: HubError | None = None
        for wish in wishes:
            try:
                seen[wish.role] = asked[wish.name, wish.is_adapter].result()
            except (HubError, MergeError, ModelNameInvalid) as error:
                if isinstance(error, HubError) and error.retryable:
                    unclear = error
                else:
                    findings.append(_finding(wish, error.code, str(error)))
        _refuse(tuple(findings))
        if unclear is not None:
            raise unclear
        return seen

    def _see(self, hub: Hub, who: tuple[str, bytes], name: str, adapter: bool) -> _Seen:
        place = find_model(name, self.model_roots)
        if isinstance(place, FolderPlace):
            return _see_folder(place.path, name, adapter)
        is_commit = place.revision is not None and len(place.revision) == COMMIT_LENGTH
        snapshot = self._pins.get(
            (who, place.repo, place.revision),
            lambda: hub.pin(place.repo, place.revision),
            PINNED_SECONDS if is_commit else PIN_SECONDS,
        )
        key = (who[0], snapshot.repo, snapshot.sha, adapter)
        known = self._indices.get(key, lambda: _see_snapshot(hub, snapshot, name, adapter))
        return replace(known, snapshot=snapshot, index=replace(known.index, label=name))


def _see_folder(path: Path, name: str, adapter: bool) -> _Seen:
    if adapter:
        files, texts, headers = indexing.read_folder(path, name, adapter=True)
        found: ModelIndex | AdapterIndex = indexing.index_adapter(name, files, texts, headers)
    else:
        names = {item.name for item in path.iterdir() if item.is_file()}
        _refuse_bare_adapter(names, name)
        files, texts, headers = indexing.read_folder(path, name)
        found = indexing.index_model(name, files, texts, headers)
    return _Seen(found, None, path, sum(files[each] for each in (*texts, *headers)))


def _see_snapshot(hub: Hub, snapshot: Snapshot, name: str, adapter: bool) -> _Seen:
    files = {file.path: file.size for file in snapshot.files}
    if not adapter:
        _refuse_bare_adapter(files, name)
    texts = hub.texts(snapshot, indexing.wanted_texts(files))
    if adapter:
        headers = hub.headers(snapshot, [each for each in (ADAPTER_WEIGHTS,) if each in files])
        found: ModelIndex | AdapterIndex = indexing.index_adapter(name, files, texts, headers)
    else:
        headers = hub.headers(snapshot, indexing.weight_files(files, texts))
        found = indexing.index_model(name, files, texts, headers)
    return _Seen(found, snapshot, None, sum(files[each] for each in (*texts, *headers)))


def _refuse_bare_adapter(names: "Mapping[str, int] | set[str]", name: str) -> None:
    if ADAPTER_CONFIG in names and "config.json" not in names:
        raise ModelNameInvalid(
            f"{name} is a LoRA adapter, not a whole model; give its base as `model`, it as `adapter`."
        )


def _wishes(recipe: Recipe) -> Iterator[_Wish]:
    if recipe.base is not None:
        yield _Wish("base", recipe.base, "/base")
    for position, source in enumerate(recipe.sources):
        yield _Wish(source.id, source.model, f"/sources/{position}/model")
        if source.adapter is not None:
            yield _Wish(source.id + ADAPTER, source.adapter, f"/sources/{position}/adapter")


def _attach(wishes: Sequence[_Wish], seen: Mapping[str, _Seen]) -> dict[str, ModelIndex]:
    models: dict[str, ModelIndex] = {}
    findings = []
    for wish in wishes:
        index = seen[wish.role].index
        if isinstance(index, ModelIndex):
            models[wish.role] = index
            continue
        try:
            models[wish.model] = indexing.attach(models[wish.model], index)
        except MergeError as error:
            findings.append(_finding(wish, error.code, str(error)))
    _refuse(tuple(findings))
    return models


def _input(wish: _Wish, seen: _Seen) -> PinnedInput:
    return PinnedInput(wish.role, wish.name, seen.snapshot, seen.folder, seen.size_bytes)


def _pin_recipe(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    sources = tuple(
        source.model_copy(update={"model": names[source.id], "adapter": names.get(source.id + ADAPTER)})
        for source in recipe.sources
    )
    return recipe.model_copy(update={"base": names.get("base"), "sources": sources})


def _remarks(inputs: Sequence[PinnedInput]) -> Iterator[Finding]:
    pinned = {(each.name): each for each in inputs if each.snapshot is not None}
    for each in pinned.values():
        snapshot = each.snapshot
        if snapshot is None:
            continue
        if snapshot.gated or snapshot.private:
            word = "gated" if snapshot.gated else "private"
            message = f"{each.name} is {word}; its terms bind the result; a public output must be confirmed."
            yield Finding("warning", f"input_{word}", message, None, each.role)
        if snapshot.license is None:
            yield Finding("warning", "license_missing", f"{each.name} states no licence.", None, each.role)
        elif "-nd" in snapshot.license.lower():
            message = f"The licence of {each.name} ({snapshot.license}) allows no derived works."
            yield Finding("warning", "license_no_derivatives", message, None, each.role)
    licenses = sorted({each.snapshot.license for each in inputs if each.snapshot and each.snapshot.license})
    if len(licenses) > 1:
        message = f"The inputs have different licences ({', '.join(licenses)}); respect all of them."
        yield Finding("warning", "licenses_differ", message)


def _download_bytes(inputs: Sequence[PinnedInput]) -> int:
    sizes = {each.pinned_name: each.size_bytes for each in inputs if each.snapshot is not None}
    return sum(sizes.values())


def _finding(wish: _Wish, code: str, message: str) -> Finding:
    return Finding("error", code, message, wish.pointer, wish.model)


def _refuse(findings: tuple[Finding, ...]) -> None:
    if any(finding.severity == "error" for finding in findings):
        raise PlanRefused(findings)
