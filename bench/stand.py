"""A test stand: the service with embedded servers in a temporary folder, and what its processes cost."""

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.embedded import start_postgres, start_valkey
from migrations.run import upgrade

START_SECONDS = 60.0
HIDDEN, LAYERS, VOCAB = 16, 4, 64


@dataclass(frozen=True)
class Stand:
    """A running service: where it answers, its database, and the process ids of its parts by name."""

    host: str
    port: int
    database_url: str
    parts: Mapping[str, int]

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time of every part with all its children so far, and of this process (``client``)."""
        costs = {name: tree_cpu_seconds(pid) for name, pid in self.parts.items()}
        return costs | {"client": time.process_time()}


@contextmanager
def stand(processes: int) -> Iterator[Stand]:
    """A service with empty tables and the three models ``base``, ``one`` and ``two``."""
    folder = Path(tempfile.mkdtemp(prefix="mergery-load-"))
    folder.chmod(0o711)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        pids, urls = {}, []
        for name, start in (("database", start_postgres), ("broker", start_valkey)):
            server = start(folder)
            stack.callback(server.stop)
            urls.append(server.url)
            pids[name] = server.pid or 0
        upgrade(urls[0])
        for name in ("base", "one", "two"):
            write_model(folder / "models" / name)
        port = free_port()
        environment = os.environ | {
            "DATABASE_URL": urls[0],
            "BROKER_URL": urls[1],
            "MERGERY_DATA_DIR": str(folder / "data"),
            "MERGERY_MODEL_ROOTS": str(folder / "models"),
            "MERGERY_PORT": str(port),
            "MERGERY_API_PROCESSES": str(processes),
            "MERGERY_MAX_QUEUED_JOBS": "1000000",
            "MERGERY_REQUESTS_PER_MINUTE": "1000000",
            "MERGERY_LOG_LEVEL": "WARNING",
        }
        process = subprocess.Popen([sys.executable, "-m", "cli.main", "api"], env=environment)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        wait_until_ready(f"http://127.0.0.1:{port}/readyz", process)
        yield Stand("127.0.0.1", port, urls[0], {"api": process.pid, **pids})


def free_port() -> int:
    """A port nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Returns when ``url`` answers 200; ends the benchmark when the process ends or takes too long."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    sys.exit("the API did not start")


def tree_cpu_seconds(root: int) -> float:
    """CPU time, user and system, of a process and all its descendants, the ended ones too."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(folder.name)] = int(fields[1])
        ticks[int(folder.name)] = sum(int(each) for each in fields[11:15])
    family = {root}
    while grown := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(ticks.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


def write_model(folder: Path) -> None:
    """A Llama of some kilobytes, all zeros: only its header is ever read here."""
    shapes: dict[str, list[int]] = {
        "model.embed_tokens.weight": [VOCAB, HIDDEN],
        "model.norm.weight": [HIDDEN],
    }
    for layer in range(LAYERS):
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
            shapes[f"model.layers.{layer}.{part}.weight"] = [HIDDEN, HIDDEN]
        for part in ("gate_proj", "up_proj", "down_proj"):
            shapes[f"model.layers.{layer}.mlp.{part}.weight"] = [HIDDEN, HIDDEN]
        for part in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{part}.weight"] = [HIDDEN]
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(at))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "vocab_size": VOCAB,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
