"""Input files that are cut short or written to while they are read: told by name, nothing lost, no crash."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge.checkpoint.index import index_folder
from merge.checkpoint.reader import TensorReader
from merge.errors import InputChanged, MergeError
from merge.file_errors import FileSizeMismatch
from merge.journal import partial_folder
from merge.plan import Plan, make_plan
from merge.recipe.recipe import recipe_from
from merge.report import ShardDone
from merge.run import run
from tests.merge.checkpoint.codecs.encode import CASES, gptq
from tests.merge.checkpoint.codecs.test_codecs import write
from tests.merge.checkpoint.gguf.test_model import saved
from tests.merge.checkpoint.gguf.write import write as write_gguf

BUDGET = 96 << 20
RECIPE = {"sources": [{"id": "q", "model": "quantised"}], "steps": ["passthrough"], "shard_bytes": 1 << 16}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A GPTQ model of six modules, each enough for a shard of the result."""
    case = gptq()
    folder = write(tmp_path / "quantised", case)
    wide = {name: tensor.repeat(1, 16) for name, tensor in case.stored.items() if tensor.dim() == 2}
    stored = {f"{module}{name[1:]}": t for module in "abcdef" for name, t in wide.items()}
    save_file({name: tensor.clone() for name, tensor in stored.items()}, folder / "model.safetensors")
    return folder


def planned(folder: Path) -> Plan:
    plan = make_plan(recipe_from(RECIPE), {"q": index_folder(folder, "quantised")}, budget=BUDGET)
    assert len(plan.shards) == 6
    return plan


def done(folder: Path, out: Path, **options: Any) -> Any:
    return run(planned(folder), {"q": folder}, out, budget_bytes=BUDGET, threads=1, **options)


def test_a_quantised_file_cut_short_in_mid_run_is_named_and_the_finished_shards_are_kept(
    model: Path, tmp_path: Path
) -> None:
    file, out = model / "model.safetensors", tmp_path / "out"
    whole, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    plan = planned(model)

    def cut(_: ShardDone) -> None:
        os.truncate(file, 4096)

    with pytest.raises(
        FileSizeMismatch, match=r"model\.safetensors of quantised ends at byte 4096.*cut short"
    ):
        run(plan, {"q": model}, out, budget_bytes=BUDGET, threads=1, on_shard=cut)
    assert not out.exists() and list(partial_folder(out).glob("*.safetensors"))
    file.write_bytes(whole)
    os.utime(file, ns=times)
    report = done(model, out)
    assert any(each.reused for each in report.files)
    done(model, tmp_path / "undisturbed")
    for path in (tmp_path / "undisturbed").glob("*.safetensors"):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_a_file_that_is_written_to_in_mid_run_gives_no_result(model: Path, tmp_path: Path) -> None:
    file, out = model / "model.safetensors", tmp_path / "out"

    def write_to(_: ShardDone) -> None:
        stored = {name: tensor.flip(0) for name, tensor in load_file(file).items()}
        save_file({name: tensor.contiguous() for name, tensor in stored.items()}, file)

    with pytest.raises(InputChanged, match=r"model\.safetensors of quantised was changed while it was read"):
        done(model, out, on_shard=write_to)
    assert not out.exists() and not partial_folder(out).exists()


def test_a_file_that_is_gone_in_the_end_is_named_too(model: Path, tmp_path: Path) -> None:
    def remove(shard: ShardDone) -> None:
        (model / "model.safetensors").unlink(missing_ok=True)

    with pytest.raises(MergeError, match=r"model\.safetensors of quantised"):
        done(model, tmp_path / "out", on_shard=remove)


@pytest.mark.parametrize("kind", CASES)
def test_no_code_of_a_shortened_file_ends_the_process(tmp_path: Path, kind: str) -> None:
    case = CASES[kind]()
    folder = write(tmp_path, case)
    index = index_folder(folder, "quantised")
    os.truncate(folder / "model.safetensors", 64)
    out = torch.empty(index.tensors[case.name].numel)
    with (
        TensorReader(folder, index) as reader,
        pytest.raises(FileSizeMismatch, match=r"model\.safetensors of quantised"),
    ):
        reader.read_float(case.name, 0, out.numel(), out)


def test_a_shortened_gguf_file_with_interleaved_rows_is_told(tmp_path: Path) -> None:
    tensors, config = saved("llama", tmp_path / "hf")
    path = write_gguf(tmp_path / "m.gguf", "llama", tensors, config)
    index = index_folder(path)
    os.truncate(path, index.tensors["model.layers.0.self_attn.q_proj.weight"].begin + 8)
    out = torch.empty(index.tensors["model.layers.0.self_attn.q_proj.weight"].numel)
    with TensorReader(tmp_path, index) as reader, pytest.raises(FileSizeMismatch, match=r"m\.gguf"):
        reader.read_float("model.layers.0.self_attn.q_proj.weight", 0, out.numel(), out)
