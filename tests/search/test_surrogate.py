"""Quadratics fitted to scores."""

import numpy as np
import pytest

from search.surrogate import fit


def test_the_quadratic_of_the_card_is_recovered_exactly() -> None:
    at = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5], [0.2, 0.7]])
    c1, c2 = at.T
    y = 0.2 + 0.8 * c1 - 0.5 * c1**2 + 0.1 * c2 + 0.05 * c2**2 - 0.3 * c1 * c2
    found = fit(at, y).coefficients  # half squares: A11/2 c1^2
    assert found == pytest.approx([-1.0, -0.3, 0.1, 0.8, 0.1, 0.2], abs=1e-12)
    with pytest.raises(ValueError, match="6 unknowns; 5 points"):
        fit(at[:5], y[:5])
    with pytest.raises(ValueError, match="do not determine"):
        fit(np.repeat(at[:3], 2, axis=0), y)


@pytest.mark.parametrize(
    ("link", "scores"), [("sigmoid", [0.1, 0.9, 0.3, 0.7]), ("softplus", [-0.1, -3, -1, -0.5])]
)
def test_linked_predictions_stay_where_scores_can_be(link: str, scores: list[float]) -> None:
    points = np.array([[0.0], [0.4], [0.7], [1.0]])
    model = fit(points, np.array(scores), link)  # type: ignore[arg-type]
    far = model(np.linspace(-5, 5, 101)[:, None])
    low, high = (0, 1) if link == "sigmoid" else (-np.inf, 0)
    assert ((far >= low) & (far <= high)).all()
    exact = fit(points[:3], np.array(scores[:3]), link)  # type: ignore[arg-type]
    assert exact(points[:3]) == pytest.approx(scores[:3], abs=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_error_of_a_fit_is_that_of_points_it_has_not_seen(weighted: bool) -> None:
    rng = np.random.default_rng(3)
    points, scores = rng.random((12, 2)), rng.random(12)
    weights = rng.uniform(0.2, 1, 12) if weighted else np.ones(12)
    wrong = []
    for left in range(12):
        others = np.arange(12) != left
        blind = fit(points[others], scores[others], weights=weights[others])
        wrong.append(scores[left] - blind(points[left : left + 1])[0])
    wanted = np.sqrt(np.average(np.square(wrong), weights=weights**2))
    assert fit(points, scores, weights=weights).error == pytest.approx(wanted, rel=1e-6)


def test_a_weighted_fit_goes_by_its_heavy_points_and_says_how_it_errs_there() -> None:
    x = np.linspace(0, 1, 9)[:, None]
    kink = np.where(x[:, 0] < 0.5, 0.0, 10 * x[:, 0] - 5)
    plain, left = (fit(x, kink, weights=w) for w in (None, np.where(x[:, 0] < 0.5, 1.0, 1e-3)))
    assert np.abs(left(x[:4])).max() < 1e-3 < np.abs(plain(x[:4])).max() and left.error < plain.error
    exact = fit(x, 3 * x[:, 0] ** 2 - x[:, 0], weights=np.linspace(0.1, 1, 9))
    assert exact.coefficients == pytest.approx([6.0, -1.0, 0.0], abs=1e-9) and exact.error < 1e-9
