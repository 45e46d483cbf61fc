"""Put a mutant in the place of the real code: in this process before import, or after it."""

import gc
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mutate.mutants import Mutant, mutated_tree

ROOT = Path(__file__).resolve().parents[2]
Functions = dict[tuple[str, str, int], list[types.FunctionType]]


def module_name(path: Path) -> str:
    """The dotted name of a file of the project."""
    return ".".join(path.resolve().relative_to(ROOT).with_suffix("").parts)


class MutantFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from its mutant; everything else is left to the others."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant, self.name = mutant, module_name(mutant.path)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Claim the one module."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.mutant.path, loader=self)

    def exec_module(self, module: types.ModuleType) -> None:
        """Run the changed source under the real file's name."""
        code = compile(mutated_tree(self.mutant), str(self.mutant.path), "exec")
        exec(code, module.__dict__)  # noqa: S102 - running the mutant is the purpose


def install_before_import(mutant: Mutant) -> None:
    """Let the next import of the module be the mutant.

    Raises:
        RuntimeError: it is imported already.
    """
    finder = MutantFinder(mutant)
    if finder.name in sys.modules:
        raise RuntimeError(f"{finder.name} was imported before its mutant")
    sys.meta_path.insert(0, finder)


def all_functions(package: Path) -> Functions:
    """Every function object made from a file of the package, by file, name and first line."""
    found: Functions = defaultdict(list)
    prefix = str(package.resolve())
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType) and thing.__code__.co_filename.startswith(prefix):
            code = thing.__code__
            found[code.co_filename, code.co_qualname, code.co_firstlineno].append(thing)
    return found


def install_into_functions(mutant: Mutant, functions: Functions) -> bool:
    """Exchange the code of the functions around the change, in place; say whether there was one."""
    name = str(mutant.path.resolve())
    code = compile(mutated_tree(mutant), name, "exec")
    wanted = set(mutant.functions)
    changed = False
    for part in _codes(code):
        if (part.co_qualname, part.co_firstlineno) not in wanted:
            continue
        for function in functions.get((name, part.co_qualname, part.co_firstlineno), ()):
            if part.co_freevars == function.__code__.co_freevars:
                function.__code__ = part
                changed = True
    return changed


def _codes(code: types.CodeType) -> list[types.CodeType]:
    inner = [part for part in code.co_consts if isinstance(part, types.CodeType)]
    return [code, *(each for part in inner for each in _codes(part))]
