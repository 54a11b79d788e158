from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merge.contract.factors import Factors
from tests.merge.methods.adapters.made import change, close, drawn, factors, nothing, product, unit
from tests.merge.whole import merge_one

RULES = ("sum", "ties", "tsv", "iso", "tsv_iso")
TURNED = ("tsv", "iso", "tsv_iso")
RANKS = (3, 1, 2, 4, 2, 1, 3, 2)
WEIGHTS = (1.0, -0.5, 2.0, 0.25, 1.0, 1.5, -1.0, 0.75)
HALF: dict[str, Any] = {"rule": "ties", "density": 0.5}
Array = np.ndarray


def unequal(count: int, shape: tuple[int, int] = (24, 30)) -> list[Factors]:
    return [drawn(1, shape, RANKS[place], seed=place)[0] for place in range(count)]


def diag(*entries: float) -> Tensor:
    return torch.diag(torch.tensor(entries).double())


def in_full(steps: list[tuple[str, dict[str, Any]]], parts: list[Factors], weights: list[float]) -> Tensor:
    """Methods on whole matrices, of the products."""
    base = torch.zeros_like(product(parts[0]))
    return merge_one(steps, base, [product(part) for part in parts], weights=weights)


def cores_of(parts: list[Factors], flips: int = 0) -> tuple[Array, Array, list[Array]]:
    """Bases (m, p), (n, q) and core matrices by the equations; ``flips`` seeds other signs of the bases."""
    lefts, rights = [], []
    for part in parts:
        u, s, vh = np.linalg.svd(np.asarray(product(part)), full_matrices=False)
        count = int((s > 1e-12 * s[0]).sum())
        lefts.append(u[:, :count] * np.sqrt(s[:count]))
        rights.append(np.sqrt(s[:count])[:, None] * vh[:count])
    u, s, _ = np.linalg.svd(np.concatenate(lefts, axis=1), full_matrices=False)
    _, t, vh = np.linalg.svd(np.concatenate(rights), full_matrices=False)
    u, v = u[:, s > 1e-12 * s[0]], vh[t > 1e-12 * t[0]].T
    if flips:
        draw = np.random.default_rng(flips)
        u, v = u * draw.choice([-1, 1], u.shape[1]), v * draw.choice([-1, 1], v.shape[1])
    return u, v, [u.T @ b @ a @ v for b, a in zip(lefts, rights, strict=True)]


def ties_of(cores: list[Array], weights: list[float], density: float) -> Array:
    """TIES entry by entry."""
    kept = []
    for core in cores:
        count = max(1, int(density * core.size + 1e-9))
        least = np.sort(np.abs(core).ravel())[-count]
        kept.append(np.where(np.abs(core) >= least * (1 - 1e-9), core, 0.0))
    found = np.zeros_like(cores[0])
    for place in np.ndindex(*found.shape):
        terms = [(w * core[place], abs(w)) for core, w in zip(kept, weights, strict=True)]
        vote = np.sign(sum(term for term, _ in terms))
        agreeing = [(term, size) for term, size in terms if term * vote > 0]
        if agreeing:
            found[place] = sum(term for term, _ in agreeing) / sum(size for _, size in agreeing)
    return found


def tsv_of(cores: list[Array], kept: int) -> Array:
    """TSV-Merge by its equations."""
    lefts, values, rights = [], [], []
    for core in cores:
        u, s, vh = np.linalg.svd(core)
        count = min(kept, int((s > 1e-6 * s[0]).sum()))
        lefts.append(u[:, :count])
        values.append(s[:count])
        rights.append(vh[:count].T)
    u, v = (polar(np.concatenate(side, axis=1)) for side in (lefts, rights))
    found: Array = u * np.concatenate(values) @ v.T
    return found


def polar(columns: Array) -> Array:
    u, s, vh = np.linalg.svd(columns, full_matrices=False)
    kept = s > 1e-6 * s[0]
    found: Array = u[:, kept] @ vh[kept]
    return found


def iso_of(core: Array) -> Array:
    s = np.linalg.svd(core)[1]
    found: Array = polar(core) * s[s > 1e-6 * s[0]].mean()
    return found


