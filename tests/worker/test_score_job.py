"""Models are scored as they are: planned, fetched where nothing is known, compared in pairs, resumed."""

import json
import threading
from typing import Any

import torch
from starlette.testclient import TestClient
from transformers import BertConfig, BertModel

from api.app import create_app
from db import evaluations
from db.models.evaluation import EvaluationScore
from db.models.job import Job
from jobs.credentials import store_token
from jobs.keyring import Keyring
from jobs.request import read_order
from jobs.submit import submit
from scoring.model import load
from scoring.runner import score_model
from scoring.scorers.retrieval import recall
from scoring.scorers.zero_shot import head_of
from scoring.settings import ZeroShotSettings
from scoring.tasks import Labelled, Query, ZeroShotTask
from settings import Settings
from tests import tiny
from tests.factories import TEST_SECRET, make_caller, make_key, make_rules
from tests.scoring.scorers.conftest import SIZES, made
from tests.scoring.scorers.test_embeddings import vector
from tests.waiting import until
from tests.worker.conftest import TOKEN, Floor

TEXTS = [{"text": f"Some text number {n}, with words in it."} for n in range(6)]


def write_texts(floor: Floor, rows: list[dict[str, Any]] = TEXTS) -> str:
    path = floor.hub.store.root / "team" / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "./texts.jsonl"


def ordered(floor: Floor, **changes: Any) -> str:
    """A queued job that scores a base and an expert on texts."""
    order = {
        "kind": "score",
        "models": [{"id": "base", "model": "team/base"}, {"id": "expert", "model": "team/expert1"}],
        "evaluate": {"sets": [{"name": "texts", "kind": "perplexity", "data": {"path": write_texts(floor)}}]},
        **changes,
    }
    with floor.sessions.begin() as session:
        caller = make_caller(session)
        credential = store_token(session, Keyring(TEST_SECRET), caller.tenant_id, "hub", TOKEN)
        rules = make_rules(model_roots=[floor.hub.store.root / "team"])
        return submit(session, caller, read_order(order | {"hub_credential": credential.id}), None, rules).id


def scores(floor: Floor, job: Job) -> dict[tuple[str, str], EvaluationScore]:
    with floor.sessions() as session:
        (found,) = evaluations.of_job(session, job.id)
    return {(score.subject, score.metric): score for score in found[1]}


def test_models_are_scored_compared_and_pinned(floor: Floor) -> None:
    job = floor.run(ordered(floor))
    assert job.state == "succeeded", (job.error_code, job.error_detail, job.error_findings)
    found = scores(floor, job)
    expert = found["expert", "bits_per_byte"]
    assert expert.n == 6 and expert.higher_is_better is False and expert.known_key
    gap = (expert.differences or {})["base"]
    assert abs(gap["value"] - (expert.value - found["base", "bits_per_byte"].value)) < 1e-9
    assert gap["low"] <= gap["value"] <= gap["high"] and found["base", "bits_per_byte"].differences is None
    assert job.result is not None and job.result["failed"] == {}
    assert job.result["models"][1] == {
        "id": "expert",
        "model": f"team/expert1@{floor.hub.head('team/expert1')}",
    }
    row = next(each for each in job.result["scores"] if each["metric"] == "bits_per_byte")
    assert row["values"].keys() == {"base", "expert"} and row["higher_is_better"] is False
    types = floor.types(job.id)
    assert types[0] == "score.queued" and "evaluation.completed" in types and types[-1] == "score.succeeded"
    phases = [event.data["phase"] for event in floor.events(job.id) if event.type == "score.phase"]
    assert phases == ["downloading", "evaluating", "finalising"]


def test_what_is_known_is_neither_fetched_nor_scored_again(floor: Floor) -> None:
    first = floor.run(ordered(floor))
    floor.hub.stats.clear()
    again = floor.run(ordered(floor))
    assert again.state == "succeeded" and floor.hub.stats.bytes["weight"] == 0
    values = [{key: score.value for key, score in scores(floor, job).items()} for job in (first, again)]
    assert values[0] == values[1]


