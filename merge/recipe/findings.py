"""What is found wrong with a recipe, with the place in it that it is about."""

from merge.errors import Finding
from merge.recipe.document import pointer_of


def error(
    code: str, message: str, *at: str | int, model: str | None = None, tensor: str | None = None
) -> Finding:
    """A finding that stops the job; ``at`` is the path into the recipe."""
    return Finding("error", code, message, pointer_of(*at) if at else None, model, tensor)


def warning(
    code: str, message: str, *at: str | int, model: str | None = None, tensor: str | None = None
) -> Finding:
    """A finding that is only told."""
    return Finding("warning", code, message, pointer_of(*at) if at else None, model, tensor)
