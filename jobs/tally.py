"""What happened, for whoever counts: noted where it is decided, told once it is committed.

The rules know no metrics and the counters know no rules: a process that counts calls ``listen`` once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker

_NOTED = "tally"


@dataclass(frozen=True)
class Fact:
    """One thing that happened. ``name`` is a metric's, ``labels`` are its labels in their order."""

    name: str
    labels: tuple[str, ...] = ()
    value: float = 1.0


Hear = Callable[[Fact], None]


def note(session: Session, name: str, *labels: str, value: float = 1.0) -> None:
    """Remembers a fact until the transaction ends; a rollback forgets it."""
    session.info.setdefault(_NOTED, []).append(Fact(name, labels, value))


def listen(sessions: sessionmaker[Session], hear: Hear) -> None:
    """Tells ``hear`` every fact that a session of this factory commits."""

    def tell(session: Session) -> None:
        for fact in session.info.pop(_NOTED, ()):
            hear(fact)

    def forget(session: Session, *_: Any) -> None:
        session.info.pop(_NOTED, None)

    event.listen(sessions, "after_commit", tell)
    event.listen(sessions, "after_soft_rollback", forget)
