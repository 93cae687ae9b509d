"""Registries: names of methods to their classes, imported at first use."""

from importlib import import_module
from typing import Any

from common.names import check_name


class Registry(dict[str, str]):
    """A mapping of names to the titles that tables print. Each name has a file of that name in `package`, with the class.

    The class is the one whose lower-case name is the name without underscores: `llm_esr` is `LLMESR` in `llm_esr.py`. The file
    therefore follows from the parameter, and DVC can depend on that file alone.
    """

    def __init__(self, kind: str, package: str, titles: dict[str, str]) -> None:
        super().__init__(titles)
        self.kind = kind
        self.package = package

    def file(self, name: str) -> str:
        """Return the file of a name, relative to the project's root, e.g. `models/adapters/base.py`."""
        return f"{self.package.replace('.', '/')}/{name}.py"

    def load(self, name: str) -> Any:
        """Import and return the class. Raises UserError for an unknown name, TypeError if the file has no such class."""
        module = import_module(f"{self.package}.{check_name(self.kind, name, self)}")
        wanted = name.replace("_", "")
        for attribute, value in vars(module).items():
            if isinstance(value, type) and attribute.lower() == wanted:
                return value
        raise TypeError(f"{self.file(name)} defines no class named {wanted!r}, in whatever case")
