"""What can go wrong with a search; every class has a stable ``code``.

SearchError
├── SpaceInvalid     the space names what the recipe does not have, or nothing at all
├── SearchInvalid    method, objective and budget do not go together
├── SearchFailed     not one candidate could be scored
├── MetricMissing    a set does not measure what an objective names
"""


class SearchError(Exception):
    """Base of all errors of this room; ``pointer`` is the JSON pointer into the search, if one is known."""

    code = "search_failed"

    def __init__(self, message: str, pointer: str = "") -> None:
        super().__init__(message)
        self.pointer = pointer


class SpaceInvalid(SearchError):
    """The space is empty, or names what the recipe does not have."""

    code = "space_invalid"


class SearchInvalid(SearchError):
    """The method cannot search this space, or not within this budget."""

    code = "search_invalid"


class SearchFailed(SearchError):
    """Not one candidate could be merged and scored."""

    code = "search_failed"


class MetricMissing(SearchError):
    """A set that says what it measures only when it has run does not measure what an objective names."""

    code = "metric_missing"


class WrongAt(ValueError):
    """What a check of an order raises; ``pointer`` leads from the part that is checked to the field."""

    def __init__(self, message: str, pointer: str) -> None:
        super().__init__(message)
        self.pointer = pointer
