"""Numbers that more than one process counts, under one name each, for Prometheus.

Every process counts what it did itself; sums over processes are Prometheus' work. Tenants are never labels.
"""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from hub.session import count_answers
from jobs.tally import Fact, Hear

PHASE_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600)
LAG_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200, 86400)
ATTEMPTS = (1, 2, 3, 5, 10)


class Counts:
    """The metrics of jobs, webhooks and the Hub; ``hear`` adds one fact to its metric."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(name, about, labels, registry=registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, about, labels, buckets=buckets, registry=registry)

        self.metrics: Mapping[str, MetricWrapperBase] = {
            "merge_jobs_total": counter("merge_jobs", "Jobs that ended here", "method", "state"),
            "job_attempts": histogram("job_attempts", "Attempts of jobs that ended here", ATTEMPTS),
            "merge_phase_seconds": histogram(
                "merge_phase_seconds", "Time in a phase", PHASE_SECONDS, "phase"
            ),
            "lease_lost_total": counter("lease_lost", "Jobs whose worker was not heard of any more"),
            "webhook_deliveries_total": counter("webhook_deliveries", "Tries to deliver", "outcome"),
            "webhook_lag_seconds": histogram(
                "webhook_lag_seconds", "From an event to its delivery", LAG_SECONDS
            ),
            "hub_bytes_total": counter("hub_bytes", "Bytes moved from and to the Hub", "direction"),
            "hub_requests_total": counter("hub_requests", "Answers of the Hub", "route", "status"),
        }

    def hear(self, fact: Fact) -> None:
        """Adds a fact; one without a metric is none of ours."""
        metric = self.metrics.get(fact.name)
        if metric is None:
            return
        labelled = metric.labels(*fact.labels) if fact.labels else metric
        if isinstance(labelled, Counter):
            labelled.inc(fact.value)
        elif isinstance(labelled, Histogram):
            labelled.observe(fact.value)


def watch_hub(hear: Hear) -> Callable[[], None]:
    """Tells ``hear`` of every answer of the Hub to this process; gives a function that ends it."""
    return count_answers(lambda route, status: hear(Fact("hub_requests_total", (route, str(status)))))
