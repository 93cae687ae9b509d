"""The base class of every section of parameters."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from common.errors import UserError, did_you_mean


class Section(BaseModel):
    """A section of parameters: typed and immutable. An unknown key is refused, with the nearest valid one."""

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
        """Return the validated section; raise UserError with one line that starts with `where`."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(explain(error, where)) from None


def explain(error: ValidationError, where: str) -> str:
    """Return pydantic's first error as one line: `where`, the parameter, what is wrong, the value found."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    found = "" if first["type"] == "value_error" else f", found {first['input']!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where}: {place + ': ' if place else ''}{message}{found}{more}"