def reference(
    parts: list[Factors], weights: list[float], rule: str, density: float, flips: int = 0
) -> Tensor:
    u, v, cores = cores_of(parts, flips)
    told = [w * core for core, w in zip(cores, weights, strict=True)]
    merged: Array = np.sum(told, axis=0)
    if rule == "ties":
        merged = ties_of(cores, weights, density)
    if rule.startswith("tsv"):
        merged = tsv_of(told, min(len(u), len(v)) // len(parts))
    if rule.endswith("iso"):
        merged = iso_of(merged)
    return torch.from_numpy(u @ merged @ v.T)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_agrees_with_the_equations_in_float64(rule: str, count: int) -> None:
    parts, weights = unequal(count), list(WEIGHTS[:count])
    found = change("core_space", parts, weights, rule=rule, density=0.3)
    assert close(found, reference(parts, weights, rule, 0.3))


def test_worked_examples_of_directions() -> None:
    """diag(2, 0) and diag(0, 1) are orthogonal; of two changes in one direction, each gets half of it."""
    parts = [unit([1, 0], [2, 0]), unit([0, 1], [0, 1])]
    for rule in ("sum", "tsv", "ties"):
        assert close(change("core_space", parts, rule=rule, density=1.0), diag(2, 1)), rule
    for rule in ("iso", "tsv_iso"):
        assert close(change("core_space", parts, rule=rule), diag(1.5, 1.5)), rule
    same = [unit([1, 0], [2, 0]), unit([3, 0], [2, 0])]
    assert close(change("core_space", same), diag(4, 0)), "(2 + 6) / 2"
    assert close(change("core_space", same, rule="sum"), diag(8, 0))
    assert close(change("core_space", same, rule="iso"), diag(8, 0)), "one direction has its own mean"
    assert close(change("core_space", same, rule="ties"), diag(4, 0)), "the mean of 2 and 6"
    assert close(change("core_space", same, scale=0.5), diag(2, 0))


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [((1, 1), 3.0), ((1, 4), -1.0), ((1, 3), 0.0), ((1, -1), 2.0), ((0, 2), -1.0), ((0, 0), 0.0)],
)
def test_worked_examples_of_votes(weights: tuple[float, float], wanted: float) -> None:
    """3 and -1 in one direction: 3 wins; with four times the weight -1 does; three times is even."""
    parts = [unit([1, 0], [0, 3]), unit([1, 0], [0, -1])]
    found = change("core_space", parts, weights, rule="ties")
    assert close(found, torch.tensor([[0, wanted], [0, 0]]).double())


@pytest.mark.parametrize("shape", [(24, 30), (30, 24), (9, 11), (5, 7)], ids=str)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_rules_that_see_no_basis_are_those_on_whole_matrices(shape: tuple[int, int], count: int) -> None:
    """Also where all ranks are more than the shorter side, and where sources are more than it has rows."""
    parts, weights = unequal(count, shape), list(WEIGHTS[:count])
    full: dict[str, list[tuple[str, dict[str, Any]]]] = {
        "sum": [("task_arithmetic", {})],
        "tsv": [("tsv_m", {})],
        "iso": [("iso_c", {})],
    }
    for rule, steps in full.items():
        assert close(change("core_space", parts, weights, rule=rule), in_full(steps, parts, weights)), rule


@pytest.mark.parametrize("rule", TURNED)
def test_means_are_taken_over_the_directions_that_there_are(rule: str) -> None:
    """Copies beside another adapter have fewer directions than ranks: no others are raised."""
    one, other = drawn(2, (24, 30), 2)
    parts = [one, one, other]
    found = change("core_space", parts, rule=rule)
    values = torch.linalg.svdvals(found)
    assert int((values > 1e-9 * values[0]).sum()) == 4
    if rule != "tsv":
        whole = product(one) * 2 + product(other) if rule == "iso" else change("core_space", parts)
        assert float(values[0]) == pytest.approx(float(torch.linalg.svdvals(whole).sum()) / 4)


def gauged(part: Factors, seed: int) -> Factors:
    """The same product from other factors, of quite another size."""
    turn = torch.randn(part.rank, part.rank, generator=torch.Generator().manual_seed(seed)).double() * 1e3
    return Factors(part.left @ turn, torch.linalg.solve(turn, part.right))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 3, 8])
def test_how_a_product_is_factored_does_not_matter(rule: str, count: int) -> None:
    parts = unequal(count)
    others = [gauged(part, seed) for seed, part in enumerate(parts)]
    settings: dict[str, Any] = {"rule": rule, "density": 0.4}
    assert close(change("core_space", others, **settings), change("core_space", parts, **settings), 1e-8)


def test_as_published_it_matters_to_the_vote_alone() -> None:
    parts = unequal(3)
    others = [parts[0], Factors(parts[1].left * 40, parts[1].right / 40), parts[2]]
    for rule in RULES:
        settings: dict[str, Any] = {"rule": rule, "density": 0.4, "balance": False}
        first, second = (change("core_space", each, **settings) for each in (parts, others))
        assert close(first, second) == (rule != "ties"), rule


