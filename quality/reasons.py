"""Why a method is below plain averaging on bench A, where it is; read by ``quality.evidence``."""

from collections.abc import Mapping

REASONS: Mapping[str, str] = {
    "model_stock": (
        "The experts' changes lie at right angles (mean cosine 0.005), where its formula goes 3 % of the way "
        "from the base to the mean."
    ),
}
