"""Why a method is below plain averaging on bench A, where it is, and why some are not run on a bench."""

from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    "model_stock": (
        "The experts' changes lie at right angles (mean cosine 0.005), where its formula goes 3 % of the way "
        "from the base to the mean."
    ),
}

_HEADLESS = "needs the probabilities of a head; here heads are frozen and outside the models"
UNFIT: Mapping[tuple[str, str], str] = {("a", "fisher"): _HEADLESS, ("d", "fisher"): _HEADLESS}
"""By bench and method, why it is not run there."""
