"""Searches whose candidates are written, and candidates that another search has scored before."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from db import artifacts, evaluations
from db.models.job import Job
from jobs.credentials import store_token
from jobs.keyring import Keyring
from jobs.request import read_order
from jobs.submit import submit
from tests.factories import TEST_SECRET, make_caller, make_rules
from tests.worker.conftest import TOKEN, Floor
from tests.worker.test_score_job import write_texts
from tests.worker.test_search_job import order, ran, rows
from worker import makers
from worker.makers import InHand, Written
from worker.run_job import run_job
from worker.scratch import RESERVE_BYTES

BUNDLE = {"form": "bundle", "kind": "tall"}
MIXTURE = {"form": "moe", "architecture": "mixtral", "gate": "cheap_embed"}
TWO = {"space": {"scale": {"at": "steps.task_arithmetic.scale", "values": [0.5, 1.0]}}}


def asked(floor: Floor, wanted: dict[str, Any], tenant: str = "default") -> str:
    """A queued order of a tenant's, as a front desk leaves it whose Hub did not answer."""
    with floor.sessions.begin() as session:
        caller = make_caller(session, tenant)
        credential = store_token(session, Keyring(TEST_SECRET), caller.tenant_id, "hub", TOKEN)
        rules = make_rules(model_roots=[floor.hub.store.root / "team"])
        request = read_order({**wanted, "hub_credential": credential.id})
        return submit(session, caller, request, None, rules).id


def search(floor: Floor, search: dict[str, Any] | None = None, **recipe: Any) -> dict[str, Any]:
    wanted = order(floor, {**TWO, **(search or {})})
    return {**wanted, "recipe": {**wanted["recipe"], **recipe}}


def values(floor: Floor, job: Job) -> list[float]:
    return [row.told["values"][0] for row in rows(floor, job)]


def scored(floor: Floor, job_id: str) -> float:
    """What the result of an ordinary job got."""
    job = ran(floor, job_id)
    with floor.sessions() as session:
        found = evaluations.of_job(session, job.id)
    return next(
        s.value for each, ss in found for s in ss if each.name == "texts" and s.metric == "bits_per_byte"
    )


def made(floor: Floor, job_id: str) -> list[dict[str, Any]]:
    return [event.data for event in floor.events(job_id) if event.type.endswith(".candidates")]


def left(floor: Floor) -> list[Path]:
    return list(floor.workshop.settings.scratch.rglob("candidate"))


def test_mixtures_are_written_told_and_score_as_they_do_when_they_are_merged(floor: Floor) -> None:
    sources = [{"id": n, "model": f"team/expert{at}", "prompts": [n]} for at, n in enumerate("ab", 1)]
    job = ran(floor, asked(floor, search(floor, sources=sources, result=MIXTURE)))
    assert job.result is not None and job.plan is not None
    (told,) = made(floor, job.id)
    why = "its result is a mixture of experts"
    assert told == {"made": "disk", "why": why, "bytes": job.plan["search"]["candidates"]["bytes"]}
    assert job.result["candidates"] == {"made": "disk", "why": why}
    evaluate = {"sets": order(floor)["evaluate"]["sets"], "parents": False}
    best = {"kind": "merge", "recipe": job.result["best"]["recipe"], "evaluate": evaluate}
    assert job.result["best"]["values"] == [-scored(floor, asked(floor, best))] == [max(values(floor, job))]
    assert left(floor) == [] and job.plan["estimate"]["disk_bytes"] > told["bytes"]


def test_settings_of_a_stage_are_searched_and_the_stage_as_sent_is_told(floor: Floor) -> None:
    stage = {"base": "team/base", "sources": ["team/expert1", "team/expert2"], "steps": ["task_arithmetic"]}
    scale = {"at": "stages.mean.steps.task_arithmetic.scale", "values": [0.5, 1.5]}
    plan = {"stages": {"mean": stage}, "base": None, "sources": ["stage:mean"], "steps": ["passthrough"]}
    job = ran(floor, asked(floor, search(floor, {"space": {"scale": scale}}, **plan)))
    assert job.result is not None and len(set(values(floor, job))) == 3
    assert [row.point for row in rows(floor, job)] == [{"scale": 0.5}, {"scale": 1.5}, {}]
    evaluate = {"sets": order(floor)["evaluate"]["sets"], "parents": False}
    best = {"kind": "merge", "recipe": job.result["best"]["recipe"], "evaluate": evaluate}
    assert job.result["best"]["values"] == [-scored(floor, asked(floor, best))]


