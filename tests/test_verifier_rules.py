"""docs/reference/verifier-rules.md says what the code says: each rule has its modules and a test that names it."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PAGE = PROJECT / "docs" / "reference" / "verifier-rules.md"
RULES = range(1, 68)
_ROW = re.compile(r"\| (\d+) \| (.+) \| (.+) \| (.+) \|")
_CODE = re.compile(r"`([^`]+)`")
_CITED = re.compile(r"(?:[Rr]ule|[Pp]itfall)s? ((?:\d+(?:-\d+)?)(?:(?:, | and )\d+(?:-\d+)?)*)")


def table() -> dict[int, tuple[list[str], list[str]]]:
    """Rule → modules and tests that the page names."""
    found: dict[int, tuple[list[str], list[str]]] = {}
    for line in PAGE.read_text("utf-8").splitlines():
        row = _ROW.fullmatch(line)
        if row:
            assert int(row[1]) not in found, f"rule {row[1]} stands twice"
            found[int(row[1])] = (_CODE.findall(row[3]), _CODE.findall(row[4]))
    return found


@cache
def docstrings_of(path: Path) -> dict[str, str]:
    """Name → docstring of each test of a file, with the file's own in front."""
    tree = ast.parse(path.read_text("utf-8"))
    whole = ast.get_docstring(tree) or ""
    return {
        node.name: f"{whole}\n{ast.get_docstring(node) or ''}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def cited(text: str) -> set[int]:
    """Numbers of rules that a docstring cites."""
    numbers: set[int] = set()
    for match in _CITED.finditer(text):
        for part in re.split(r", | and ", match[1]):
            first, _, last = part.partition("-")
            numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def test_every_rule_has_a_row() -> None:
    """No rule is forgotten, none is invented (issue 3)."""
    assert sorted(table()) == list(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_has_modules_and_a_test_that_names_it(rule: int) -> None:
    """Each module and test that the page names exists, and a test says which rule it protects."""
    modules, tests = table()[rule]
    assert modules
    assert tests
    for module in modules:
        assert (PROJECT / "trustauthority" / module).is_file(), module
    named = set()
    for test in tests:
        path, _, name = test.partition("::")
        assert (PROJECT / "tests" / path).is_file(), test
        found = docstrings_of(PROJECT / "tests" / path)
        assert name in found, test
        named |= cited(found[name])
    assert rule in named, f"none of {tests} cites rule {rule}"
