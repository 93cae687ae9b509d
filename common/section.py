"""The base class of every section of parameters."""

from collections.abc import Hashable
from reprlib import Repr
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from common.errors import UserError, did_you_mean

LARGEST = 2**63 - 1  # the largest integer of torch and numpy
SHORT = Repr()
SHORT.maxstring = SHORT.maxother = 100


class Section(BaseModel):
    """A section of parameters: typed and immutable. An unknown key raises an error that names the nearest valid one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_pydantic_accepts(cls, values: Any) -> Any:
        """Raise ValueError for unknown keys, booleans in the place of numbers, and integers that torch cannot hold."""
        if isinstance(values, dict):
            for key, value in values.items():
                if key not in cls.model_fields:
                    raise ValueError(f"unknown parameter '{key}'{did_you_mean(str(key), cls.model_fields)}")
                kinds = _kinds(cls.model_fields[key].annotation)
                for element in value if isinstance(value, list) else [value]:
                    if isinstance(element, bool) and kinds & {int, float} and bool not in kinds:
                        raise ValueError(f"{key}: expected a number, found {str(element).lower()}")
                    if isinstance(element, int) and abs(element) > LARGEST:
                        raise ValueError(f"{key}: expected at most {LARGEST}, found {SHORT.repr(element)}")
        return values

    @classmethod
    def parse(cls, values: Any, where: str) -> Self:
        """Return the validated section; raise UserError with one line that starts with `where`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(explain(error, where)) from None


def explain(error: ValidationError, where: str) -> str:
    """Return pydantic's first error as one line: `where`, the parameter, what is wrong, the value found."""
    first = error.errors()[0]
    parameter = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    found = "" if first["type"] in ("value_error", "missing") else f", found {SHORT.repr(first['input'])}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return " ".join(f"{where}: {parameter + ': ' if parameter else ''}{message}{found}{more}".split())


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that an annotation consists of: list and int, among others, for `list[Annotated[int, Field(ge=1)]]`."""
    return {annotation}.union(*(_kinds(part) for part in get_args(annotation) if isinstance(part, Hashable)))
