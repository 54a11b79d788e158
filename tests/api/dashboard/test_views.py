"""Rows as the words of a page, apart from any page."""

from datetime import UTC, datetime

from api.dashboard.views import POINTS_MOST, points_of
from db.models.job import JobEvent


def test_the_points_of_a_long_job_are_thinned_out_evenly() -> None:
    now, types = datetime.now(UTC), ("merge.phase", "merge.progress")
    events = [
        JobEvent(seq=seq, type=types[seq % 2], at=now, data={"bytes_done": seq})
        for seq in range(8 * POINTS_MOST)
    ]
    assert [each["seq"] for each in points_of(events)] == list(range(1, 8 * POINTS_MOST, 8))
    assert [each["bytes"] for each in points_of(events[:10])] == [1, 3, 5, 7, 9]