def test_the_scores_of_a_merge_s_parents_are_known_to_a_job_that_scores_them(floor: Floor) -> None:
    data = {"path": write_texts(floor)}
    sets = [{"name": "other name", "kind": "perplexity", "data": data}]
    merged = floor.run(floor.order(evaluate={"sets": sets}))
    assert merged.state == "succeeded", merged.error_detail
    floor.hub.stats.clear()
    job = floor.run(ordered(floor))
    assert job.state == "succeeded" and floor.hub.stats.bytes["weight"] == 0


def test_a_model_that_cannot_be_scored_is_told_and_the_others_are_scored(floor: Floor) -> None:
    tiny.llama(floor.hub.store.root / "team/mute", tokenizer=False)
    models = ["team/base", "team/mute", "team/expert1"]
    job = floor.run(ordered(floor, models=models))
    assert job.state == "succeeded" and job.result is not None
    assert list(job.result["failed"]) == ["m1"] and "no tokenizer" in job.result["failed"]["m1"]
    assert {subject for subject, _ in scores(floor, job)} == {"m0", "m2"}
    told = [event.data for event in floor.events(job.id) if event.type == "score.warning"]
    assert told[0]["code"] == "not_scored"
    alone = floor.run(ordered(floor, models=["team/mute"]))
    assert (alone.state, alone.error_code) == ("failed", "model_unusable")


def test_a_set_that_a_model_cannot_be_scored_on_is_refused_before_the_download(floor: Floor) -> None:
    tiny.vit(floor.hub.store.root / "team/vit")
    job = floor.run(ordered(floor, models=["team/base", "team/vit"]))
    assert (job.state, job.error_code) == ("failed", "plan_refused") and job.error_findings is not None
    assert job.error_findings[0]["code"] == "model_does_not_fit_set"
    assert job.error_findings[0]["pointer"] == "/evaluate/sets/0/kind"
    assert floor.hub.stats.bytes["weight"] == 0


def test_a_model_larger_than_memory_is_refused_before_the_download(floor: Floor) -> None:
    floor.free_memory = lambda _: 1000
    job = floor.run(ordered(floor))
    assert (job.state, job.error_code) == ("failed", "memory_short")
    assert "1000" in (job.error_detail or "") and floor.hub.stats.bytes["weight"] == 0


def test_a_worker_without_the_harness_says_so_before_the_download_of_weights(floor: Floor) -> None:
    sets = [{"name": "arc", "kind": "lm_eval", "settings": {"task": "arc_easy"}}]
    job = floor.run(ordered(floor, evaluate={"sets": sets}))
    assert (job.state, job.error_code) == ("failed", "harness_missing"), job.error_detail
    assert floor.hub.stats.bytes["weight"] == 0


def test_a_broken_line_of_a_set_is_named(floor: Floor) -> None:
    order = ordered(floor)
    write_texts(floor, [{"text": "fine"}, {"txt": "not"}])
    job = floor.run(order)
    assert (job.state, job.error_code) == ("failed", "evaluation_set_invalid")
    assert "line 2" in (job.error_detail or "")


def test_cancel_stops_between_batches_and_what_was_scored_is_kept(floor: Floor) -> None:
    write = [{"text": "words and words " * 300} for _ in range(40)]
    order = ordered(floor)
    write_texts(floor, write)
    thread = threading.Thread(target=floor.run, args=(order,))
    thread.start()
    until(lambda: any(e.data.get("phase") == "evaluating" for e in floor.events(order)), pause=0.05)
    floor.cancel(order)
    thread.join(20)
    assert floor.job(order).state == "cancelled"


def test_single_items_of_a_hub_set_are_pinned_and_kept(floor: Floor) -> None:
    folder = floor.hub.store.root / "datasets" / "team" / "questions"
    folder.mkdir(parents=True)
    lines = [{"context": "1+1=", "choices": ["2", "3"], "answer": 0} for _ in range(3)]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"hub": "team/questions", "file": "q.jsonl"}
    sets = [{"name": "q", "kind": "choice", "data": data, "settings": {"normalise": "none"}}]
    job = floor.run(ordered(floor, evaluate={"sets": sets}))
    assert job.state == "succeeded", job.error_detail
    assert job.plan is not None and "@" in job.plan["sets"][0]["data"]["hub"]
    with floor.sessions() as session:
        found = evaluations.named(session, job.id, "q")
    assert found is not None and found[0].detail["settings"] == {"normalise": "none"}
    assert len(found[0].task_sha256 or "") == 64 and "@" in found[0].detail["data"]["hub"]


