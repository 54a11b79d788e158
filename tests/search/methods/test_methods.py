"""Every method on problems with known answers."""

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from search.clouds import angles, directions, largest_gains, predicted_front, where_unsure
from search.errors import SearchFailed
from search.front import behind, hypervolume, not_dominated
from search.methods.genome import Individual, by_fitness, crossed, mutated
from search.methods.line import vertex
from search.methods.m2n2 import attraction, fitness, mixed
from search.settings import GenomeSettings
from search.surrogate import features
from search.trial import Told
from tests.search.problems import (
    OPTIMUM,
    Problem,
    order,
    searched,
    sphere,
    three_gains,
    three_hills,
    two_hills,
    weights_space,
    zdt1,
)


def distance(result: dict, count: int) -> float:  # type: ignore[type-arg]
    point = np.array([result["best"]["point"][f"x{i}"] for i in range(count)])
    return float(np.abs(point - OPTIMUM[:count]).max())


@pytest.mark.parametrize(
    ("method", "count", "settings", "evals", "error"),
    [
        ("grid", 2, {"levels": 11}, 121, 1e-9),
        ("line", 1, {}, 16, 1e-9),
        ("cma_es", 5, {}, 1500, 1e-3),
        ("tpe", 2, {}, 60, 0.06),
        ("genome", 2, {}, 300, 0.06),
        ("genome", 2, {"plus": True}, 300, 0.06),
        ("m2n2", 2, {"mutation": 0.05}, 200, 0.06),
        ("evo_merging", 4, {"denoise": ["x0", "x1"], "penalty": 0}, 1200, 0.01),
        ("map", 3, {"samples": 10, "verify": 3}, 13, 0.02),
    ],
)
def test_the_top_of_a_sphere_is_found_within_the_budget(
    method: str,
    count: int,
    settings: dict,
    evals: int,
    error: float,  # type: ignore[type-arg]
) -> None:
    ended, result = searched(
        order(method, weights_space(count), settings=settings, evals=evals), count, sphere
    )
    assert distance(result, count) <= error
    assert ended.evaluations <= evals


def test_nsga_reaches_the_front_of_zdt1() -> None:
    asked = order("nsga", weights_space(3), settings={"population": 24}, evals=700, objectives=2)
    _, result = searched(asked, 3, zdt1)
    values = np.array([each["values"] for each in result["front"]])
    share = hypervolume(values, [-1.1, -1.1]) / (1.21 - 1 / 3)  # under f2 = 1 - sqrt(f1), from (1.1, 1.1)
    assert share > 0.85


@pytest.mark.parametrize("mode", ["plain", "bayesian"])
def test_map_meets_a_brute_force_grid_with_a_quarter_of_its_evaluations(mode: str) -> None:
    grid = order("grid", weights_space(2), settings={"levels": 11}, objectives=2)
    _, brute = searched(grid, 2, two_hills)
    few = order("map", weights_space(2), settings={"mode": mode, "verify": 18}, objectives=2, evals=30)
    ended, result = searched(few, 2, two_hills)
    assert ended.evaluations <= brute["evaluations"] / 4
    reference = [-1.3, -1.2]
    ratio = hypervolume(np.array([f["values"] for f in result["front"]]), reference) / hypervolume(
        np.array([f["values"] for f in brute["front"]]), reference
    )
    assert ratio >= 0.95
    first = result["predicted"][0]
    assert [s["weight"] for s in first["recipe"]["sources"]] == [*first["point"].values()]
    predicted = np.array([p["values"] for p in result["predicted"]])
    assert len(not_dominated(predicted)) == len(predicted)
    assert all(error < 1e-9 for error in result["notes"]["surrogate_error"])


@pytest.mark.parametrize(
    ("problem", "mode"), [(three_hills, "plain"), (three_gains, "plain"), (three_gains, "bayesian")]
)
def test_map_meets_a_grid_in_three_objectives_with_a_quarter_of_its_evaluations(
    problem: Problem, mode: str
) -> None:
    reference = [0.0, 0.0, 0.0]
    grid = order("grid", weights_space(3), settings={"levels": 5}, objectives=3, reference=reference)
    _, brute = searched(grid, 3, problem)
    few = order(
        "map",
        weights_space(3),
        settings={"samples": 15, "verify": 16, "mode": mode},
        objectives=3,
        evals=31,
        reference=reference,
    )
    ended, result = searched(few, 3, problem)
    assert ended.evaluations <= brute["evaluations"] / 4 and ended.why == "done"
    assert result["hypervolume"]["reference"] == brute["hypervolume"]["reference"] == reference
    assert result["hypervolume"]["value"] >= 0.95 * brute["hypervolume"]["value"]


