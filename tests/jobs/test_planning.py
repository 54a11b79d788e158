"""Planning against a Hub that serves a folder over its real protocol: all findings, pinned, and no
weights.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file

from hub.errors import HubError
from hub.folder_server import FolderHub
from hub.snapshot import Hub, RepoFile, Snapshot
from jobs import planning
from jobs.asking import Asking
from jobs.errors import ConfirmationNeeded, PlanTimeout
from jobs.kinds import plan_order
from jobs.planning import Planned, Planner
from jobs.request import JobRequest
from jobs.submit import check_publishing
from merge.checkpoint.tokenizer import READER_FILES
from merge.errors import PlanRefused
from merge.recipe.recipe import recipe_from
from tests import tiny
from tests.factories import make_request
from tests.merge.checkpoint.gguf.test_model import saved
from tests.merge.checkpoint.gguf.write import F32, Q8_0, write
from worker.inputs import wanted_files, wanted_names

TOKENS = {
    "hf_owner": {"name": "owner", "role": "write", "orgs": ["org", "closed"]},
    "hf_stranger": {"name": "stranger", "role": "read", "orgs": []},
}
LORA = {"model.layers.0.self_attn.q_proj": (16, 16)}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, two experts, a private copy, one of another width and vocabulary, a pickle, a LoRA."""
    root = tmp_path_factory.mktemp("hub")
    for number, name in enumerate(("base", "math", "code")):
        tiny.llama(root / "org" / name, expert=number, shards=2)
    tiny.llama(root / "closed" / "secret", expert=3)
    tiny.llama(root / "closed" / "gated", expert=4)
    tiny.llama(root / "org" / "wide", hidden=32)
    tiny.lora(root / "org" / "lora", LORA)
    tiny.llama(root / "org" / "pickled")
    (root / "org" / "pickled" / "model.safetensors").unlink()
    (root / "org" / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    for seed, name in enumerate(("one", "two")):
        folder = root / "org" / "styles" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"unet.weight": torch.full((4, 4), float(seed))}, folder / f"{name}.safetensors")
    return root


@dataclass
class Desk:
    hub: FolderHub
    planner: Planner
    roots: Path

    def plan(
        self, *models: str, base: str | None = "org/base", token: str | None = None, **more: Any
    ) -> Planned:
        sources = [{"id": f"m{number}", "model": model} for number, model in enumerate(models)]
        for number, adapter in more.pop("adapters", {}).items():
            sources[number]["adapter"] = adapter
        recipe = {"base": base, "sources": sources, "steps": [{"method": more.pop("method", "linear")}]}
        tenant, deadline = more.pop("tenant", "ten_a"), more.pop("deadline", 20.0)
        return self.planner.plan(recipe_from({**recipe, **more}), token, tenant, deadline)

    def refusal(self, *models: str, **more: Any) -> list[tuple[str, str | None, str | None]]:
        with pytest.raises(PlanRefused) as refused:
            self.plan(*models, **more)
        return [
            (each.code, each.model, each.pointer)
            for each in refused.value.findings
            if each.severity == "error"
        ]


@pytest.fixture
def desk(models: Path, tmp_path: Path) -> Iterator[Desk]:
    roots = tmp_path / "roots"
    roots.mkdir()
    with FolderHub(models, TOKENS).serve() as hub:
        hub.mark("closed/secret", private=True)
        hub.mark("closed/gated", gated=True)

        def factory(token: str | None) -> Hub:
            return Hub(hub.url, token, patience=0.5)

        planner = Planner(factory, [roots], 1 << 30)
        yield Desk(hub, planner, roots)
        planner.close()


def test_models_are_pinned_and_not_one_byte_of_weights_is_served(desk: Desk) -> None:
    planned = desk.plan("org/math", "org/code@main")
    heads = [desk.hub.head(f"org/{name}") for name in ("base", "math", "code")]
    assert [each.role for each in planned.inputs] == ["base", "m0", "m1"]
    assert [each.snapshot.sha for each in planned.inputs if each.snapshot] == heads
    assert planned.recipe.base == f"org/base@{heads[0]}"
    assert [source.model for source in planned.recipe.sources] == [
        f"org/math@{heads[1]}",
        f"org/code@{heads[2]}",
    ]
    assert planned.summary["inputs"][2]["requested_revision"] == "main"
    assert planned.summary["estimate"]["download_bytes"] == sum(each.size_bytes for each in planned.inputs)
    assert desk.hub.stats.bytes["weight"] == 0 < desk.hub.stats.bytes["header"]


