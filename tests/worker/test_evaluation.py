"""Nothing is scored twice: scores are found again by what they depend on, within a tenant."""

import shutil
from typing import Any

from sqlalchemy import text

from db import evaluations
from tests.worker.conftest import Floor, family_recipe
from tests.worker.merging import REPO, scored

PLANTED = 42.0


def plant(floor: Floor) -> int:
    """Replaces the value of every known score, so that reading it shows."""
    with floor.sessions.begin() as session:
        done = session.execute(
            text(
                "UPDATE known_score SET scores = jsonb_set(scores, '{0,value}', to_jsonb(42.0)) "
                "WHERE jsonb_path_exists(scores, '$[0].metric')"
            )
        )
        return int(done.rowcount)  # type: ignore[attr-defined]


def values(floor: Floor, **order: Any) -> dict[str, float]:
    job = floor.run(floor.order(**order))
    assert job.state == "succeeded", job.error_detail
    with floor.sessions() as session:
        found = {row.name: scores for row, scores in evaluations.of_job(session, job.id)}
    return {score.subject: score.value for score in found["texts"] if score.metric == "bits_per_byte"}


def test_what_was_scored_before_is_read_not_measured(floor: Floor) -> None:
    first = values(floor, **scored(floor))
    assert plant(floor) == len(first) + 1 == 5  # of the result also by what it is made of, for searches
    again = values(floor, **scored(floor) | {"output": {"repo": f"{REPO}-again"}})
    assert set(again.values()) == {PLANTED}


def test_a_result_that_differs_is_scored_while_its_parents_are_known(floor: Floor) -> None:
    values(floor, **scored(floor))
    plant(floor)
    other = family_recipe(steps=[{"method": "task_arithmetic", "scale": 0.25}])
    found = values(floor, recipe=other, **scored(floor) | {"output": {"repo": f"{REPO}-other"}})
    assert found.pop("result") != PLANTED
    assert set(found.values()) == {PLANTED}


def test_another_set_of_items_is_scored_anew(floor: Floor) -> None:
    values(floor, **scored(floor))
    plant(floor)
    order = scored(floor) | {"output": {"repo": f"{REPO}-less"}}
    order["evaluate"]["sets"][0]["limit"] = 3
    assert PLANTED not in values(floor, **order).values()


def test_another_tenant_does_not_see_them(floor: Floor) -> None:
    values(floor, **scored(floor))
    with floor.sessions.begin() as session:
        session.execute(text("INSERT INTO tenant (id, name) VALUES ('other', 'other')"))
        session.execute(text("UPDATE known_score SET tenant_id = 'other'"))
    plant(floor)
    found = values(floor, **scored(floor) | {"output": {"repo": f"{REPO}-again"}})
    assert PLANTED not in found.values()


def test_a_model_in_a_folder_of_a_repository_is_not_taken_for_the_one_at_its_top(floor: Floor) -> None:
    alone = values(floor, **scored(floor))
    root = floor.hub.store.root / "team"
    shutil.copytree(root / "expert1", root / "base" / "tuned")
    inside = family_recipe(
        sources=[{"id": "a", "model": "team/base:tuned"}, {"id": "b", "model": "team/expert2"}]
    )
    found = values(floor, recipe=inside, **scored(floor) | {"output": {"repo": f"{REPO}-inside"}})
    assert found == alone