@pytest.mark.parametrize("flips", [1, 2, 3])
def test_the_vote_does_not_see_the_signs_of_the_bases(flips: int) -> None:
    parts, weights = unequal(4), list(WEIGHTS[:4])
    (u, _, cores), (flipped, _, others) = cores_of(parts), cores_of(parts, flips)
    assert not np.allclose(u, flipped) and not np.allclose(cores[0], others[0])
    wanted = reference(parts, weights, "ties", 0.3, flips)
    assert close(change("core_space", parts, weights, rule="ties", density=0.3), wanted)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_copies_of_an_adapter(count: int) -> None:
    (part,) = drawn(1, (24, 30), 3)
    copies, whole = [gauged(part, seed) for seed in range(count)], product(part)
    assert close(change("core_space", copies), whole, 1e-8)
    assert close(change("core_space", copies, rule="ties", density=1.0), whole, 1e-8)
    assert close(change("core_space", copies, rule="sum"), count * whole, 1e-8)
    even = torch.from_numpy(iso_of(np.asarray(whole)))
    assert close(change("core_space", copies, rule="iso"), count * even, 1e-8)
    assert close(change("core_space", copies, rule="tsv_iso"), even, 1e-8)
    assert factors("core_space", copies).rank == 3


@pytest.mark.parametrize("rule", ["sum", "ties", "iso"])
def test_an_adapter_that_changes_nothing_is_not_heard(rule: str) -> None:
    parts = unequal(2)
    wanted = change("core_space", parts, rule=rule)
    zero = Factors(torch.zeros(24, 4).double(), drawn(1, (24, 30), 4)[0].right)
    for silent in (zero, nothing(zero)):
        assert close(change("core_space", [parts[0], silent, parts[1]], rule=rule), wanted)
        assert factors("core_space", [silent], rule=rule).rank == 0
    assert close(change("core_space", [*parts, drawn(1, (24, 30), 2, 9)[0]], [1, 1, 0], rule=rule), wanted)


@pytest.mark.parametrize("rule", ["sum", "ties", "iso"])
def test_opposites_leave_nothing_but_rounding(rule: str) -> None:
    (part,) = drawn(1, (12, 9), 3)
    opposite = gauged(Factors(-part.left, part.right), 3)
    found = change("core_space", [part, opposite], rule=rule, density=1.0)
    assert float(found.norm()) < 1e-8 * float(product(part).norm())


@pytest.mark.parametrize("copies", [1, 2])
def test_directions_that_are_rounding_take_no_share_of_the_density(copies: int) -> None:
    """Adapters of rank 2 stored with four directions, or twice, vote as those that are stored with two."""
    parts = drawn(2, (12, 9), 2)
    others = [each.left for each in drawn(2, (12, 9), 2, seed=1)]
    longer = [
        Factors(torch.cat([each.left - other, other], dim=1), torch.cat([each.right, each.right]))
        for each, other in zip(parts, others, strict=True)
    ]
    stored = [gauged(each, seed) for seed in range(copies) for each in longer]
    assert factors("core_space", stored, **HALF).rank == 4
    assert close(change("core_space", stored, **HALF), change("core_space", parts, **HALF), 1e-7)


def test_entries_that_are_rounding_have_no_vote() -> None:
    """Adapters without a direction in common keep what is theirs, as they do entry by entry in TIES."""
    (turn,) = drawn(1, (20, 16), 20)
    left, _, right = torch.linalg.svd(product(turn), full_matrices=False)
    pieces = [(left[:, at : at + 2] * (3 + at), right[at : at + 2]) for at in range(0, 16, 2)]
    parts = [gauged(Factors(*piece), seed) for seed, piece in enumerate(pieces)]
    whole = change("core_space", parts, rule="sum")
    assert close(change("core_space", parts, rule="ties", density=1.0), whole, 1e-8)


def test_an_adapter_that_changes_nothing_counts_among_those_that_share_the_directions() -> None:
    (part,) = drawn(1, (6, 8), 3)
    for parts in ([part, nothing(part)], [nothing(part), part, nothing(part)]):
        found = factors("core_space", parts)
        assert close(product(found), in_full([("tsv_m", {})], parts, [1.0] * len(parts)))


def test_density_belongs_to_its_source_and_the_largest_entry_always_stays() -> None:
    parts = [Factors(diag(9, 3), diag(1, 1)), unit([0, 1], [0, 1])]
    assert close(change("core_space", parts, rule="ties", density=(0.01, 1.0)), diag(9, 1))
    assert close(change("core_space", parts, rule="ties", density=(1.0, 1.0)), diag(9, 2))
    among = [nothing(parts[0]), *parts[::-1]]
    assert close(change("core_space", among, rule="ties", density=(0.5, 1.0, 0.01)), diag(9, 1))