def test_planning_the_pinned_recipe_again_gives_the_same_digest(desk: Desk) -> None:
    planned = desk.plan("org/math", "org/code")
    again = desk.planner.plan(planned.recipe, None, "ten_a", 20.0)
    assert again.plan.digest == planned.plan.digest
    assert again.recipe == planned.recipe


def test_a_moved_branch_is_followed_and_a_commit_is_not_fetched_twice(desk: Desk) -> None:
    desk.plan("org/math")
    before = sum(desk.hub.stats.requests.values())
    desk.plan("org/math")
    assert sum(desk.hub.stats.requests.values()) == before


def test_every_missing_model_is_named_at_once(desk: Desk) -> None:
    assert desk.refusal("org/math", "org/nothing", "org/code@nowhere", base="org/gone") == [
        ("repo_not_found", "base", "/base"),
        ("repo_not_found", "m1", "/sources/1/model"),
        ("revision_not_found", "m2", "/sources/2/model"),
    ]


def test_a_misspelt_method_is_refused_without_asking_the_hub(desk: Desk) -> None:
    found = desk.refusal("org/math", method="liner")
    assert found[0][0] == "unknown_method"
    assert sum(desk.hub.stats.requests.values()) == 0


def test_pickles_and_bare_adapters_are_refused_by_name(desk: Desk) -> None:
    assert desk.refusal("org/pickled", "org/lora") == [
        ("pickle_refused", "m0", "/sources/0/model"),
        ("model_name_invalid", "m1", "/sources/1/model"),
    ]


def test_other_shapes_are_found_from_headers(desk: Desk) -> None:
    found = desk.refusal("org/math", "org/wide")
    assert {"m1"} == {model for _, model, _ in found}
    assert desk.hub.stats.bytes["weight"] == 0 < desk.hub.stats.bytes["header"]


def test_an_adapter_is_pinned_beside_its_model(desk: Desk) -> None:
    planned = desk.plan("org/math", "org/code", adapters={0: "org/lora"})
    assert [each.role for each in planned.inputs] == ["base", "m0", "m0+adapter", "m1"]
    assert planned.recipe.sources[0].adapter == f"org/lora@{desk.hub.head('org/lora')}"
    attached = planned.plan.models["m0"].adapter
    assert attached is not None and list(attached.pairs) == ["model.layers.0.self_attn.q_proj.weight"]


def test_a_donor_is_pinned_and_another_width_is_welcome(desk: Desk) -> None:
    choice = {"source": "donor", "donor": "org/wide", "approximate": "omp", "pad_to_multiple_of": 64}
    planned = desk.plan("org/math", base=None, method="passthrough", tokenizer=choice)
    assert [each.role for each in planned.inputs] == ["m0", "donor"]
    assert planned.recipe.tokenizer.donor == f"org/wide@{desk.hub.head('org/wide')}"
    assert planned.summary["vocabulary"]["ground"] == "donor"
    again = desk.planner.plan(planned.recipe, None, "ten_a", 20.0)
    assert again.plan.digest == planned.plan.digest
    ((_, model, pointer),) = desk.refusal("org/math", tokenizer={**choice, "donor": "org/gone"})
    assert (model, pointer) == ("donor", "/tokenizer/donor")


def test_a_model_that_is_no_adapter_is_refused_as_one(desk: Desk) -> None:
    ((code, model, pointer),) = desk.refusal("org/math", adapters={0: "org/code"})
    assert (code, model, pointer) == ("adapter_refused", "m0", "/sources/0/adapter")