def test_with_a_head_of_the_base_every_model_is_held_against_the_base_s_vectors(floor: Floor) -> None:
    root = floor.hub.store.root / "team"
    config = BertConfig(**SIZES, initializer_range=0.5)
    base, other = (made(root / name, BertModel, config, seed) for seed, name in enumerate(("enc0", "enc1")))
    rows = [{"text": f"{colour} things", "label": colour} for colour in ("red", "green", "red")]
    data = {"path": write_texts(floor, rows)}
    asked = {"classes": ["red", "green"], "head": "base"}
    sets = [{"name": "colours", "kind": "zero_shot", "data": data, "settings": asked}]
    order = ordered(floor, models=["team/enc0", "team/enc1"], evaluate={"sets": sets})
    write_texts(floor, rows)
    job = floor.run(order)
    assert job.state == "succeeded", job.error_detail
    items = tuple(Labelled(f"{colour} things", at) for colour, at in (("red", 0), ("green", 1), ("red", 0)))
    task = ZeroShotTask("colours", items, ZeroShotSettings(**asked))  # type: ignore[arg-type]
    head = head_of(load(base), task)
    expected = {score.metric: score.value for score in score_model(other, [task], heads={"colours": head})}
    found = scores(floor, job)
    assert {metric: found["m1", metric].value for metric in expected} == expected


PASSAGES = 12
QUERIES = (("red things", (0,)), ("green things", (3, 9)))


def test_recall_among_a_number_of_one_s_own_is_ordered_measured_and_told(
    floor: Floor, postgres_url: str
) -> None:
    root = floor.hub.store.root / "team"
    config = BertConfig(**SIZES, initializer_range=0.5)
    folder = made(root / "encoder", BertModel, config)
    texts = [f"passage {at} about {['red', 'green', 'blue'][at % 3]}" for at in range(PASSAGES)]
    rows: list[dict[str, Any]] = [{"id": f"d{at}", "text": text} for at, text in enumerate(texts)]
    rows += [{"query": text, "relevant": [f"d{at}" for at in wanted]} for text, wanted in QUERIES]
    write_texts(floor, rows)
    asked = {"name": "find", "kind": "retrieval", "data": {"path": "./texts.jsonl"}, "settings": {"k": 7}}
    order = {"kind": "score", "models": ["./encoder"], "evaluate": {"sets": [asked]}}
    settings = Settings(
        database_url=postgres_url,
        broker_url=None,
        secret_key=TEST_SECRET,
        data_dir=floor.folder / "data",
        model_roots=[root],
        hub_endpoint=floor.hub.url,
    )
    with floor.sessions.begin() as session:
        _, secret = make_key(session)
    with TestClient(create_app(settings), headers={"Authorization": f"Bearer {secret}"}) as api:
        answer = api.post("/v1/jobs", json=order)
        assert answer.status_code == 202, answer.text
        job = floor.run(answer.json()["id"])
        assert job.state == "succeeded", job.error_detail
        (found,) = api.get(f"/v1/jobs/{job.id}/evaluations").json()["data"]
        items = api.get(f"/v1/jobs/{job.id}/evaluations/find/examples", params={"metric": "recall_at_7"})
    told = {each["metric"]: each for each in found["scores"]}
    assert told.keys() == {"ndcg_at_10", "recall_at_7"} and told["recall_at_7"]["n"] == len(QUERIES)
    assert told["recall_at_7"]["higher_is_better"] is True
    passages = [vector(folder, text) for text in texts]
    expected = [recall(nearest(vector(folder, text), passages)[:7], query(at)) for text, at in QUERIES]
    assert [each["values"]["m0"] for each in items.json()["data"]] == expected
    assert told["recall_at_7"]["value"] == sum(expected) / len(expected)


def nearest(own: torch.Tensor, passages: list[torch.Tensor]) -> list[int]:
    """Places of the passages, most similar first."""
    near = [float(own @ each) for each in passages]
    return sorted(range(len(passages)), key=lambda at: -near[at])


def query(relevant: tuple[int, ...]) -> Query:
    return Query("", tuple((at, 1.0) for at in relevant))
