"""Numbers for Prometheus: what this process did, and what the rows say about all jobs when asked.

Where several API processes share a port, each keeps its numbers in files of one folder
(``PROMETHEUS_MULTIPROC_DIR``), and whichever is asked adds them up.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from db import jobs, webhooks
from db.session import Session
from jobs.metrics import Counts

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.3, 0.6, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


Begin = Callable[[], AbstractContextManager[Session]]
"""Opens a transaction."""


class Metrics:
    """One registry a process. Routes are labelled by their template, never by the path; tenants never."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http = Histogram(
            "http_request_seconds",
            "Time to answer a request",
            ["method", "route", "status"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.accepted = Counter(
            "merge_jobs_accepted", "Jobs this process accepted", ["method"], registry=self.registry
        )
        self.planning = Histogram(
            "merge_plan_seconds", "Time to plan a recipe", buckets=BUCKETS, registry=self.registry
        )
        self.streams = Gauge(
            "event_streams_open", "Open event streams", registry=self.registry, multiprocess_mode="livesum"
        )
        self.counts = Counts(self.registry)
        self.rows: Rows | None = None

    def measure(self, method: str, route: str, status: int, seconds: float) -> None:
        """Notes one answered request."""
        self.http.labels(method, route, str(status)).observe(seconds)

    def watch(self, begin: Begin) -> None:
        """Adds what is read from the rows at every scrape."""
        self.rows = Rows(begin)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        own = self.registry
        if FOLDER in os.environ:
            own = CollectorRegistry()
            MultiProcessCollector(own)  # type: ignore[no-untyped-call]
        rows = CollectorRegistry()
        if self.rows is not None:
            rows.register(self.rows)
        return generate_latest(own) + generate_latest(rows)


class Rows(Collector):
    """Gauges over all tenants, read from the database."""

    def __init__(self, begin: Begin) -> None:
        self.begin = begin

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering asks no database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One scrape."""
        with self.begin() as session:
            states = jobs.count_states(session)
            ages = jobs.oldest_queued_seconds(session)
            silent = jobs.longest_silence_seconds(session)
            mail, mail_age = webhooks.waiting(session)
        held = GaugeMetricFamily("merge_jobs_in_state", "Jobs by pool and state", labels=["pool", "state"])
        for (queue, state), count in sorted(states.items()):
            held.add_metric([queue, state], count)
        waited = GaugeMetricFamily(
            "merge_queue_age_seconds", "How long the oldest ready job has waited", labels=["pool"]
        )
        silence = GaugeMetricFamily(
            "merge_heartbeat_age_seconds",
            "How long the quietest worker of a running job has not been heard of",
            labels=["pool"],
        )
        for queue in ("cpu", "gpu"):
            waited.add_metric([queue], ages.get(queue, 0.0))
            silence.add_metric([queue], silent.get(queue, 0.0))
        due = GaugeMetricFamily("webhook_messages_due", "Messages whose time has come", value=mail)
        late = GaugeMetricFamily(
            "webhook_due_age_seconds", "How long the oldest of them has been due", value=mail_age
        )
        yield from (held, waited, silence, due, late)
