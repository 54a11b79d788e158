"""Where recipe and Hub meet: every model is pinned and looked at (small files and headers only), then
planned.
"""

import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hub.errors import HubError
from hub.snapshot import Hub, Snapshot
from jobs import calibration
from jobs import statistics as known
from jobs.calibration import DataSeen
from jobs.errors import ModelNameInvalid, PlanTimeout
from jobs.fetching import fetched_files, spared_bytes
from jobs.informing import DATA_BYTES, PIN_SECONDS, DataLooks, NotRemembered
from jobs.kept import Kept, Value
from jobs.looking import Seen, Who, see_folder, see_snapshot, stamp_of, who_of
from jobs.pinned import PinnedInput
from jobs.places import FolderPlace, find_model, reading
from jobs.remarks import remarks
from jobs.statistics import Shelf
from jobs.wishes import Wish, wishes_of
from merge.checkpoint import index as indexing
from merge.checkpoint.bundle import BundleIndex
from merge.checkpoint.index import ModelIndex
from merge.errors import Finding, MergeError
from merge.plan import Plan, check_recipe, make_plan
from merge.planning.draft import go_on
from merge.recipe.recipe import Recipe
from merge.recipe.stages import ADAPTER

THREADS = 16
INDEX_CACHE = 64
PLAN_CACHE = 64
LARGEST_KEPT = 2000
"""Tensors of the largest plan that is remembered, so that the memory for plans is bounded."""
PIN_CACHE = 1024
PINNED_SECONDS = 60.0
COMMIT_LENGTH = 40

HubFactory = Callable[[str | None], Hub]


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
    models: Mapping[str, ModelIndex] = field(default_factory=dict, repr=False)
    data: Mapping[str, DataSeen] = field(default_factory=dict, repr=False)
    """Calibration data by JSON pointer."""
    whole: bool = False
    """Whether models are fetched whole although the merge reads a part of them."""

    @property
    def subject(self) -> dict[str, Any]:
        """What the job works on: the recipe, every model pinned."""
        return self.recipe.model_dump(mode="json")

    def saying(self, facts: Mapping[str, Any]) -> "Planned":
        """The same, with more in its summary."""
        return replace(self, summary={**self.summary, **facts})


