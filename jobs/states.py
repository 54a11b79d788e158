"""The states of a job, the moves between them, and the phases of a running one. Pure."""

from enum import StrEnum


class State(StrEnum):
    """Adding a state is a breaking change for callers; adding a phase is not."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


ALLOWED: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED, State.FAILED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLING, State.QUEUED}),
    State.CANCELLING: frozenset({State.CANCELLED, State.SUCCEEDED, State.FAILED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
}
TERMINAL = frozenset(state for state, moves in ALLOWED.items() if not moves)
ACTIVE = frozenset({State.RUNNING, State.CANCELLING})
RETRYABLE = frozenset({State.FAILED, State.CANCELLED, State.EXPIRED})

PHASES = (
    "resolving", "downloading", "measuring", "merging", "searching", "evaluating", "uploading", "finalising",
)  # fmt: skip


def may_move(before: str, after: str) -> bool:
    """Whether a job in state ``before`` may go to ``after``; staying is always allowed."""
    return before == after or State(after) in ALLOWED[State(before)]


def is_terminal(state: str) -> bool:
    """Whether a job in this state will never change again."""
    return State(state) in TERMINAL
