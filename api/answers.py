"""Answers that are written once: plain data straight to JSON, with no model in between."""

from typing import Any

from fastapi import Response
from pydantic_core import to_json


class Answer(Response):
    """Plain data as JSON. Times come out in RFC 3339, as everywhere."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return to_json(content)