@dataclass
class Planner:
    """One a process. ``hub_factory`` gives the Hub as the owner of a token sees it; ``budget`` is bytes
    of memory.

    What a commit contains is remembered per tenant; what a branch points to only for two seconds. A recipe
    that was planned before on the same commits, or on folders nobody touched, is not planned again.
    """

    hub_factory: HubFactory
    model_roots: Sequence[Path]
    budget: int
    clock: Callable[[], float] = time.monotonic
    shelf: Shelf | None = None
    data_bytes: int = DATA_BYTES
    gpu_from_seconds: float = 0.0
    _pool: ThreadPoolExecutor = field(init=False, repr=False)
    _pins: Kept[Snapshot] = field(init=False, repr=False)
    _indices: Kept[Seen] = field(init=False, repr=False)
    _plans: Kept[Planned] = field(init=False, repr=False)
    _data: DataLooks = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="plan")
        self._pins = Kept(PIN_CACHE, self.clock)
        self._indices = Kept(INDEX_CACHE, self.clock)
        self._plans = Kept(PLAN_CACHE, self.clock)
        self._data = DataLooks(self.model_roots, self.data_bytes, self.clock)

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
        whole: bool = False,
    ) -> Planned:
        """Pins and looks at all models at once, then plans; not one byte of weights is fetched.

        Raises ``PlanRefused`` with every finding, a retryable ``HubError`` when the Hub does not answer
        well enough to say, and ``PlanTimeout`` after ``deadline_seconds``. ``notes`` tell how a foreign
        configuration was translated. ``whole`` models are fetched even where the merge reads a part of them.
        """
        wishes = tuple(wishes_of(recipe))
        who = who_of(tenant, token)
        named = (*notes, "whole") if whole else notes
        before = self._recall(recipe, wishes, who, named)
        if before and (scratch_free is None or before.plan.estimate.disk_bytes <= scratch_free):
            return self._informed(before, tenant, scratch_free)
        go_on(check_recipe(recipe))
        hub = self.hub_factory(token)
        begun = self.clock()
        seen = self._look(wishes, hub, who, deadline_seconds)
        left = None if deadline_seconds is None else max(0.0, deadline_seconds - (self.clock() - begun))
        data = self._look_at_data(recipe, tenant, who, hub, left)
        inputs = tuple(_input(wish, seen[wish.role]) for wish in wishes)
        pinned = recipe.renamed({each.role: each.pinned_name for each in inputs})
        pinned = calibration.pin(pinned, data)
        models = _attach(wishes, seen)
        plan = make_plan(pinned, models, budget=self.budget, scratch_free=scratch_free, notes=notes)
        planned = self._said(plan, inputs, models, data, whole)
        if sum(len(part.outputs) for part in plan.parts()) <= LARGEST_KEPT:
            self._plans.put(_plan_key(recipe, who, named, wishes, seen, data), planned)
        return self._informed(planned, tenant, scratch_free)

    def look(
        self, wishes: Sequence[Wish], token: str | None, tenant: str, deadline_seconds: float | None = None
    ) -> tuple[tuple[PinnedInput, ...], dict[str, ModelIndex]]:
        """Pins and looks at models as ``plan`` does, for a job that merges none; raises as it does."""
        who = who_of(tenant, token)
        seen = self._look(wishes, self.hub_factory(token), who, deadline_seconds)
        return tuple(_input(wish, seen[wish.role]) for wish in wishes), _attach(wishes, seen)

    def look_at_bundle(
        self, name: str, token: str | None, tenant: str, deadline_seconds: float | None = None
    ) -> tuple[PinnedInput, BundleIndex]:
        """A bundle's manifest and headers. Raises as ``plan`` does."""
        who = who_of(tenant, token)
        wish = Wish(f"bundle{ADAPTER}", name, "/bundle")
        seen = self._look([wish], self.hub_factory(token), who, deadline_seconds)[wish.role]
        if not isinstance(seen.index, BundleIndex):
            go_on((_finding(wish, "bundle_refused", f"{name} is an adapter, and no bundle."),))
        assert isinstance(seen.index, BundleIndex)
        return _input(wish, seen), seen.index

    def pin_dataset(
        self, repo: str, revision: str | None, token: str | None, tenant: str, deadline_seconds: float | None
    ) -> Snapshot:
        """The commit that a dataset's revision names. Raises ``HubError`` and ``PlanTimeout``."""
        who = who_of(tenant, token)
        hub = self.hub_factory(token)

        def pinned() -> Snapshot:
            key = (who, "dataset", repo, revision)
            return self._pins.get(key, lambda: hub.pin(repo, revision, "dataset"), PIN_SECONDS)

        asked = self._pool.submit(pinned)
        _wait([asked], deadline_seconds)
        return asked.result()

    def _said(
        self,
        plan: Plan,
        inputs: tuple[PinnedInput, ...],
        models: Mapping[str, ModelIndex],
        data: Mapping[str, DataSeen],
        whole: bool,
    ) -> Planned:
        inputs = tuple(_as_read(each, plan, whole) for each in inputs)
        findings = (*plan.findings, *remarks(inputs), *(() if whole else _in_part(inputs, plan)))
        queue = known.queue_of(plan, self.gpu_from_seconds)
        summary = known.told(plan.summary(), plan)
        summary["queue"] = queue
        summary["findings"] = [each.as_dict() for each in findings]
        summary["inputs"] = [each.row() for each in inputs]
        summary["estimate"] = {**summary["estimate"], "download_bytes": download_bytes(inputs)}
        return Planned(summary, plan, inputs, plan.recipe, queue, findings, models, data, whole)

    def _informed(self, planned: Planned, tenant: str, scratch_free: int | None) -> Planned:
        """The plan without the passes over data whose statistics are there by now."""
        plan = planned.plan
        if self.shelf is None or not plan.statistics.folders:
            return planned
        measured = self.shelf.held(tenant, self.digests(planned, tenant))
        if measured == plan.statistics.found:
            return planned
        again = make_plan(
            plan.recipe,
            planned.models,
            budget=self.budget,
            scratch_free=scratch_free,
            notes=plan.notes,
            measured=measured,
        )
        return self._said(again, planned.inputs, planned.models, planned.data, planned.whole)

    def digests(self, planned: Planned, tenant: str) -> dict[str, str]:
        """What the statistics of each model are found by, as far as that is known without reading models."""
        if self.shelf is None:
            return {}
        inputs = {each.role: each for each in planned.inputs}
        return known.digests_of(planned.plan, inputs, planned.data, tenant, self.shelf)

    def _look_at_data(
        self,
        recipe: Recipe,
        tenant: str,
        who: Who,
        hub: Hub,
        deadline_seconds: float | None,
    ) -> Mapping[str, DataSeen]:
        if not recipe.informed:
            return {}
        looking = self._pool.submit(self._data.look, recipe, tenant, who, hub, self.shelf)
        _wait([looking], deadline_seconds)
        return looking.result()

    def _recall(
        self, recipe: Recipe, wishes: Sequence[Wish], who: Who, notes: Sequence[str]
    ) -> Planned | None:
        """The plan made before of this recipe on these models, if all of them are remembered."""
        try:
            seen = {wish.role: self._see(None, who, wish.name, wish.is_adapter) for wish in wishes}
            data = self._data.look(recipe, who[0], who, None, self.shelf)
        except (NotRemembered, ModelNameInvalid, MergeError, OSError):
            return None
        return self._plans.held(_plan_key(recipe, who, notes, wishes, seen, data))

    def _look(
        self,
        wishes: Sequence[Wish],
        hub: Hub,
        who: Who,
        deadline_seconds: float | None,
    ) -> dict[str, Seen]:
        asked: dict[tuple[str, bool], Future[Seen]] = {}
        for wish in wishes:
            key = (wish.name, wish.is_adapter)
            if key not in asked:
                asked[key] = self._pool.submit(self._see, hub, who, *key)
        _wait(asked.values(), deadline_seconds)
        seen: dict[str, Seen] = {}
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
        go_on(tuple(findings))
        if unclear is not None:
            raise unclear
        return seen

    def _see(self, hub: Hub | None, who: Who, name: str, adapter: bool) -> Seen:
        """Looks at one model, under the name that it has in this recipe.

        Without ``hub`` only what is remembered counts; raises ``NotRemembered`` where that is not enough.
        """
        place = find_model(name, self.model_roots, self.shelf.results(who[0]) if self.shelf else None)
        if isinstance(place, FolderPlace):
            with reading(name):
                stamp = (str(place.path), adapter, stamp_of(place.path))
                known = self._indices.get(
                    stamp, _or_unknown(hub, lambda _: see_folder(place.path, name, adapter))
                )
            return replace(known, index=replace(known.index, label=name), stamp=stamp)
        is_commit = place.revision is not None and len(place.revision) == COMMIT_LENGTH
        snapshot = self._pins.get(
            (who, place.repo, place.revision),
            _or_unknown(hub, lambda hub: hub.pin(place.repo, place.revision)),
            PINNED_SECONDS if is_commit else PIN_SECONDS,
        )
        key = (who[0], snapshot.repo, snapshot.sha, place.inside, adapter)
        known = self._indices.get(
            key, _or_unknown(hub, lambda hub: see_snapshot(hub, snapshot, name, place.inside, adapter))
        )
        facts = (key, snapshot.private, snapshot.gated, snapshot.license)
        return replace(known, snapshot=snapshot, index=replace(known.index, label=name), stamp=facts)


