"""The search methods: a file each, with a function ``search(space, settings, task)``."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from search.settings import BY_METHOD
from search.space import Space
from search.trial import Search, Task


def load(name: str) -> Callable[[Space, Any, Task], Search]:
    """The function of a method."""
    assert name in BY_METHOD
    found: Callable[[Space, Any, Task], Search] = import_module(f"search.methods.{name}").search
    return found
