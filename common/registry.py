"""Names to classes, without importing a class's module until it is needed."""

from importlib import import_module
from typing import Any

from common.names import check_name


class Registry(dict[str, str]):
    """Name -> title as tables print it. A name is a file of `package`, and the file has a class of that name.

    The class is the one whose name, in lower case, is the name without underscores: `llm_esr` is `LLMESR` in `llm_esr.py`. So the
    code that a parameter selects follows from the parameter, and DVC can depend on that file alone.
    """

    def __init__(self, kind: str, package: str, titles: dict[str, str]) -> None:
        super().__init__(titles)
        self.kind = kind
        self.package = package

    def file(self, name: str) -> str:
        """The file of a name, relative to the project's root: `models/adapters/base.py`."""
        return f"{self.package.replace('.', '/')}/{name}.py"

    def load(self, name: str) -> Any:
        """Import and return the class. Raises UserError for an unknown name, with the nearest valid one."""
        module = import_module(f"{self.package}.{check_name(self.kind, name, self)}")
        wanted = name.replace("_", "")
        for attribute, value in vars(module).items():
            if isinstance(value, type) and attribute.lower() == wanted:
                return value
        raise TypeError(f"{self.file(name)} defines no class named {wanted!r}, in whatever case")
