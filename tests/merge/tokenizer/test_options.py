"""How new rows are made, option by option: what is near, what it weighs, noise and scale, good tokens."""

from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from merge.errors import RecipeInvalid
from merge.recipe.recipe import recipe_from
from merge.tokenizer.approximate import lengths
from merge.tokenizer.neighbours import nearest_rows
from merge.tokenizer.trained import under_trained
from tests import tiny
from tests.merge.tokenizer import small
from tests.merge.tokenizer.small import EMBED, HEAD
from tests.merge.tokenizer.small import donated as recipe
from tests.merge.tokenizer.test_approximate import Held, normal


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model and a donor that also knows ``the`` and ``an``."""
    small.speaker(tmp_path / "m", merges=[("t", "h")], expert=1)
    merges = [("a", "n"), ("t", "h"), ("th", "e")]
    small.speaker(tmp_path / "donor", merges=merges, expert=2, hidden=32)
    return tmp_path


def test_cosines_choose_by_direction_and_are_the_weights() -> None:
    atoms, targets = normal(40, 8), normal(5, 8, seed=5)
    atoms[::2] *= 30  # far away, but in no other direction
    found = nearest_rows(targets, Held(atoms), lengths(Held(atoms)), 4, "cosine")
    for row in range(5):
        cosines = torch.nn.functional.cosine_similarity(atoms.double(), targets[row].double()[None])
        near = cosines.argsort(descending=True)[:4]
        weights = cosines[near].clamp(min=0) / cosines[near].clamp(min=0).sum()
        wanted = dict(zip(near.tolist(), weights.tolist(), strict=True))
        pairs = zip(found.chosen[row].tolist(), found.amounts[row].tolist(), strict=True)
        assert dict(pairs) == pytest.approx(wanted, rel=1e-5, abs=1e-9)


def test_cosines_below_zero_weigh_nothing_and_alone_all_alike() -> None:
    atoms = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [-2.0, -1.0]])
    found = nearest_rows(torch.tensor([[1.0, 0.0]]), Held(atoms), lengths(Held(atoms)), 2, "cosine")
    assert found.amounts.tolist() == [[1.0, 0.0]]
    away = nearest_rows(torch.tensor([[1.0, 0.0]]), Held(-atoms[:1]), lengths(Held(atoms[:1])), 2, "cosine")
    assert away.amounts.tolist() == [[1.0]]


@pytest.mark.parametrize(("k", "width"), [(4, 8), (12, 8)])
@pytest.mark.parametrize("weighting", ["barycentric", "least_squares"])
def test_fitted_weights_are_the_nearest_combination(weighting: str, k: int, width: int) -> None:
    atoms, targets = normal(40, width), normal(5, width, seed=5)
    found = nearest_rows(targets, Held(atoms), lengths(Held(atoms)), k, weighting=weighting)
    for row in range(5):
        points = atoms[found.chosen[row]].double().numpy()
        goal = targets[row].double().numpy()
        if weighting == "least_squares":
            wanted, *_ = numpy.linalg.lstsq(points.T, goal, rcond=None)
        else:  # Lagrange's conditions
            system = numpy.block([[points @ points.T, numpy.ones((k, 1))], [numpy.ones((1, k)), 0.0]])
            wanted = (numpy.linalg.pinv(system) @ numpy.append(points @ goal, 1.0))[:k]
            assert float(found.amounts[row].sum()) == pytest.approx(1)
        assert found.amounts[row].numpy() == pytest.approx(wanted, abs=1e-8)
    assert (float(found.errors.max()) < 1e-9) == (k > width)


def test_doubled_neighbours_share_their_weight() -> None:
    atoms = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    for weighting in ("barycentric", "least_squares"):
        found = nearest_rows(
            torch.tensor([[0.5, 0.5]]), Held(atoms), lengths(Held(atoms)), 3, weighting=weighting
        )
        pairs = dict(zip(found.chosen[0].tolist(), found.amounts[0].tolist(), strict=True))
        assert pairs == pytest.approx({0: 0.25, 1: 0.25, 2: 0.5})


@pytest.mark.parametrize(
    ("pieces", "embed", "head"),
    [
        ("mean", (1 / 2, 1 / 2), (1 / 2, 1 / 2)),
        ("sum", (1, 1), (1, 1)),
        ("weighted_mean", (1 / 3, 2 / 3), (2 / 3, 1 / 3)),
        ("first_last", (0, 1), (1, 0)),
    ],
)
def test_pieces_weigh_as_they_are_told(
    root: Path, pieces: str, embed: tuple[float, float], head: tuple[float, float]
) -> None:
    out, report = small.merged(root, recipe("subword", pieces=pieces))
    for tensor, (first, last) in ((EMBED, embed), (HEAD, head)):
        ours, found = small.rows(root / "m", tensor), small.rows(out, tensor)
        torch.testing.assert_close(found["the"], first * ours["th"] + last * ours["e"])
        torch.testing.assert_close(found["an"], first * ours["a"] + last * ours["n"])
        assert torch.equal(found["th"], ours["th"])
    made = report.manifest["vocabulary"].get("made", [])
    assert [each["method"] for each in made] == ([] if pieces == "mean" else ["subword", "subword"])


@pytest.mark.parametrize("method", ["omp", "subword", "mean", "zero"])
def test_new_rows_are_scaled_and_get_noise_and_the_others_do_not(root: Path, method: str) -> None:
    plain, scaled, noisy, again, seeded = (
        small.merged(root, recipe(method, **more) | seed, name)[0]
        for name, more, seed in (
            ("plain", {}, {}),
            ("scaled", {"scale": 0.5}, {}),
            ("noisy", {"scale": 0.5, "noise": 0.25}, {}),
            ("again", {"scale": 0.5, "noise": 0.25}, {}),
            ("seeded", {"scale": 0.5, "noise": 0.25}, {"seed": 5}),
        )
    )
    assert (noisy / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    ours = small.rows(root / "m")
    rows = {path.name: small.rows(path) for path in (plain, scaled, noisy, seeded)}
    for token in ("the", "an"):
        torch.testing.assert_close(rows["scaled"][token], rows["plain"][token] / 2)
        drift = rows["noisy"][token] - rows["scaled"][token]
        assert 0.05 < float(drift.std()) < 0.3 and not torch.equal(
            rows["seeded"][token], rows["noisy"][token]
        )
    assert not torch.equal(
        rows["noisy"]["the"] - rows["scaled"]["the"], rows["noisy"]["an"] - rows["scaled"]["an"]
    )
    assert all(torch.equal(rows["noisy"][token], row) for token, row in ours.items())


def test_rows_that_training_never_reached_are_found() -> None:
    embed, head = normal(600, 16), normal(600, 16, seed=1)
    idle = normal(16, seed=2)
    embed[[5, 9]], embed[[100, 200]] = idle, 1.2 * idle + 0.01 * normal(2, 16, seed=3)
    embed[300] *= 1e-4
    assert under_trained(Held(embed), None, []) == frozenset()
    assert under_trained(Held(embed), None, [5, 9]) >= {5, 9, 100, 200}
    found = under_trained(Held(embed), Held(head), [5, 9])
    assert found >= {5, 9, 100, 200, 300} and len(found) < 17


def test_ill_trained_tokens_are_no_material(tmp_path: Path) -> None:
    """The donor's new token is a token of reserve in all but its row: with it the answer is that row."""
    marks = (*tiny.SPECIAL, "<|reserved_1|>")
    small.speaker(tmp_path / "m", added=marks, expert=1)
    small.speaker(tmp_path / "donor", added=marks, merges=[("a", "n")], expert=2, hidden=32)
    rows = small.rows(tmp_path / "donor")
    values = {"an": 2 * rows["<|reserved_1|>"] + 0.1 * rows["q"]}
    for tensor in (EMBED, HEAD):
        small.set_rows(tmp_path / "donor", values, tensor)
    ours = small.rows(tmp_path / "m")
    told = {}
    for asked in (False, True):
        out, report = small.merged(tmp_path, recipe("omp", k=2, well_trained=asked), f"out{asked}")
        told[asked] = report.manifest["vocabulary"]["made"][0]["shared"]
        wanted = 2 * ours["<|reserved_1|>"] + 0.1 * ours["q"]
        assert torch.allclose(small.rows(out)["an"], wanted, atol=1e-5) is not asked
        assert torch.equal(small.rows(out)["<|reserved_1|>"], ours["<|reserved_1|>"])
    assert told[True] < told[False]