def _wait(asked: Collection[Future[Any]], seconds: float | None) -> None:
    """Until all is answered; ``PlanTimeout`` after so long, and what has not begun is given up."""
    late = wait_for(asked, timeout=seconds).not_done
    for each in late:
        each.cancel()
    if late:
        raise PlanTimeout(seconds or 0.0)


def _or_unknown(hub: Hub | None, make: Callable[[Hub], Value]) -> Callable[[], Value]:
    def made() -> Value:
        if hub is None:
            raise NotRemembered
        return make(hub)

    return made


def _plan_key(
    recipe: Recipe,
    who: Who,
    notes: Sequence[str],
    wishes: Sequence[Wish],
    seen: Mapping[str, Seen],
    data: Mapping[str, DataSeen],
) -> Hashable:
    stamps = (*(seen[wish.role].stamp for wish in wishes), *(each.stamp for each in data.values()))
    return (who, recipe.model_dump_json(), tuple(notes), stamps)


def _attach(wishes: Sequence[Wish], seen: Mapping[str, Seen]) -> dict[str, ModelIndex]:
    models: dict[str, ModelIndex] = {}
    findings = []
    for wish in wishes:
        index = seen[wish.role].index
        if isinstance(index, ModelIndex):
            models[wish.role] = index
            continue
        try:
            models[wish.model] = indexing.attach(models[wish.model], index, wish.member)
        except MergeError as error:
            findings.append(_finding(wish, error.code, str(error)))
    go_on(tuple(findings))
    return models


def _input(wish: Wish, seen: Seen) -> PinnedInput:
    stamp = known.stamp_text(seen.stamp) if seen.snapshot is None else None
    size = seen.size_bytes
    return PinnedInput(wish.role, wish.name, seen.snapshot, seen.folder, size, seen.inside, stamp, size)


def _in_part(inputs: Sequence[PinnedInput], plan: Plan) -> Iterator[Finding]:
    """Says which inputs are fetched in part, since parts cannot be checked as a whole file can."""
    for each in inputs:
        if each.snapshot is None or not (spared := spared_bytes(plan, each.role)):
            continue
        message = (
            f"Of {each.name} the {each.size_bytes} bytes that are read are fetched, and {spared} are not; "
            "parts are pinned to the commit but cannot be compared with a file's sha256."
        )
        yield Finding("warning", "fetched_in_part", message, None, each.role)


def _as_read(each: PinnedInput, plan: Plan, whole: bool) -> PinnedInput:
    """The input with the size of what is fetched for the plan."""
    spared = 0 if whole or each.snapshot is None else spared_bytes(plan, each.role)
    each = replace(each, size_bytes=each.listed_bytes - spared)
    index = plan.models.get(each.role)
    if index is None:
        return each
    unread = set(index.shards) - set(fetched_files(plan, each.role, whole=whole))
    return replace(each, size_bytes=each.size_bytes - sum(index.files[file] for file in unread))


def download_bytes(inputs: Sequence[PinnedInput]) -> int:
    """What comes from the Hub; a model that is named twice comes once."""
    sizes: dict[str, int] = {}
    for each in inputs:
        if each.snapshot is not None:
            sizes[each.pinned_name] = max(each.size_bytes, sizes.get(each.pinned_name, 0))
    return sum(sizes.values())


def _finding(wish: Wish, code: str, message: str) -> Finding:
    return Finding("error", code, message, wish.pointer, wish.model)
