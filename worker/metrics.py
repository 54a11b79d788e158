"""Numbers of the dispatcher and of workers for Prometheus, on a small port of their own.

A worker's children come and go, so they keep no numbers: each writes what happened to its board, and the
parent, which lives as long as the worker, adds it up (``docs/decisions/013-metrics.md``).
"""

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.metrics import Counts
from jobs.tally import Fact

log = structlog.get_logger("worker.metrics")

MEBI = 1 << 20
GPU_SECONDS = 5.0
GPU_QUERY = ("--query-gpu=index,memory.used,utilization.gpu", "--format=csv,noheader,nounits")


@dataclass
class Numbers:
    """What one process counts; ``hear`` may be called from any thread."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    counts: Counts = field(init=False)
    _stop: Callable[[], None] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.counts = Counts(self.registry)

    def hear(self, fact: Fact) -> None:
        """Counts a fact."""
        self.counts.hear(fact)

    def serve(self, host: str, port: int) -> int | None:
        """Serves ``/metrics`` from a thread; nothing for port 0, or when the port is another's. The port."""
        if port == 0:
            return None
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            log.warning("metrics_not_served", host=host, port=port, error=str(error))
            return None
        self._stop = lambda: _shut(server.shutdown, server.server_close, thread)
        log.info("metrics_served", host=host, port=port)
        return port

    def close(self) -> None:
        """Stops serving."""
        if self._stop is not None:
            self._stop()


def _shut(shutdown: Callable[[], None], close: Callable[[], None], thread: threading.Thread) -> None:
    shutdown()
    close()
    thread.join(timeout=5)


class Gpus(Collector):
    """Memory and load of the GPUs as the driver's tool tells them: the parent must not touch CUDA itself."""

    def __init__(self, run: Callable[[], str] | None = None) -> None:
        self.run = run or ask_driver

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering asks nobody."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One scrape."""
        memory = GaugeMetricFamily("gpu_memory_bytes", "Memory in use on a GPU", labels=["gpu"])
        load = GaugeMetricFamily("gpu_utilisation", "Share of time a GPU was busy, 0 to 1", labels=["gpu"])
        for line in self.run().splitlines():
            parts = [part.strip() for part in line.split(",")]
            if len(parts) == 3 and all(part.isdigit() for part in parts):
                memory.add_metric([parts[0]], int(parts[1]) * MEBI)
                load.add_metric([parts[0]], int(parts[2]) / 100)
        yield from (memory, load)


def ask_driver() -> str:
    """What ``nvidia-smi`` says; nothing where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        said = subprocess.run([tool, *GPU_QUERY], capture_output=True, text=True, timeout=GPU_SECONDS)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.stdout if said.returncode == 0 else ""