def test_map_measures_where_the_reference_is_beaten_and_what_is_preferred() -> None:
    few: dict[str, Any] = {"settings": {"samples": 9, "verify": 6}, "objectives": 2, "evals": 15}
    high = [-0.3, -0.3]
    _, result = searched(order("map", weights_space(2), **few, reference=high), 2, two_hills)
    verified = np.array([t["values"] for t in result["trials"][9:]])
    assert (verified > high).all() and result["hypervolume"]["reference"] == high
    _, result = searched(order("map", weights_space(2), **few, reference=[9, 9]), 2, two_hills)
    assert len(result["trials"]) > 9 and result["hypervolume"]["value"] == 0, "nothing reaches it: the front"
    _, result = searched(order("map", weights_space(2), **few, preference=[0, 1]), 2, two_hills)
    assert result["best"]["values"][1] == pytest.approx(0.0, abs=1e-3)


def test_map_keeps_its_front_where_candidates_fail_within_the_budget() -> None:
    def failing(x: NDArray[np.float64]) -> Told:
        return Told(None, error="no") if x[0] > 0.9 else two_hills(x)

    asked = order("map", weights_space(2), settings={"verify": 50}, objectives=2, evals=24)
    ended, result = searched(asked, 2, failing)
    assert ended.why == "done" and result["failed"] and result["predicted"]


@pytest.mark.parametrize("mode", ["plain", "bayesian"])
@pytest.mark.parametrize("evals", [3, 4, 12])
def test_map_searches_one_number_with_as_few_samples_as_a_quadratic_has_unknowns(
    mode: str, evals: int
) -> None:
    asked = order("map", weights_space(1), settings={"mode": mode}, evals=evals)
    _, result = searched(asked, 1, sphere)
    points = [t["point"]["x0"] for t in result["trials"][: min(3, evals)]]
    assert len(set(points)) == 3 and len(result["predicted"]) == 1
    assert result["predicted"][0]["point"]["x0"] == pytest.approx(OPTIMUM[0], abs=0.01)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("settings", [{}, {"mode": "bayesian"}, {"mode": "nested"}])
def test_map_keeps_what_was_measured_where_failures_leave_too_little_for_quadratics(
    settings: dict[str, Any],
) -> None:
    def failing(x: NDArray[np.float64]) -> Told:
        return two_hills(x) if x[0] == 0 else Told(None, error="no")  # what is left lies on a line

    asked = order("map", weights_space(2), settings=settings, objectives=2, evals=12)
    ended, result = searched(asked, 2, failing)
    assert ended.why == "done" and result["failed"] and result["best"]["values"] and not result["predicted"]
    assert "too few candidates could be scored to predict a front" in result["notes"]["surrogate"]


def test_map_on_one_number_ends_cleanly_where_one_of_three_samples_fails() -> None:
    def failing(x: NDArray[np.float64]) -> Told:
        return sphere(x) if x[0] < 1 else Told(None, error="no")

    ended, result = searched(order("map", weights_space(1), evals=3), 1, failing)
    assert ended.why == "done" and result["failed"] == 1 and result["best"]["values"]
    assert "1 number has 3 unknowns; 2 points" in result["notes"]["surrogate"]


@pytest.mark.parametrize("settings", [{}, {"mode": "bayesian", "samples": 3}])
def test_map_says_so_where_not_one_of_few_samples_could_be_scored(settings: dict[str, Any]) -> None:
    asked = order("map", weights_space(1), settings=settings, evals=5)
    with pytest.raises(SearchFailed, match="not one candidate could be scored; the first: no memory"):
        searched(asked, 1, lambda _: Told(None, error="no memory"))


def test_nested_map_pairs_sources_and_comes_between_their_tops() -> None:
    asked = order("map", weights_space(2), settings={"mode": "nested"}, objectives=2, evals=40)
    _, result = searched(asked, 2, two_hills)
    assert result["notes"]["pairs"][0]["pair"] == [[0], [1]]
    assert max(-value for value in result["trials"][-1]["values"]) < 0.25


def test_features_are_half_squares_products_numbers_and_one() -> None:
    assert features(np.array([[2.0, 3.0]])).tolist() == [[2.0, 6.0, 4.5, 2.0, 3.0, 1.0]]


def test_angles_and_directions_are_each_other_s_inverse() -> None:
    points = np.random.default_rng(0).random((50, 4)) + 1e-3
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    assert directions(angles(points)) * lengths == pytest.approx(points, abs=1e-12)


