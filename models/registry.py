"""Names to classes, without importing torch until a class is needed."""

import re
from importlib import import_module
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from models.errors import UserError, did_you_mean


class Section(BaseModel):
    """A section of parameters: typed, immutable, unknown keys refused with the nearest valid name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown parameter '{key}'{did_you_mean(str(key), cls.model_fields)}")
        return values

    @classmethod
    def parse(cls, values: Any, where: str) -> Self:
        """Validate `values`; raise UserError with one line that starts with `where`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(explain(error, where)) from None


def explain(error: ValidationError, where: str) -> str:
    """Put the first of pydantic's complaints into one line: place, complaint, value found."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    found = "" if first["type"] == "value_error" else f", found {first['input']!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {place + ': ' if place else ''}{message}{found}{more}"


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def check_form(kind: str, name: Any) -> str:
    """Return `name` if it can be part of a path and of a command; raise UserError otherwise.

    A name consists of letters, digits, `_` and `-`, and starts with a letter or digit: it never leaves its folder, means nothing
    to a shell, and has no dot, at which DVC splits keys.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{kind} {name!r} is not a valid name; use letters, digits, '_' and '-', starting with a letter or digit")
    return name


def check_name(kind: str, name: str, registry: Any) -> str:
    """Return `name` if it is in `registry`, else raise UserError with the nearest valid name."""
    if check_form(kind, name) not in registry:
        raise UserError(f"unknown {kind} '{name}'{did_you_mean(name, registry)}")
    return name


def load_class(registry: dict[str, str], kind: str, name: str) -> Any:
    """Import and return the class that `registry` names as `"module:Class"`."""
    module, _, attribute = registry[check_name(kind, name, registry)].partition(":")
    return getattr(import_module(module), attribute)
