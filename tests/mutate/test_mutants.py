"""The mutation tester itself: it finds what can be changed, changes one thing, and leaves words alone."""

import ast
import sys
from pathlib import Path

import pytest

from mutate.install import MutantFinder, all_functions, install_into_functions
from mutate.mutants import as_fields, as_mutant, find_mutants, mutated_tree

SOURCE = '''"""Words."""

LIMIT: int = 3


def judge(size: int, *, least: int = 1) -> bool:
    """Words."""
    if not least <= size < LIMIT:
        raise ValueError("words for people")
    return any(each == "kind" for each in ("kind", "two words")) and size != 0


class Holder:
    def value(self) -> int:
        total = 0
        for each in (1, 2):
            if each == 2:
                continue
            total += each
        print(f"{total} words")
        return total
'''


@pytest.fixture
def module(tmp_path, monkeypatch) -> Path:
    """A module to change, importable."""
    path = tmp_path / "changeable.py"
    path.write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "changeable", raising=False)
    yield path
    sys.modules.pop("changeable", None)


def test_every_mutant_is_another_program(module):
    """Each compiles, differs from the source and from each other mutant, and names its change."""
    plain = ast.unparse(ast.parse(SOURCE))
    mutants = find_mutants(module)
    programs = [ast.unparse(mutated_tree(mutant)) for mutant in mutants]
    assert plain not in programs
    assert len(set(programs)) == len(programs) == len({mutant.key for mutant in mutants})
    for mutant in find_mutants(module):
        compile(mutated_tree(mutant), "x", "exec")
        assert as_mutant(as_fields(mutant)) == mutant


def test_what_is_changed_and_what_is_not(module):
    """Conditions, constants, calls, returns and raises; not words, annotations or docstrings."""
    changes = {mutant.change for mutant in find_mutants(module)}
    assert {
        "3 → 4",
        "1 → 2",
        "any → all",
        "'kind' → 'kindX'",
        "size != 0 → size == 0",
        "raise ValueError('words for people') → pass",
        "return total → return None",
        "continue → break",
        "total += each → total -= each",
    } <= changes
    assert not any("Words" in change or "two wordsX" in change for change in changes)


def test_a_change_is_put_into_running_code(module):
    """The function's code is exchanged in place, wherever the function is referred to."""
    import changeable

    judge = changeable.judge
    mutant = next(m for m in find_mutants(module) if m.change == "size != 0 → size == 0")
    assert judge(2)
    assert install_into_functions(mutant, all_functions(module.parent))
    assert not judge(2)


def test_a_change_at_module_level_is_imported(module, monkeypatch):
    """What runs at import is changed before it."""
    mutant = next(m for m in find_mutants(module) if m.change == "3 → 4")
    monkeypatch.setattr("mutate.install.module_name", lambda _: "changeable")
    finder = MutantFinder(mutant)
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    import changeable

    assert changeable.LIMIT == 4
