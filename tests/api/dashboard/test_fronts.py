"""The front on a search's page: predicted points beside measured ones, a preference, any point as a merge."""

from typing import Any

import pytest

from api.dashboard.searches import picture
from db.models.job import Job
from db.models.trial import Trial
from jobs import lifecycle, recording
from search.choice import FrontPoint
from tests.api.dashboard.conftest import Site
from tests.api.dashboard.test_searches import searched

TWO = [{"set": "texts"}, {"set": "texts", "metric": "perplexity", "goal": "max"}]


@pytest.fixture
def found(site: Site, monkeypatch: pytest.MonkeyPatch) -> str:
    """A search that has ended with a front of two measured points and two predicted ones."""
    succeed = lifecycle.succeed

    def with_front(session: Any, fence: Any, result: dict[str, Any]) -> Job:
        job = session.get(Job, fence.job_id)
        measured = [
            {"number": n, "point": {"scale": s}, "values": v}
            for n, s, v in ((0, 0.0, [-3.0, 4.0]), (2, 1.0, [-2.0, 1.0]))
        ]
        predicted = [
            {"point": {"scale": s}, "values": v} for s, v in ((0.25, [-2.8, 3.9]), (0.9, [-2.1, 2.0]))
        ]
        body = {
            "recipe": job.recipe,
            "measured": measured,
            "measured_total": 2,
            "predicted": predicted,
            "hypervolume": None,
        }
        recording.record_front(session, fence, body)
        return succeed(session, fence, result)

    monkeypatch.setattr(lifecycle, "succeed", with_front)
    return searched(site.sign_in(), objectives=TWO)


def test_predicted_points_stand_beside_measured_ones_and_can_be_merged(site: Site, found: str) -> None:
    page = site.get(f"/jobs/{found}").text
    assert page.count('class="predicted"') == 2 and "3 candidates, 2 predicted points" in page
    assert "predicted: texts -2.8, texts perplexity 3.9" in page
    assert "Merge predicted point 2" in page and "Merge predicted point 3" in page
    assert 'id="chosen"' not in page and "suits the preference" not in page
    answer = site.post(f"/jobs/{found}/front/3/merge", repo="acme/guess")
    assert answer.status_code == 303, answer.text
    merge = site.get(answer.headers["location"]).text
    assert "scale: 0.9" in merge and "acme/guess" in merge


def test_a_preference_chooses_a_point_on_the_page(site: Site, found: str) -> None:
    page = site.get(f"/jobs/{found}?say=0&say=1").text
    assert "<strong>Trial 0</strong> suits. Of 2 measured points" in page
    assert (
        page.index('label="Merge trial 0') < page.index('label="Merge trial 2')
        and "suits the preference" in page
    )
    assert f'action="/jobs/{found}/front/0/merge"' in page and 'name="say" type="number" min="0"' in page
    page = site.get(f"/jobs/{found}?say=1&say=&among=predicted").text
    assert "<strong>Predicted point 3</strong> suits" in page and "predicted, suits the preference" in page
    assert page.index('label="Merge predicted point 3') < page.index('label="Merge predicted point 2')


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("say=-1&say=2", "-1 is no say"),
        ("say=0&say=0", "one number above 0"),
        ("say=1", "it has 1"),
        ("say=x&say=1", "&#39;x&#39; is no number"),
    ],
)
def test_a_preference_that_says_nothing_is_told_at_the_form(
    site: Site, found: str, query: str, said: str
) -> None:
    answer = site.get(f"/jobs/{found}?{query}")
    assert answer.status_code == 200 and said in answer.text and 'aria-invalid="true"' in answer.text


def test_a_repository_that_is_none_is_refused(site: Site, found: str) -> None:
    answer = site.post(f"/jobs/{found}/front/3/merge", repo="no repository")
    assert answer.status_code == 422 and "repo" in answer.text


def test_a_search_for_one_best_point_asks_for_no_preference(site: Site) -> None:
    page = site.get(f"/jobs/{searched(site.sign_in())}?say=1&say=2").text
    assert 'name="say"' not in page and "suits" not in page


def test_the_page_says_why_nothing_was_predicted(site: Site) -> None:
    job_id = searched(site.sign_in())
    assert "too few" not in site.get(f"/jobs/{job_id}").text.lower()
    with site.begin() as session:
        job = session.get(Job, job_id)
        assert job is not None
        job.result = {**(job.result or {}), "notes": {"surrogate": "too few candidates could be scored"}}
    assert "too few candidates could be scored." in site.get(f"/jobs/{job_id}").text


def test_predicted_points_lie_on_the_same_scale_as_measured_ones() -> None:
    rows = [
        Trial(number=n, point={"x": n}, share=1.0, told={"values": [float(n), 2.0 - n]}) for n in (0, 1, 2)
    ]
    guess = FrontPoint(3, None, {"x": 3.0}, (4.0, 1.0))
    space = {"x": {"low": 0, "high": 4}}
    drawn = picture(rows, ["a", "b"], space, 1, {0, 1}, [guess])
    assert drawn is not None and [dot["kind"] for dot in drawn["dots"]] == ["own", "own", "", "predicted"]
    assert drawn["ends"][:2] == ["0", "4"] and drawn["dots"][3]["y"] == drawn["dots"][1]["y"]
    one = picture(rows, ["a"], space, 1, set(), [guess])
    assert one is not None and one["curve"].count(",") == 3 and one["predicted"] == 1
    assert one["dots"][3]["x"] == max(dot["x"] for dot in one["dots"])
