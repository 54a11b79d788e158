"""Whole runs by compiled loops: the committed bytes, and the same words where something is wrong."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.checkpoint.layout import ShardLayout
from merge.checkpoint.writer import ShardWriter
from merge.contract.groups import TensorGroup
from merge.contract.method import get
from merge.errors import NotFinite
from merge.file_errors import FileSizeMismatch
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.report import ShardDone
from merge.run import run
from merge.running import passes
from merge.running.fused import compiler, loops, memo, spans
from merge.running.fused.trace import Tracer
from merge.running.survey import measure
from merge.work import MOST_AT_ONCE, Work
from tests.merge import exact
from tests.merge.references import CHAINS, DIGESTS, planned, tensors_digest

GIB = 1 << 30
COMMITTED = json.loads(DIGESTS.read_text(encoding="utf-8"))


pytestmark = pytest.mark.usefixtures("made")


@pytest.fixture(autouse=True)
def small_tensors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "AT_ONCE", 0)


@pytest.mark.parametrize("chain", CHAINS)
def test_bytes_are_the_committed_ones(
    folders: Mapping[str, Path],
    tmp_path: Path,
    chain: str,
    made: list[loops.Loops],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = planned(folders, *CHAINS[chain])
    for threads, span in ((1, 1 << 16), (3, 1 << 17)):
        monkeypatch.setattr(spans, "WRITE_SPAN", span)
        monkeypatch.setattr(spans, "MEASURE_SPAN", span)
        out = tmp_path / str(threads)
        run(plan, folders, out, budget_bytes=GIB, threads=threads)
        assert tensors_digest(tmp_path / str(threads)) == COMMITTED[chain]
        assert made[-1].made > 0, made[-1].reasons


def test_bytes_do_not_depend_on_a_compiler(
    folders: Mapping[str, Path], tmp_path: Path, made: list[loops.Loops], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(compiler.FOLDER_VARIABLE, "off")
    monkeypatch.setattr(loops, "_COMPILER", compiler.Compiler())
    run(planned(folders, *CHAINS["ties"]), folders, tmp_path / "out", budget_bytes=GIB, threads=2)
    assert tensors_digest(tmp_path / "out") == COMMITTED["ties"]
    assert made[-1].made == 0
    assert set(made[-1].reasons) == {f"{compiler.FOLDER_VARIABLE} is off"}


@pytest.mark.parametrize("chain", ["linear", "ties"])
def test_files_written_side_by_side_have_their_digests_and_are_gone_on_with(
    folders: Mapping[str, Path], tmp_path: Path, chain: str
) -> None:
    plan, out, made = planned(folders, *CHAINS[chain]), tmp_path / "out", []
    assert len(plan.shards) > 4

    def second(done: ShardDone) -> None:
        made.append(done)
        if len(made) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, folders, out, budget_bytes=GIB, threads=2, on_shard=second)
    assert [done.file for done in made] == [shard.file for shard in plan.shards[:2]]
    report = run(plan, folders, out, budget_bytes=GIB, threads=2)
    assert [file.reused for file in report.files[:2]] == [True, True]
    for file in report.files:
        assert file.sha256 == hashlib.sha256((out / file.file).read_bytes()).hexdigest()
    assert tensors_digest(out) == COMMITTED[chain]


@pytest.mark.parametrize("threads", [1, 2, 9])
def test_files_without_digests_are_written_side_by_side(
    folders: Mapping[str, Path], tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, together = planned(folders, *CHAINS["ties"]), []
    write = Work.write

    def noted(self: Work, layouts: Sequence[ShardLayout], folder: Path) -> list[ShardWriter]:
        together.append(len(layouts))
        return write(self, layouts, folder)

    monkeypatch.setattr(Work, "write", noted)
    run(plan, folders, tmp_path / "out", budget_bytes=GIB, threads=threads, digests=False)
    assert together[0] == min(threads, MOST_AT_ONCE)
    assert sum(together) == len(plan.shards)
    assert tensors_digest(tmp_path / "out") == COMMITTED["ties"]


@pytest.mark.parametrize("chain", ["linear", "dare_task_arithmetic"])
def test_what_was_traced_serves_for_every_tensor(
    folders: Mapping[str, Path], tmp_path: Path, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where draws differ by tensor; the bytes are those of tracing each."""
    traced: list[Tracer] = []

    def noted(shape: tuple[int, ...]) -> Tracer:
        traced.append(Tracer(shape))
        return traced[-1]

    monkeypatch.setattr(memo, "Tracer", noted)
    plan = planned(folders, *CHAINS[chain])
    run(plan, folders, tmp_path / "out", budget_bytes=GIB, threads=2)
    assert tensors_digest(tmp_path / "out") == COMMITTED[chain]
    kinds = {(output.policy, *map(id, output.settings)) for output in plan.outputs}
    assert len(traced) <= 2 * len(kinds) < len(plan.outputs) / 2