def test_a_predicted_front_is_not_beaten_by_the_line_between_two_tops() -> None:
    tops = np.array([[0.2, 0.8], [0.8, 0.3]])
    models = [lambda x, top=top: -((x - top) ** 2).sum(axis=1) for top in tops]
    _, values = predicted_front(models, 2, seed=3)
    exact = (
        np.array([[-(t**2), -((1 - t) ** 2)] for t in np.linspace(0, 1, 201)])
        * ((tops[0] - tops[1]) ** 2).sum()
    )
    assert hypervolume(values, [-1, -1]) >= 0.995 * hypervolume(exact, [-1, -1])


def test_hypervolume_by_hand_in_two_and_three_objectives() -> None:
    assert hypervolume(np.array([[2.0, 1.0], [1.0, 2.0]]), [0, 0]) == 3.0
    assert hypervolume(np.array([[2.0, 1.0], [1.0, 2.0], [0.5, 0.5], [-1, 9]]), [0, 0]) == 3.0
    assert hypervolume(np.array([[1.0, 1, 1]]), [0, 0, 0]) == 1.0
    assert hypervolume(np.array([[2.0, 1, 1], [1, 2, 1], [1, 1, 2]]), [0, 0, 0]) == 4.0
    assert hypervolume(np.array([[-1.0, 2.0]]), [0, 0]) == 0.0


def test_how_far_rows_are_behind_a_front_in_shares_of_its_range() -> None:
    rows = np.array([[2.0, 0], [1, 5], [0, 10], [1, 2], [-2, 0], [0, 0]])
    assert behind(rows) == pytest.approx([0, 0, 0, 0, 1.0, 0.5])
    assert behind(np.array([[1.0, 1], [0, 1]])) == pytest.approx([0, 0])


def test_points_are_taken_by_what_they_add_to_the_volume() -> None:
    predicted = np.array([[4.0, 1], [3, 2], [1, 4], [0.5, 4.2], [-9, 9]])
    none, low = np.empty((0, 2)), np.zeros(2)
    assert largest_gains(predicted, none, low, 5) == [1, 2, 0, 3]
    assert largest_gains(predicted, np.array([[3.5, 2.5]]), low, 2) == [2, 0]
    assert largest_gains(predicted, np.array([[9.0, 9.0]]), low, 2) == []
    assert largest_gains(predicted, none, np.array([9.0, 0]), 2) == []


def test_of_equal_rows_the_first_stays_and_beaten_ones_go() -> None:
    assert not_dominated(np.array([[1.0, 1], [1, 1], [0, 2], [0, 1], [2, 0]])) == [0, 2, 4]


def test_a_line_s_parabola_is_exact_and_flat_ones_have_no_top() -> None:
    assert vertex([(0.0, -1.0), (0.5, -0.25), (1.0, 0.0)]) is None  # its top is the end
    assert vertex([(0.0, -0.09), (0.5, -0.04), (1.0, -0.49)]) == pytest.approx(0.3)
    assert vertex([(0.0, 1.0), (0.5, 1.0), (1.0, 1.0)]) is None


def test_a_line_is_swept_from_end_to_end_and_then_looked_at_around_its_best() -> None:
    asked = order("line", weights_space(1), settings={"sweep": 5, "rounds": 1}, evals=20)
    ended, _ = searched(asked, 1, lambda x: Told((-abs(float(x[0]) - 0.8),)))
    places = [trial.point["x0"] for trial in ended.trials]
    assert places[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert places[5:7] == [0.625, 0.875]
    assert 0.75 < places[7] < 0.875
    assert len(places) == 8


def test_an_individual_remembers_where_it_was_best() -> None:
    each = Individual(np.array([0.1]))
    each.scored(2.0)
    each.genome = np.array([0.9])
    each.scored(1.0)
    assert (each.value, each.own_value) == (1.0, 2.0) and each.own is not None and each.own.tolist() == [0.1]


@pytest.mark.parametrize("mutation", [0.0, 1e-12])
def test_a_population_without_children_ends_the_search(mutation: float) -> None:
    settings = {"population": 4, "crossover": 0, "mutation": mutation}
    ended, _ = searched(order("genome", weights_space(2), settings=settings, evals=50), 2, sphere)
    assert (ended.evaluations, ended.why) == (4, "done")


def test_failed_ones_have_the_least_say_also_beside_a_single_one_or_equal_ones() -> None:
    assert by_fitness([2.0, -np.inf]) == pytest.approx([1000 / 1001, 1 / 1001])
    assert by_fitness([2.0, 2.0, -np.inf]) == pytest.approx([1000 / 2001, 1000 / 2001, 1 / 2001])
    assert by_fitness([3.0, 2.0, -np.inf]) == pytest.approx(np.array([1001, 1, 0.001]) / 1002.001)
    assert by_fitness([-np.inf, -np.inf]) == pytest.approx([0.5, 0.5])
    good, failed = Individual(np.zeros(2), 2.0), Individual(np.ones(2))
    assert crossed(good, failed) == pytest.approx([1 / 1001] * 2)


def test_niches_by_the_card_s_numbers() -> None:
    scores = np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]])
    assert fitness(scores, 1.0).tolist() == [1, 1, 1]
    assert attraction(scores, 1.0, 0).tolist() == [0, 0, 1]
    more = np.vstack([scores, [0, 0, 1, 1]])
    assert fitness(more, 1.0).tolist() == [1, 1, 0.5, 1.5]
    assert fitness(scores, 0.0).tolist() == [2, 2, 1]
    assert fitness(scores[:, [3, 1, 0, 2]], 1.0).tolist() == [1, 1, 1]