def test_a_donor_that_lends_words_only_has_the_models_lend_each_other_rows(tmp_path: Path) -> None:
    small.speaker(tmp_path / "m", merges=[("t", "h")], expert=1)
    small.speaker(tmp_path / "n", merges=[("a", "n")], expert=2)
    merges = [("t", "h"), ("a", "n"), ("th", "e")]
    small.speaker(tmp_path / "donor", merges=merges, expert=3, hidden=32)
    sources = [{"id": "m", "model": "m"}, {"id": "n", "model": "n"}]
    document = recipe("lend") | {"sources": sources, "steps": ["linear"]}
    plan = small.plan_of(tmp_path, document)
    assert plan.weight_files("donor") == ()
    out, _ = small.merged(tmp_path, document)
    m, n, found = (small.rows(tmp_path / name) for name in ("m", "n", "out"))
    torch.testing.assert_close(found["th"], m["th"])
    torch.testing.assert_close(found["an"], n["an"])
    torch.testing.assert_close(found["x"], (m["x"] + n["x"]) / 2)
    assert not found["the"].any()
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "donor" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "more",
    [
        {"approximate": "omp", "distance": "cosine"},
        {"approximate": "subword", "weighting": "barycentric"},
        {"approximate": "omp", "pieces": "sum"},
        {"approximate": "mean", "well_trained": True},
        {"noise": 0.1},
        {"approximate": "lend", "noise": 0.1},
        {"scale": 2.0},
    ],
)
def test_an_option_of_another_way_is_refused_by_its_name(more: dict[str, Any]) -> None:
    field = next(name for name in more if name != "approximate")
    with pytest.raises(RecipeInvalid) as caught:
        recipe_from({"sources": ["a"], "steps": ["linear"], "tokenizer": {"source": "m0", **more}})
    (finding,) = caught.value.findings
    assert finding.pointer == f"/tokenizer/{field}" and "it needs approximate" in finding.message