def test_an_adapter_over_a_stage_scores_as_it_does_when_it_is_merged(floor: Floor) -> None:
    stage = {"sources": ["team/base", "team/expert1"], "steps": ["linear"]}
    adapter = {"stages": {"mean": stage}, "base": "stage:mean", "result": {"form": "adapter", "rank": 2}}
    job = ran(floor, asked(floor, search(floor, **adapter)))
    assert job.result is not None and job.result["failed"] == 0 and len(set(values(floor, job))) == 2
    assert made(floor, job.id)[0]["why"] == "its result is an adapter" and left(floor) == []
    evaluate = {"sets": order(floor)["evaluate"]["sets"], "parents": False}
    best = {"kind": "merge", "recipe": job.result["best"]["recipe"], "evaluate": evaluate}
    assert job.result["best"]["values"] == [-scored(floor, asked(floor, best))]


def test_a_bundle_s_member_scores_as_it_does_when_it_is_given_back(floor: Floor) -> None:
    objectives = [{"set": "texts", "member": "b"}, {"set": "texts"}]
    wanted = search(floor, {"objectives": objectives}, result=BUNDLE)
    job = ran(floor, asked(floor, wanted))
    first = rows(floor, job)[0].told["values"]
    recipe = {**wanted["recipe"], "steps": [{"method": "task_arithmetic", "scale": 0.5}]}
    bundle = ran(floor, asked(floor, {"kind": "merge", "recipe": recipe})).id
    evaluate = {"sets": order(floor)["evaluate"]["sets"], "parents": False}
    given = {"kind": "materialise", "bundle": bundle, "evaluate": evaluate}
    each = [scored(floor, asked(floor, {**given, "member": name})) for name in "ab"]
    assert first == [-each[1], -(each[0] + each[1]) / 2]


def test_a_worker_with_little_memory_writes_what_another_holds(floor: Floor) -> None:
    wanted = search(floor)
    held = ran(floor, asked(floor, wanted))
    with floor.sessions.begin() as session:
        session.execute(text("DELETE FROM known_score"))
    assert held.plan is not None
    peak = held.plan["estimate"]["peak_memory_bytes"]
    floor.free_memory = lambda _: peak - 1
    written = ran(floor, asked(floor, wanted))
    assert [each["made"] for each in made(floor, held.id) + made(floor, written.id)] == ["memory", "disk"]
    assert f"{peak - 1} bytes of memory" in made(floor, written.id)[0]["why"]
    assert (
        values(floor, written) == values(floor, held) and rows(floor, written)[0].told.get("reused") is None
    )
    floor.free_memory = lambda _: 1000
    job = floor.run(asked(floor, wanted))
    assert (job.state, job.error_code) == ("failed", "memory_short")


def test_a_disk_that_cannot_hold_a_candidate_is_told_before_anything_is_fetched(floor: Floor) -> None:
    done = ran(floor, asked(floor, search(floor, result=BUNDLE)))
    assert done.plan is not None
    room = RESERVE_BYTES + done.plan["estimate"]["disk_bytes"]
    fetched = floor.hub.stats.bytes["weight"]
    job_id = asked(floor, search(floor, result=BUNDLE))
    run_job(replace(floor.workshop, free_bytes=lambda _: room - 8192), job_id, "worker-1")
    job = floor.job(job_id)
    assert (job.state, job.error_code) == ("failed", "disk_full")
    assert floor.hub.stats.bytes["weight"] == fetched
    job_id = asked(floor, search(floor, result=BUNDLE))
    run_job(replace(floor.workshop, free_bytes=lambda _: room), job_id, "worker-1")
    assert floor.job(job_id).state == "succeeded"


