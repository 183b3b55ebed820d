"""What can be chosen by name, read from the source code.

Nothing is imported here but the standard library: to list names and the first lines of docstrings
must not take the seconds in which PyTorch is imported. `registry.py` has the things themselves.
"""

from __future__ import annotations

import ast
import functools
import inspect
from importlib import resources

from layerwise.experiment.kinds import CRITERIA, KINDS

Definition = ast.ClassDef | ast.FunctionDef
SOURCE = resources.files("layerwise")


def things(kind: str) -> dict[str, str]:
    """The names of a kind, each with the first paragraph of its docstring as one line."""
    if kind == "criterion":
        return dict(sorted(CRITERIA.items()))
    wanted = KINDS[kind]
    module = _module(wanted.module)
    found = {}
    for name in sorted(module.exported):
        of, definition = module.find(name)
        if name in wanted.leave_out:
            continue
        if wanted.base is not None and not of.is_concrete(definition, wanted.base):
            continue
        found[name] = one_line(ast.get_docstring(definition) or "")
    return found


def data_sets() -> list[str]:
    """The names of data sets."""
    return _module("data.load").names("NAMES")


def one_line(docstring: str) -> str:
    """The first paragraph of a docstring, as one line."""
    return " ".join(inspect.cleandoc(docstring).partition("\n\n")[0].split())


class _Module:
    """The source code of a module: its definitions, and where those come from that it imports."""

    def __init__(self, name: str):
        *folders, last = name.split(".")
        folder = SOURCE.joinpath(*folders)
        place = folder / last
        file = place / "__init__.py" if place.is_dir() else folder / f"{last}.py"
        self.defined: dict[str, Definition] = {}
        self.assigned: dict[str, ast.expr] = {}
        self.imported: dict[str, tuple[str, str]] = {}  # name here -> module, name there
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, Definition):
                self.defined[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.assigned[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if node.value is not None:
                    self.assigned[node.target.id] = node.value
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("layerwise."):
                home = str(node.module).partition(".")[2]
                self.imported |= {n.asname or n.name: (home, n.name) for n in node.names}

    @property
    def exported(self) -> list[str]:
        """The names in `__all__`; where it is computed, the names that are imported."""
        listed = self.assigned.get("__all__")
        return self.names("__all__") if isinstance(listed, ast.List) else sorted(self.imported)

    def find(self, name: str) -> tuple[_Module, Definition]:
        """A definition, and the module that it is in."""
        if name in self.defined:
            return self, self.defined[name]
        assert name in self.imported, f"{name} is neither defined by def or class nor imported"
        home, there = self.imported[name]
        return _module(home).find(there)

    def names(self, variable: str) -> list[str]:
        """The texts in a list, a tuple or the keys of a dictionary, which may contain others."""
        if variable not in self.assigned:
            home, there = self.imported[variable]
            return _module(home).names(there)
        value = self.assigned[variable]
        assert isinstance(value, ast.List | ast.Tuple | ast.Dict)
        found: list[str] = []
        for one in value.keys if isinstance(value, ast.Dict) else value.elts:
            if isinstance(one, ast.Starred) and isinstance(one.value, ast.Name):
                found += self.names(one.value.id)
            else:
                assert isinstance(one, ast.Constant)
                found.append(str(one.value))
        return found

    def is_concrete(self, definition: Definition, base: str) -> bool:
        """Whether this is a class that derives from a class called `base` and that lacks no
        method."""
        names, lacking = self.ancestry(definition)
        return base in names and not lacking

    def ancestry(self, definition: Definition) -> tuple[set[str], set[str]]:
        """The names of a class and of those that it derives from, and its abstract methods."""
        if not isinstance(definition, ast.ClassDef):
            return set(), set()
        names, abstract = {definition.name}, set()
        for base in definition.bases:
            if isinstance(base, ast.Name) and (base.id in self.defined or base.id in self.imported):
                of, parent = self.find(base.id)
                more, inherited = of.ancestry(parent)
                names |= more
                abstract |= inherited
        for node in definition.body:
            if isinstance(node, ast.FunctionDef):
                marks = {ast.unparse(mark) for mark in node.decorator_list}
                abstract.discard(node.name)
                abstract |= {node.name} if "abstractmethod" in marks else set()
        return names, abstract


@functools.cache
def _module(name: str) -> _Module:
    return _Module(name)
