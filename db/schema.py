"""All tables at once: importing this module registers every model, one file of ``db/models`` each."""

from importlib import import_module
from pkgutil import iter_modules

from sqlalchemy import MetaData

from db import models
from db.models.base import Base

for each in iter_modules(models.__path__, f"{models.__name__}."):
    import_module(each.name)


def metadata() -> MetaData:
    """The metadata that migrations must agree with."""
    return Base.metadata
