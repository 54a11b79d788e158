import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from merge.__main__ import bytes_of, main
from tests.merge import exact

RECIPE = """
base: base
sources: [{id: a, model: a}, {id: b, model: b, weight: 0.5}]
steps: [{method: dare, density: 0.5}, {method: ties, density: 0.4}]
"""
MERGEKIT = """
merge_method: ties
base_model: base
models:
  - {model: a, parameters: {weight: 1.0, density: 0.5}}
  - {model: b, parameters: {weight: 0.5, density: 0.5}}
dtype: bfloat16
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    exact.family(tmp_path, ("base", "a", "b"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "mergekit.yaml").write_text(MERGEKIT)
    return tmp_path


def call(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_run_makes_the_folder_and_prints_digests(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", root / "recipe.yaml", root / "out", "--threads", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[1] for line in lines} == {file.name for file in (root / "out").iterdir()}
    (root / "out" / "model.safetensors").unlink()
    assert call("run", root / "recipe.yaml", root / "out") == 2
    assert "is this merge, but lacks model.safetensors; remove it first." in capsys.readouterr().err


def test_a_repository_of_the_hub_is_told_how_it_becomes_a_folder(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "recipe.yaml").write_text(RECIPE.replace("base: base", "base: org/base@v2"))
    assert call("plan", root / "recipe.yaml") == 2
    assert "`hf download org/base --revision v2 --local-dir org/base@v2`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "extra"),
    [
        ("linear", ""),
        ("task_arithmetic", ""),
        ("ties", "parameters: {normalize: true, lambda: 0.7}"),
        ("dare_linear", "parameters: {rescale: true}"),
        ("dare_ties", ""),
    ],
)
def test_a_mergekit_file_runs_as_it_is(root: Path, method: str, extra: str) -> None:
    text = MERGEKIT.replace("merge_method: ties", f"merge_method: {method}") + extra
    text = text.replace(", density: 0.5", "") if method == "linear" else text
    (root / "mergekit.yaml").write_text(text)
    assert call("run", root / "mergekit.yaml", root / "out", "--threads", 1) == 0


def test_several_documents_of_mergekit_are_planned_translated_and_run(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mean = "name: Mean\nmerge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    text = mean + "---\n" + MERGEKIT.replace("model: b,", "model: Mean,")
    (root / "multi.yaml").write_text(text)
    assert call("translate", root / "multi.yaml") == 0
    told = capsys.readouterr().out
    assert "\nstages:\n  mean:\n" in told and "model: stage:mean" in told
    (root / "ours.yaml").write_text(told)
    assert call("plan", root / "multi.yaml") == 0
    assert "stage mean: linear" in (shown := capsys.readouterr().out) and "made as it is read" in shown
    for name in ("multi", "ours"):
        assert call("run", root / f"{name}.yaml", root / name, "--threads", 1) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


def test_a_mergekit_slerp_runs_as_it_is(root: Path) -> None:
    models = "base_model: base\nmodels: [{model: base}, {model: a}]\n"
    text = f"merge_method: slerp\n{models}parameters: {{t: [0.2, 0.8]}}\n"
    (root / "mergekit.yaml").write_text(text)
    assert call("run", root / "mergekit.yaml", root / "out", "--threads", 1) == 0


def test_plan_prints_a_summary_and_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(root.iterdir())
    assert call("plan", root / "recipe.yaml", "--json") == 0
    assert [step["method"] for step in json.loads(capsys.readouterr().out)["steps"]] == ["dare", "ties"]
    assert sorted(root.iterdir()) == before


def test_translate_shows_the_recipe_and_the_conventions(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("translate", root / "mergekit.yaml", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["recipe"]["steps"][0]["method"] == "ties"
    assert shown["notes"]
    assert call("translate", root / "mergekit.yaml") == 0
    text = capsys.readouterr().out
    assert text.startswith("# ") and "method: ties" in text


def test_methods_lists_or_describes(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("methods") == 0
    assert "TIES-Merging" in capsys.readouterr().out
    assert call("methods", "ties") == 0
    assert json.loads(capsys.readouterr().out)["name"] == "ties"


def test_inspect_shows_tensors(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("inspect", root / "a", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["tensors"]) == exact.TENSORS
    assert told["tied"] == {} and told["architectures"] == ["LlamaForCausalLM"]
    facts = {"dtype": "BF16", "shape": [128, 128], "bytes": 32_768, "layer": 1, "class": "linear"}
    assert told["tensors"]["model.layers.1.self_attn.q_proj.weight"] == facts


def test_inspect_shows_adapters_and_bundles(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact.adapter(root / "lora", "lora", 3)
    assert call("inspect", root / "lora") == 0
    said = capsys.readouterr().out
    assert "LoRA" in said and "1100 x 128" in said and "self_attn.q_proj" in said
    assert call("inspect", root / "lora", "--json") == 0
    modules = json.loads(capsys.readouterr().out)["modules"]
    up = {"kind": "linear", "rank": 3, "scale": 2.0, "dtype": "F32"}
    assert modules["model.layers.0.mlp.up_proj.weight"] == up and len(modules) == 4
    steps = "base: base\nsources: [a, b]\nsteps: [task_arithmetic]\nresult: {form: bundle, kind: tall}\n"
    (root / "bundle.yaml").write_text(steps)
    assert call("run", root / "bundle.yaml", root / "kept", "--threads", 1) == 0
    capsys.readouterr()
    assert call("inspect", root / "kept") == 0
    assert "m0, m1" in capsys.readouterr().out
    assert call("inspect", root / "kept", "--json") == 0
    assert json.loads(capsys.readouterr().out)["members"] == ["m0", "m1"]


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--device", "tpu", "'tpu' is no device"),
        ("--device", "mps", "'mps' is no device"),
        ("--device", "cuda:99", "There is no cuda:99"),
        ("--threads", "0", "'0' is no number of threads"),
        ("--threads", "-2", "'-2' is no number of threads"),
    ],
)
def test_a_device_or_threads_that_cannot_be_are_refused_by_name(
    root: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, says: str
) -> None:
    with pytest.raises(SystemExit) if option == "--threads" else nullcontext():
        assert call("run", root / "recipe.yaml", root / "out", f"{option}={value}") == 2
    assert says in capsys.readouterr().err
    assert not list(root.glob("out*"))


def test_a_plan_for_people_has_classes_settings_and_costs(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert call("plan", root / "recipe.yaml", "--memory", "96MiB") == 0
    said = capsys.readouterr().out
    assert "dare → ties" in said
    for words in ("linear", "weight 1/0.5", "density 0.4", "memory at the peak", "writes"):
        assert words in said


def test_inspect_for_people_tells_architecture_classes_and_ties(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    assert call("inspect", root / "a") == 0
    short = capsys.readouterr().out
    assert "tied" in short
    assert "norm" in short
    assert "model.layers" not in short
    assert call("inspect", root / "a", "--tensors") == 0
    assert "model.layers.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024),
        ("512MiB", 512 << 20),
        ("2GB", 2_000_000_000),
        ("1.5g", 1_500_000_000),
        ("64 kib", 65536),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert bytes_of(text) == size


@pytest.mark.parametrize("size", ["lots", "9" * 309, "8388608TiB"])
def test_a_size_that_is_none_is_refused_by_name(
    root: Path, capsys: pytest.CaptureFixture[str], size: str
) -> None:
    with pytest.raises(SystemExit):
        call("plan", root / "recipe.yaml", "--memory", size)
    assert f"'{size[:40]}' is no size" in capsys.readouterr().err


def test_names_are_shown_as_they_are_whatever_stands_in_them(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    name = "runs[best] :car: [/end]"
    (root / "a").rename(root / name.replace("/", "|"))
    name = name.replace("/", "|")
    (root / "recipe.yaml").write_text(RECIPE.replace("model: a}", f"model: '{name}'}}"))
    assert call("plan", root / "recipe.yaml") == 0
    assert name in capsys.readouterr().out


def test_ctrl_c_ends_with_one_word(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("merge.__main__.make_plan", stopped)
    assert call("run", root / "recipe.yaml", root / "out") == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("method: ties", "method: tees"), "did you mean 'ties'"),
        (("density: 0.4", "density: 4"), "/steps/1/density"),
        (("model: b", "model: missing"), "missing"),
        (("steps:", "stops:"), "did you mean steps"),
    ],
)
def test_a_failure_is_exit_code_2_and_says_what_is_wrong(
    root: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], words: str
) -> None:
    (root / "recipe.yaml").write_text(RECIPE.replace(*change))
    assert call("run", root / "recipe.yaml", root / "out") == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (root / "out").exists()


@pytest.mark.parametrize(("recipe", "says"), [("none.yaml", "No such file"), (".", "Is a directory")])
def test_a_recipe_that_cannot_be_read_is_told_by_name(
    root: Path, capsys: pytest.CaptureFixture[str], recipe: str, says: str
) -> None:
    assert call("plan", root / recipe) == 2
    assert capsys.readouterr().err.startswith(f"error: {root / recipe}: {says}")