def test_a_child_before_and_after_its_boundary() -> None:
    one, other = np.zeros(4), np.ones(4)
    assert mixed(one, other, 4, 0.0).tolist() == [0, 0, 0, 0]
    assert mixed(one, other, 0, 0.25).tolist() == [0.75] * 4
    assert mixed(one, other, 2, 0.25).tolist() == [0.25, 0.25, 0.75, 0.75]


def test_equal_parents_have_their_like_and_no_mutation_changes_nothing() -> None:
    genome = np.array([0.2, 0.9, 0.4])
    assert crossed(Individual(genome, 0.3), Individual(genome.copy(), 0.9)) == pytest.approx(genome)
    still = GenomeSettings(gene_mutation=0)
    assert mutated(genome, still, np.random.default_rng(0)).tolist() == genome.tolist()


def test_the_best_of_a_population_never_gets_worse() -> None:
    ended, result = searched(order("genome", weights_space(3), evals=120, seed=4), 3, sphere)
    best = max(t.told.values[0] for t in ended.trials if t.told.values)
    kept = [sphere(np.array(list(p.values()))).values for p in result["notes"]["population"]]
    assert max(value[0] for value in kept if value) == best
    again, _ = searched(order("genome", weights_space(3), evals=120, seed=4), 3, sphere)
    assert [t.point for t in again.trials] == [t.point for t in ended.trials]


def test_the_swarm_s_step_shrinks_with_every_generation() -> None:
    settings = {"plus": True, "crossover": 0, "mutation": 1, "gene_mutation": 0}
    for decay, still in ((1e-12, True), (1.0, False)):
        asked = order("genome", weights_space(2), evals=58, settings=settings | {"decay": decay})
        ended, _ = searched(asked, 2, sphere)  # 10, a swarm of 9, their copies, a swarm of 9 again
        points = [np.array(list(each.point.values())) for each in ended.trials]
        moves = [min(np.abs(points[at] - each).max() for each in points[:at]) for at in range(1, len(points))]
        assert max(moves[:18]) > 1e-3 and (max(moves[18:]) < 1e-9) == still


def test_a_population_holds_only_what_was_scored_where_the_budget_ends_within_a_swarm() -> None:
    ended, result = searched(order("genome", weights_space(2), evals=13, settings={"plus": True}), 2, sphere)
    assert len(ended.trials) == 13 and len(result["notes"]["population"]) == 10
    assert all(each in [trial.point for trial in ended.trials] for each in result["notes"]["population"])


def test_unsure_places_are_drawn_by_errors_and_half_the_spread_of_scores() -> None:
    angle = np.repeat((np.arange(4) + 0.5) / 4 * np.pi / 2, 2)
    points = np.tile([[0.5], [0.6]], (4, 1)) * np.column_stack([np.cos(angle), np.sin(angle)])
    scores = np.zeros((8, 1))
    scores[:2, 0] = 0.14 * np.sqrt(2) * np.array([-1, 1])  # half of 0.14 is the temperature
    at = {tuple(point): score for point, score in zip(points.tolist(), scores[:, 0], strict=True)}
    models = [lambda x: np.array([at[tuple(row)] for row in x.tolist()])]
    drawn = where_unsure(points, scores, models, 4000, np.random.default_rng(0))
    share = float((angles(drawn)[:, 0] < np.pi / 8).mean())
    assert share == pytest.approx(np.e / (np.e + 3), abs=0.03)


def test_the_stages_of_evo_merging_draw_apart() -> None:
    settings = {"denoise": ["x0", "x1"], "population": 6, "first_share": 0.5, "penalty": 0}
    asked = order("evo_merging", weights_space(4), evals=12, settings=settings)
    ended, _ = searched(asked, 4, sphere)
    drawn = np.array([list(each.point.values()) for each in ended.trials])
    assert np.ptp(drawn[:6, :2], axis=0).min() > 0 and np.ptp(drawn[6:, 2:], axis=0).min() > 0
    assert not np.allclose(drawn[:6, :2], drawn[6:, 2:])
