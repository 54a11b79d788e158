"""The front of a search lives in the database: its worker may be gone when a point of it is merged."""

import shutil
from pathlib import Path

from jobs.credentials import store_token
from jobs.fronts import front_if_any, front_of, merge_order
from jobs.keyring import Keyring
from jobs.searching import PointRequest
from jobs.submit import submit
from tests.factories import TEST_SECRET, make_caller, make_rules
from tests.worker.conftest import TOKEN, Floor
from tests.worker.test_search_job import SEARCH, ordered, ran

TWO = [{"set": "texts"}, {"set": "texts", "metric": "perplexity", "goal": "max"}]


def test_a_predicted_point_is_merged_when_the_worker_s_disk_is_gone(floor: Floor) -> None:
    search = {"method": "map", "settings": {}, "objectives": TWO, "budget": {"evaluations": 3}}
    job = ran(floor, ordered(floor, SEARCH | search))
    assert job.result is not None and job.result["notes"] == {"surrogate_error": [None, None]}
    shutil.rmtree(Path(job.result["folder"]))
    with floor.sessions.begin() as session:
        front = front_of(session, job)
        measured = [each for each in front.points if each.kind == "measured"]
        predicted = [each for each in front.points if each.kind == "predicted"]
        assert [each.number for each in measured] == [each["number"] for each in job.result["front"]]
        assert predicted and front.hypervolume == job.result["hypervolume"]
        at = next(each for each in predicted if each.point["scale"] not in (0.0, 1.0))
        caller = make_caller(session)
        credential = store_token(session, Keyring(TEST_SECRET), caller.tenant_id, "hub", TOKEN)
        order = merge_order(job, front, at.place, PointRequest())
        assert order.recipe.sources[0].model == f"team/expert1@{floor.hub.head('team/expert1')}"
        order = order.model_copy(update={"hub_credential": credential.id})
        rules = make_rules(model_roots=[floor.hub.store.root / "team"])
        again = submit(session, caller, order, None, rules).id
    merged = ran(floor, again)
    assert merged.recipe["steps"][0]["scale"] == at.point["scale"]
    assert merged.metadata_ == {"search": job.id, "front": str(at.place)}


def test_a_search_for_one_best_point_keeps_no_front(floor: Floor) -> None:
    job = ran(floor, ordered(floor))
    with floor.sessions() as session:
        assert front_if_any(session, job) is None
