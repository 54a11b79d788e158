"""Takes due webhooks from the database, sends them side by side, and notes how each try ended."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import structlog

from jobs import signing, webhooks
from jobs.keyring import Keyring
from jobs.webhooks import DueDelivery
from worker.context import Transaction
from worker.deliver import Sender

log = structlog.get_logger("worker.courier")

HANDS = 16
LEASE_SECONDS = 60.0
FOR_ONE = 4
"""Hands that may send to one receiver."""


@dataclass
class Courier:
    """Never holds more messages than it has hands, nor more than four for one receiver, so that a slow
    receiver delays nobody else's webhooks.

    ``schedule`` holds the seconds before each try, also the first; ``on_free`` is called when a hand is free.
    """

    transaction: Transaction
    keyring: Keyring
    sender: Sender
    schedule: Sequence[float]
    owner: str
    on_free: Callable[[], None] = lambda: None
    now: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random
    hands: int = HANDS
    _busy: Counter[str] = field(default_factory=Counter, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.hands, thread_name_prefix="courier")

    def deliver_due(self) -> int:
        """Takes as many due messages as there are free hands and begins to send them; returns how many."""
        with self._lock:
            busy = Counter(self._busy)
        free = self.hands - busy.total()
        if free <= 0:
            return 0
        with self.transaction() as session:
            due = webhooks.claim_due(
                session,
                self.keyring,
                self.owner,
                limit=free,
                lease_seconds=LEASE_SECONDS,
                each=FOR_ONE,
                held=busy,
            )
        with self._lock:
            self._busy.update(each.receiver for each in due)
        for each in due:
            self._pool.submit(self._deliver, each)
        return len(due)

    def close(self) -> None:
        """Waits for the tries that have begun."""
        self._pool.shutdown(wait=True)

    def _deliver(self, due: DueDelivery) -> None:
        try:
            self.deliver(due)
        except Exception as error:
            # The lease on the row runs out, then the message is due again.
            log.warning("delivery_not_recorded", delivery_id=due.id, error=str(error))
        finally:
            with self._lock:
                self._busy -= Counter([due.receiver])  # a host of which nothing is left is forgotten
            self.on_free()

    def deliver(self, due: DueDelivery) -> str:
        """One try: signs with every live secret, sends, records; returns what became of the message."""
        headers = signing.sign(due.secrets, due.message_id, int(self.now()), due.body)
        reply = self.sender.post(due.url, headers, due.body)
        with self.transaction() as session:
            outcome = webhooks.record_result(
                session,
                due,
                status_code=reply.status,
                error=reply.error,
                retry_after=reply.retry_after,
                schedule=self.schedule,
                chance=self.chance(),
            )
        log.info(
            "webhook_tried",
            delivery_id=due.id,
            message_id=due.message_id,
            type=due.type,
            attempt=due.attempt,
            status=reply.status,
            outcome=outcome,
            seconds=round(reply.seconds, 3),
        )
        return outcome