def test_what_looks_at_the_tensor_is_traced_for_each(
    folders: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(folders, *CHAINS["linear"])
    run(plan, folders, tmp_path / "plain", budget_bytes=GIB, threads=1)
    merge = get("linear").function

    def by_name(group: TensorGroup, p: Any) -> Any:
        return merge(group, p) * len(group.name)

    monkeypatch.setitem(vars(get("linear")), "function", by_name)
    run(plan, folders, tmp_path / "named", budget_bytes=GIB, threads=1)
    for path in (tmp_path / "plain").glob("*.safetensors"):
        named = load_file(tmp_path / "named" / path.name)
        for name, tensor in load_file(path).items():
            if tensor.is_floating_point():
                torch.testing.assert_close(named[name].float(), tensor.float() * len(name), rtol=0.01, atol=0)


@pytest.mark.parametrize("chain", ["linear", "dare_l1", "clipped"])
def test_the_report_does_not_depend_on_a_compiler(
    folders: Mapping[str, Path], tmp_path: Path, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is left after a preparing step, and what was there before an adjusting one."""
    steps: dict[str, list[dict[str, Any]]] = {
        "linear": [{"method": "linear"}],
        "dare_l1": [{"method": "dare", "density": 0.5, "rescale": "l1"}, {"method": "task_arithmetic"}],
        "clipped": [{"method": "task_arithmetic"}, {"method": "clip_outliers"}],
    }
    plan = planned(folders, "abc", steps[chain])
    run(plan, folders, tmp_path / "built", budget_bytes=GIB, threads=2)
    monkeypatch.setattr(loops.Loops, "summing", lambda *_: None)
    run(plan, folders, tmp_path / "plain", budget_bytes=GIB, threads=1, survey="sampled")
    reports = [(tmp_path / name / "merge_report.json").read_bytes() for name in ("built", "plain")]
    assert reports[0] == reports[1]


@pytest.mark.parametrize("chain", ["ties", "dare_ties", "trim_dare_sce"])
def test_what_the_report_needs_is_not_computed_again_by_the_eager_code(
    folders: Mapping[str, Path], tmp_path: Path, chain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_measure", lambda *_: pytest.fail("read and measured by the eager code"))
    plan = planned(folders, *CHAINS[chain])
    run(plan, folders, tmp_path / "out", budget_bytes=GIB, threads=2, survey="sampled")


def spoiled(folder: Path, bad: float) -> str:
    """Puts a number into the last entry of one tensor; gives the tensor's name."""
    path = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(path)
    name = max(tensors, key=lambda each: tensors[each].numel())
    tensors[name].view(-1)[-1] = bad
    save_file(tensors, path)
    return name


@pytest.mark.parametrize("chain", ["linear", "ties"])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_an_entry_that_is_not_finite_is_named(tmp_path: Path, chain: str, bad: float) -> None:
    folders = exact.family(tmp_path, shards=1)
    name = spoiled(folders["b"], bad)
    with pytest.raises(NotFinite, match=f"{name} of b holds NaN or infinity"):
        run(planned(folders, *CHAINS[chain]), folders, tmp_path / "out", budget_bytes=GIB, threads=2)


def test_a_result_beyond_the_dtype_is_named(folders: Mapping[str, Path], tmp_path: Path) -> None:
    document = {
        "base": "base",
        "sources": [{"id": "a", "model": "a"}],
        "steps": [{"method": "task_arithmetic", "scale": 1e7}],
        "dtype": {"output": "float16"},
    }
    plan = make_plan(recipe_from(document), exact.indices(folders), budget=GIB)
    with pytest.raises(NotFinite, match=r"beyond 6.55e\+04"):
        run(plan, folders, tmp_path / "out", budget_bytes=GIB, threads=2)


def test_a_file_that_shrinks_after_the_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = exact.family(tmp_path, shards=1)
    plan = planned(folders, *CHAINS["linear"])
    compute = spans.Writing.made

    def cut_first(self: spans.Writing, *span: Any) -> torch.Tensor | None:
        for path in folders["b"].glob("*.safetensors"):
            with path.open("r+b") as file:
                file.truncate(100_000)
        return compute(self, *span)

    monkeypatch.setattr(spans.Writing, "made", cut_first)
    with pytest.raises(FileSizeMismatch, match="was cut short"):
        run(plan, folders, tmp_path / "out", budget_bytes=GIB, threads=2)