def test_what_a_killed_attempt_left_goes_before_the_next_writes(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, found = Written.scores, list[list[str]]()

    def killed(self: Written, *wanted: Any) -> Any:
        (self.ground.scratch / "made.partial").mkdir(parents=True)
        monkeypatch.setattr(Written, "clear", lambda _: None)  # as if nobody came to it
        raise OSError("the machine went away")

    def looks(self: Written, *wanted: Any) -> Any:
        found.append([path.name for path in left(floor)])
        return real(self, *wanted)

    clear = Written.clear
    monkeypatch.setattr(Written, "scores", killed)
    job_id = asked(floor, search(floor, result=BUNDLE))
    assert floor.run(job_id).state == "queued" and len(left(floor)) == 1
    monkeypatch.setattr(Written, "clear", clear)
    monkeypatch.setattr(Written, "scores", looks)
    with floor.sessions.begin() as session:
        session.execute(text("UPDATE job SET not_before = NULL"))
    ran(floor, job_id)
    assert found == [[], []]


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("a candidate that is known was made again")


def copied(floor: Floor) -> dict[str, Any]:
    """The models of the family as folders of other names, to be merged by another name each."""
    root: Path = floor.hub.store.root / "team"
    for name in ("base", "expert1", "expert2"):
        shutil.copytree(root / name, root / f"copy-of-{name}", ignore=shutil.ignore_patterns(".*"))
    models = {"a": str(root / "copy-of-expert1"), "b": str(root / "copy-of-expert2")}
    return {
        "base": str(root / "copy-of-base"),
        "sources": [{"id": name, "model": model} for name, model in models.items()],
    }


def test_another_search_takes_the_scores_of_the_same_candidates_whatever_their_models_are_called(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ran(floor, asked(floor, search(floor)))
    assert first.result is not None and first.result["reused"] == 0
    with monkeypatch.context() as patched:
        patched.setattr(InHand, "scores", never)
        second = ran(floor, asked(floor, search(floor)))
        third = ran(floor, asked(floor, search(floor, **copied(floor))))
    for job in (second, third):
        assert job.result is not None and job.result["reused"] == 2
        assert values(floor, job) == values(floor, first) and all(
            row.told["reused"] for row in rows(floor, job)
        )
    more = {"space": {"scale": {"at": "steps.task_arithmetic.scale", "values": [0.5, 0.75, 1.0]}}}
    some = ran(floor, asked(floor, search(floor, more)))
    assert some.result is not None and some.result["reused"] == 2
    assert [bool(row.told.get("reused")) for row in rows(floor, some)] == [True, False, True]


def test_a_search_takes_the_scores_of_a_merge_of_the_same_recipe(floor: Floor) -> None:
    wanted = search(floor)
    recipe = {**wanted["recipe"], "steps": [{"method": "task_arithmetic", "scale": 0.5}]}
    evaluate = {"sets": order(floor)["evaluate"]["sets"], "parents": False}
    found = scored(floor, asked(floor, {"kind": "merge", "recipe": recipe, "evaluate": evaluate}))
    job = ran(floor, asked(floor, wanted))
    assert [bool(row.told.get("reused")) for row in rows(floor, job)] == [True, False]
    assert values(floor, job)[0] == -found


@pytest.fixture
def known(floor: Floor) -> Job:
    """A search that is done."""
    return ran(floor, asked(floor, search(floor)))


@pytest.mark.usefixtures("known")
def test_another_tenant_finds_nothing(floor: Floor) -> None:
    job = ran(floor, asked(floor, search(floor), "somebody else"))
    assert job.result is not None and job.result["reused"] == 0


@pytest.mark.parametrize(
    "what", ["a weight of a model", "the tokenizer", "the texts", "the seed", "a method's version"]
)
def test_what_differs_in_anything_that_counts_is_scored_anew(
    floor: Floor, known: Job, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe: dict[str, Any] = {}
    wanted = search(floor)
    if what in ("a weight of a model", "the tokenizer"):
        recipe = copied(floor)
        changed(Path(recipe["sources"][0]["model"]), what)
        changed(Path(recipe["base"]), "the tokenizer" if what == "the tokenizer" else "")
    if what == "the texts":
        write_texts(floor, [{"text": "Neither the one nor the other."}])
    if what == "the seed":
        recipe = {"seed": 7}
    if what == "a method's version":
        monkeypatch.setattr("worker.known.ENGINE_VERSION", 99)
    wanted = {**wanted, "recipe": {**wanted["recipe"], **recipe}}
    job = ran(floor, asked(floor, wanted))
    assert job.result is not None and job.result["reused"] == 0
    if what == "the texts":
        assert values(floor, job) != values(floor, known)


def changed(folder: Path, what: str) -> None:
    """Changes one bit of one weight, or a file of the tokenizer."""
    if what == "a weight of a model":
        file = sorted(folder.glob("*.safetensors"))[0]
        body = bytearray(file.read_bytes())
        body[-2] ^= 0x40
        file.write_bytes(body)
    if what == "the tokenizer":
        file = folder / "tokenizer_config.json"
        file.write_text(file.read_text().rstrip()[:-1] + ', "padding_side": "left"}')


def test_the_values_of_items_are_kept_where_a_search_asks_for_them(
    floor: Floor, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {name: {"at": f"sources.{name}.weight", "low": 0, "high": 1} for name in "ab"}
    niches = {"method": "m2n2", "settings": {"archive": 3}, "space": numbers, "budget": {"evaluations": 4}}
    first = ran(floor, asked(floor, search(floor, niches)))
    monkeypatch.setattr(makers.InHand, "scores", never)
    again = ran(floor, asked(floor, search(floor, niches)))
    assert again.result is not None and again.result["failed"] == 0
    told = [[row.told.get("examples") for row in rows(floor, job)] for job in (first, again)]
    assert told[0] == told[1] and all(row.told["reused"] for row in rows(floor, again))
    with floor.sessions() as session:
        kept = session.scalars(text("SELECT scores -> 0 -> 'per_example' FROM known_score")).all()
    assert sum(each is not None for each in kept) == sum(row.examples for row in rows(floor, first)) == 4


def test_a_search_keeps_its_own_file_whichever_way_it_went(floor: Floor) -> None:
    job = ran(floor, asked(floor, search(floor, result=BUNDLE)))
    with floor.sessions() as session:
        (kept,) = artifacts.of_job(session, job.id)
    assert kept.kind == "search" and isinstance(job.result, Mapping) and job.result["reused"] == 0
