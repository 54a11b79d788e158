"""A measurement that was stopped goes on from the last finished block; the bytes do not tell."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from merge.checkpoint.index import index_folder
from merge.errors import NotFinite, OutputExists, StatisticsInvalid, StatisticUnknown, Stopped
from merge.learn import turns, walk
from merge.learn.collect import Progress, collect
from merge.learn.statistics import FILE, MANIFEST, Manifest, read_statistics
from tests.merge.learn import models

KINDS = ("mean_abs_input", "gram", "fisher")
KILLED = """
import json, os, signal, sys
from pathlib import Path
from merge.checkpoint.index import index_folder
from merge.learn.collect import collect
from tests.merge.learn import models

folder, root = Path(sys.argv[1]), Path(sys.argv[2])

def measure(out, most):
    told = []

    def heard(progress):
        told.append([progress.turn, progress.block, progress.done])
        if len(told) == most:
            os.kill(os.getpid(), signal.SIGKILL)

    given = models.samples(16, documents=12)
    collect(folder, index_folder(folder), given, ["gram", "fisher"], root / out, on_progress=heard)
    print(json.dumps(told), flush=True)

for out, most in (("once", 0), ("killed", 2), ("killed", 3), ("killed", 0)):
    child = os.fork()
    if child == 0:
        measure(out, most)
        os._exit(0)
    assert (os.waitpid(child, 0)[1] == signal.SIGKILL) == (most > 0)
"""


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (FILE, MANIFEST)]


@pytest.mark.parametrize("kind", ["llama", "t5", "clip", "classifier"])
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.make(tmp_path / "model", kind)
    index, given = index_folder(folder), models.samples(16, documents=4 if kind == "classifier" else 12)
    kinds = {"clip": KINDS[:2], "classifier": ("fisher_exact",)}.get(kind, KINDS)
    collect(folder, index, given, kinds, tmp_path / "once")
    ran: list[str] = []
    original = walk.Stage.run
    monkeypatch.setattr(
        walk.Stage, "run", lambda self, **options: (ran.append(self.path), original(self, **options))[1]
    )
    reports: list[Progress] = []
    for _ in range(40):
        begun = len(reports)
        try:
            collect(
                folder, index, given, kinds, tmp_path / "often",
                on_progress=reports.append, should_stop=lambda begun=begun: len(reports) > begun,
            )  # fmt: skip
            break
        except Stopped:
            assert not (tmp_path / "often").exists()
    assert contents(tmp_path / "often") == contents(tmp_path / "once")
    if kind == "clip":  # each block once, but for the one that each stop cut off
        assert len(ran) <= 2 * len(set(ran))
    assert reports[0].total >= 3 and reports[0].tokens_per_second > 0


def test_a_process_that_is_killed_outright_costs_the_block_it_was_in(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "llama")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    straight, last = (json.loads(line) for line in ran.stdout.splitlines())
    assert len(straight) == 3 + 6, "three stages forwards, six groups backwards"
    assert last == straight[2 + 3 :], "two blocks, then three steps, were done by those that were killed"
    assert contents(tmp_path / "killed") == contents(tmp_path / "once")


def test_a_model_that_only_runs_whole_goes_on_too(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "albert")
    index, given = index_folder(folder), models.samples(16, documents=8)
    straight: list[Progress] = []
    collect(folder, index, given, ["gram", "fisher"], tmp_path / "once", on_progress=straight.append)
    reports: list[Progress] = []
    with pytest.raises(Stopped):
        collect(
            folder, index, given, ["gram", "fisher"], tmp_path / "often",
            on_progress=reports.append, should_stop=lambda: len(reports) > 3,
        )  # fmt: skip
    collect(folder, index, given, ["gram", "fisher"], tmp_path / "often", on_progress=reports.append)
    steps = [(each.turn, each.done) for each in straight]
    assert len(steps) > 5 and [(each.turn, each.done) for each in reports] == steps
    assert contents(tmp_path / "often") == contents(tmp_path / "once")


def test_states_that_are_not_the_ones_left_are_not_used(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "llama")
    index, given = index_folder(folder), models.samples(16)
    reports: list[Progress] = []
    with pytest.raises(Stopped):
        collect(
            folder, index, given, ["gram"], tmp_path / "out",
            on_progress=reports.append, should_stop=lambda: len(reports) > 0,
        )  # fmt: skip
    for path in (tmp_path / "out.partial" / "states").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    collect(folder, index, given, ["gram"], tmp_path / "out")
    collect(folder, index, given, ["gram"], tmp_path / "again")
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_the_same_statistics_are_kept_and_others_are_not_overwritten(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "gpt2")
    index, given = index_folder(folder), models.samples(16)
    first = collect(folder, index, given, ["gram"], tmp_path / "out")
    assert collect(folder, index, given, ["gram"], tmp_path / "out") == first
    with pytest.raises(OutputExists):
        collect(folder, index, given, ["fisher"], tmp_path / "out")
    with pytest.raises(StatisticUnknown, match="no statistic called 'grams'"):
        collect(folder, index, given, ["grams"], tmp_path / "other")
    (tmp_path / "out" / MANIFEST).write_text("{}")
    with pytest.raises(StatisticsInvalid):
        read_statistics(tmp_path / "out")


def test_squares_that_overflow_are_stopped_with_the_tensors_name(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = models.make(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] *= 1e22  # its gradients are finite, their squares are not
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    given = models.samples(16, documents=2)
    with pytest.raises(NotFinite, match=r"grad_weight of model\.layers\.1"):
        collect(folder, index_folder(folder), given, ["grad_weight"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_overflows_is_stopped_with_the_modules_name(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = models.make(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"].fill_(float("inf"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert torch.isinf(tensors["model.layers.1.mlp.up_proj.weight"]).all()
    with pytest.raises(NotFinite, match=r"model\.layers\.1 "):
        collect(folder, index_folder(folder), models.samples(16), ["gram"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_at_once_measure_the_same_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two merges do that need statistics of one base: both grew one folder, each in the other's files."""
    monkeypatch.setattr(turns, "WAIT_SECONDS", 0.01)
    folder, out = models.make(tmp_path / "model", "llama"), tmp_path / "out"
    begun, go_on, heard = threading.Event(), threading.Event(), list[str]()

    def measure(name: str, heard_by: Callable[[Progress], object]) -> Manifest:
        def on_progress(progress: Progress) -> None:
            heard.append(name)
            heard_by(progress)

        given = models.samples(16, documents=4)
        return collect(folder, index_folder(folder), given, ["gram"], out, on_progress=on_progress)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(measure, "first", lambda _: begun.set() or go_on.wait(30))  # type: ignore[func-returns-value]
        assert begun.wait(30)
        second = pool.submit(measure, "second", lambda _: None)
        with pytest.raises(TimeoutError):
            second.result(0.3)
        go_on.set()
        assert first.result(30) == second.result(30)
    assert set(heard) == {"first"} and sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
