"""Merge methods, one file each, in one folder a family; nothing is listed anywhere else."""

from functools import cache
from importlib import import_module
from pkgutil import walk_packages


@cache
def load() -> None:
    """Imports every method file beneath this package, so that each registers itself."""
    for module in walk_packages(__path__, prefix=f"{__name__}."):
        if not module.ispkg:
            import_module(module.name)