def test_private_and_gated_models_need_the_right_token_and_are_remarked_upon(desk: Desk) -> None:
    assert desk.refusal("closed/secret", "closed/gated") == [
        ("repo_not_found", "m0", "/sources/0/model"),
        ("gated", "m1", "/sources/1/model"),
    ]
    planned = desk.plan("closed/secret", "closed/gated", token="hf_owner")
    remarks = {(each.code, each.model) for each in planned.findings}
    assert {("input_private", "m0"), ("input_gated", "m1"), ("license_missing", "m0")} <= remarks
    private = make_request(output={"repo": "org/out"})
    public = make_request(output={"repo": "org/out", "private": False})
    confirmed = make_request(output={"repo": "org/out", "private": False, "confirm_public": True})
    check_publishing(private, planned.inputs)
    check_publishing(confirmed, planned.inputs)
    with pytest.raises(ConfirmationNeeded, match="closed/gated, closed/secret"):
        check_publishing(public, planned.inputs)


def test_what_one_token_has_read_is_not_shown_to_another(desk: Desk) -> None:
    desk.plan("closed/secret", token="hf_owner")
    assert desk.refusal("closed/secret", token="hf_stranger")[0][0] == "repo_not_found"
    assert desk.refusal("closed/secret", tenant="ten_b")[0][0] == "repo_not_found"


def test_a_hub_that_does_not_answer_is_no_refusal(desk: Desk) -> None:
    desk.hub.url = "http://127.0.0.1:9"
    with pytest.raises(HubError) as error:
        desk.plan("org/math")
    assert error.value.retryable


def test_planning_ends_at_its_deadline(desk: Desk) -> None:
    held = threading.Event()

    def slow(token: str | None) -> Any:
        class Slow:
            def pin(self, repo: str, revision: str | None) -> None:
                held.wait(5)

        return Slow()

    planner = Planner(slow, [], 1 << 30)
    with pytest.raises(PlanTimeout, match=r"0\.1 s"):
        planner.plan(recipe_from(_RECIPE), None, "ten_a", 0.1)
    held.set()
    planner.close()


def test_all_looks_of_an_order_together_end_at_its_deadline() -> None:
    class Slow:
        def pin(self, repo: str, revision: str | None, repo_type: str = "model") -> Snapshot:
            time.sleep(0.2)
            return Snapshot(repo, revision, "0" * 40, False, False, None, (), (texts,), repo_type)

    texts = RepoFile("texts.txt", 4, "0" * 40)
    planner = Planner(lambda token: cast(Hub, Slow()), [], 1 << 30)
    sets = [
        {"name": name, "kind": "perplexity", "data": {"hub": f"org/{name}", "file": "texts.txt"}}
        for name in ("a", "b", "c", "d")
    ]
    order = JobRequest.model_validate({"recipe": _RECIPE, "evaluate": {"sets": sets}})
    with pytest.raises(PlanTimeout, match=r"within 0\.5 s"):
        plan_order(order, Asking(planner, None, "ten_a", 0.5))
    planner.close()


_RECIPE = {"sources": ["org/math"], "steps": [{"method": "linear"}]}


def test_folders_inside_the_roots_work_like_repositories(desk: Desk, models: Path) -> None:
    shutil.copytree(models / "org" / "math", desk.roots / "mine")
    shutil.copytree(models / "org" / "lora", desk.roots / "lora")
    planned = desk.plan("mine", str(desk.roots / "mine"), adapters={1: "./lora"})
    assert [each.folder for each in planned.inputs if each.role == "m0"] == [desk.roots / "mine"]
    assert [source.model for source in planned.recipe.sources] == ["mine", str(desk.roots / "mine")]
    assert planned.inputs[1].row()["kind"] == "folder"
    assert desk.refusal("absent") == [("model_name_invalid", "m0", "/sources/0/model")]


def test_one_file_of_a_repository_is_a_model_and_only_it_is_looked_at(desk: Desk) -> None:
    names = [f"org/styles:checkpoints/{name}.safetensors" for name in ("one", "two")]
    planned = desk.plan(*names, base=None)
    assert [each.inside for each in planned.inputs] == [name.partition(":")[2] for name in names]
    shas = {each.snapshot.sha for each in planned.inputs if each.snapshot}
    assert {source.model.partition(":")[0] for source in planned.recipe.sources} == {
        f"org/styles@{sha}" for sha in shas
    }
    assert {finding.code for finding in planned.findings} == {"architecture_unknown", "license_missing"}
    assert desk.plan(*(s.model for s in planned.recipe.sources), base=None).plan.digest == planned.plan.digest
    wanted = [wanted_files(e.role, e.snapshot, planned.plan, e.inside) for e in planned.inputs if e.snapshot]
    assert [each.names for each in wanted] == [(name.partition(":")[2],) for name in names]
    assert {each.prefix for each in wanted} == {"checkpoints/"}


