"""Registries: names of methods to their classes, imported at first use."""

from importlib import import_module
from typing import Any

from common.names import check_name


class Registry(dict[str, str]):
    """A mapping from names to the titles that tables print. Each name has a file of the same name in `package`, with its class.

    The class name in lower case is the name without underscores: `llm_esr` is `LLMESR` in `llm_esr.py`. Since the file follows
    from the name, a DVC stage can depend on this file only.
    """

    def __init__(self, kind: str, package: str, titles: dict[str, str]) -> None:
        super().__init__(titles)
        self.kind = kind
        self.package = package

    def file(self, name: str) -> str:
        """Return the path of a name's file, relative to the project's root: `models/adapters/base.py`."""
        return f"{self.package.replace('.', '/')}/{name}.py"

    def load(self, name: str) -> Any:
        """Import and return the class. Raises UserError for an unknown name, TypeError if the file has no such class."""
        module = import_module(f"{self.package}.{check_name(self.kind, name, self)}")
        class_name = name.replace("_", "")
        for attribute, value in vars(module).items():
            if isinstance(value, type) and attribute.lower() == class_name:
                return value
        raise TypeError(f"{self.file(name)} defines no class named {class_name!r} (in any case)")
