"""What goes into JSON columns."""

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.session import to_json


def test_a_nul_in_a_text_does_not_stop_a_row(session: Session) -> None:
    stored = session.scalar(
        text("SELECT CAST(:value AS jsonb)"), {"value": to_json({"generated": "a\0b", "deep": ["\0"]})}
    )
    assert stored == {"generated": "a\ufffdb", "deep": ["\ufffd"]}
