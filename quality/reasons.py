"""Why a method is below plain averaging on bench A, where it is; read by ``quality.evidence``."""

from collections.abc import Mapping

REASONS: Mapping[str, str] = {}