def test_all_that_makes_tokens_of_texts_and_images_is_fetched() -> None:
    assert set(wanted_names((*READER_FILES, "modeling.py", "pytorch_model.bin"), ())) == set(READER_FILES)


def test_what_is_not_inside_a_repository_is_named(desk: Desk) -> None:
    assert desk.refusal("org/styles:nowhere", base=None) == [("file_missing", "m0", "/sources/0/model")]


def test_a_gguf_file_is_planned_from_its_first_bytes(desk: Desk, models: Path) -> None:
    folder = models / "org" / "quants"
    folder.mkdir()
    tensors, config = saved("llama", models / "org" / "whole")
    for name in ("m-F32.gguf", "m-Q8_0.gguf"):
        write(folder / name, "llama", tensors, config, Q8_0 if "Q8" in name else F32)
    planned = desk.plan("org/quants:m-Q8_0.gguf", "org/whole", base=None)
    assert "dequantized" in {finding.code for finding in planned.findings}
    wanted = [wanted_files(e.role, e.snapshot, planned.plan, e.inside) for e in planned.inputs if e.snapshot]
    assert wanted[0].names == ("m-Q8_0.gguf",)
    assert planned.plan.outputs[0].dtype == "BF16"
    assert desk.refusal("org/quants", base=None) == [("no_weights", "m0", "/sources/0/model")]


def test_a_model_has_the_name_that_its_recipe_gives_it(desk: Desk) -> None:
    first, second = desk.plan("org/math"), desk.plan("org/math@main", "org/code")
    assert first.plan.models["m0"].label == "org/math"
    assert second.plan.models["m0"].label == "org/math@main"


def test_the_same_recipe_on_the_same_commits_is_planned_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    real = planning.make_plan
    monkeypatch.setattr(planning, "make_plan", lambda *a, **k: made.append("made") or real(*a, **k))
    first = desk.plan("org/math", "org/code")
    assert desk.plan("org/math", "org/code") is first
    desk.plan("org/math", "org/code", tenant="ten_b")
    desk.plan("org/math")
    assert made == ["made"] * 3


def test_a_link_in_a_circle_beside_the_weights_does_no_harm(desk: Desk) -> None:
    tiny.llama(desk.roots / "mine")
    (desk.roots / "mine" / "circle").symlink_to("circle")
    assert desk.plan("org/math", base="./mine").inputs[0].folder == desk.roots / "mine"


def test_a_folder_that_was_touched_is_looked_at_again(desk: Desk) -> None:
    folder = desk.roots / "mine"
    tiny.llama(folder, expert=1)
    first = desk.plan(str(folder), base=None)
    assert desk.plan(str(folder), base=None) is first
    tiny.llama(folder, expert=2)
    os.utime(folder / "config.json", ns=(1, 1))
    assert desk.plan(str(folder), base=None) is not first


def test_a_remembered_plan_tells_no_translation_but_its_own(desk: Desk) -> None:
    recipe = recipe_from({"sources": [{"model": "org/math"}], "steps": [{"method": "linear"}]})
    for notes in (["read as mergekit's"], []):
        planned = desk.planner.plan(recipe, None, "ten_a", 20.0, notes=notes)
        assert list(planned.summary.get("translation") or ()) == notes


def test_a_remembered_plan_is_not_given_where_the_disk_is_too_small(desk: Desk) -> None:
    recipe = recipe_from({"sources": [{"model": "org/math"}], "steps": [{"method": "linear"}]})
    desk.planner.plan(recipe, None, "ten_a", 20.0, scratch_free=1 << 40)
    with pytest.raises(PlanRefused, match="disk"):
        desk.planner.plan(recipe, None, "ten_a", 20.0, scratch_free=10)
