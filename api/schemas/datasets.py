"""Bodies of uploaded data sets."""

from api.schemas.common import Moment, Out


class DatasetOut(Out):
    """An uploaded text or JSONL file; the same bytes have the same id."""

    id: str
    name: str
    sha256: str
    size: int
    created_at: Moment
