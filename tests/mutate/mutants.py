"""The mutants of a module: one small change each, found in the syntax tree, in a fixed order."""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.Pow: ast.Mult,
}
_NAMES = {"any": "all", "all": "any", "min": "max", "max": "min"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of one module."""

    path: Path
    node: int
    """Place of the changed node in ``ast.walk`` of the module."""
    variant: int
    lines: tuple[int, int]
    """First and last line of the innermost statement (or its head) that holds the change."""
    functions: tuple[tuple[str, int], ...]
    """Qualified name and first line of each function around it, outermost first."""
    change: str
    repetition: int = 1
    """Which of the equal changes in the same function this is, from 1."""

    @property
    def key(self) -> str:
        """What stays the same when lines move, and no other mutant has: file, function and change."""
        where = self.functions[-1][0] if self.functions else "<module>"
        which = f" ({self.repetition})" if self.repetition > 1 else ""
        return f"{self.path.parent.name}/{self.path.name} {where}: {self.change}{which}"


def as_mutant(fields: dict[str, Any]) -> Mutant:
    """A mutant out of JSON."""
    functions = tuple((name, line) for name, line in fields["functions"])
    place = {"path": Path(fields["path"]), "lines": tuple(fields["lines"]), "functions": functions}
    return Mutant(**(fields | place))


def as_fields(mutant: Mutant) -> dict[str, Any]:
    """A mutant as JSON."""
    return asdict(mutant) | {"path": str(mutant.path)}


def find_mutants(path: Path) -> list[Mutant]:
    """All mutants of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    places = _places(tree)
    mutants = []
    for number, node in enumerate(ast.walk(tree)):
        place = places.get(id(node))
        if place is None:
            continue
        for variant, changed in enumerate(_variants(node)):
            change = f"{_short(node)} → {_short(changed)}"
            mutants.append(Mutant(path, number, variant, place.lines, place.functions, change))
    mutants.sort(key=lambda mutant: (mutant.lines, mutant.node, mutant.variant))
    seen: Counter[str] = Counter()
    for number, mutant in enumerate(mutants):
        seen[mutant.key] += 1
        mutants[number] = replace(mutant, repetition=seen[mutant.key])
    return mutants


def mutated_tree(mutant: Mutant) -> ast.Module:
    """The module with the change made; line numbers stay."""
    tree = ast.parse(mutant.path.read_text(encoding="utf-8"))
    target = next(node for number, node in enumerate(ast.walk(tree)) if number == mutant.node)
    changed = list(_variants(target))[mutant.variant]
    ast.copy_location(changed, target)
    _Exchange(target, changed).visit(tree)
    return ast.fix_missing_locations(tree)


class _Exchange(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def _short(node: ast.AST) -> str:
    if isinstance(node, (ast.If, ast.While)):
        return f"{type(node).__name__.lower()} {_short(node.test)}"
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 100 else text[:97] + "…"


# --- where a change makes sense ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    lines: tuple[int, int]
    functions: tuple[tuple[str, int], ...]


def _places(tree: ast.Module) -> dict[int, _Place]:
    """The nodes that may be changed, by identity, with where they are."""
    found: dict[int, _Place] = {}
    _enter_body(tree, "", (), found)
    return found


def _enter_body(
    node: ast.AST, prefix: str, functions: tuple[tuple[str, int], ...], found: dict[int, _Place]
) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            _enter_body(child, f"{prefix}{child.name}.", functions, found)
        elif isinstance(child, _FUNCTIONS):
            for default in (*child.args.defaults, *child.args.kw_defaults):
                if default is not None:
                    _mark(default, _Place(_span(default), functions), found)
            first = min([child.lineno, *(each.lineno for each in child.decorator_list)])
            inner = (*functions, (f"{prefix}{child.name}", first))
            for statement in child.body:
                _statement(statement, f"{prefix}{child.name}.<locals>.", inner, found)
        elif isinstance(child, ast.stmt):
            _statement(child, prefix, functions, found)


def _statement(
    node: ast.stmt, prefix: str, functions: tuple[tuple[str, int], ...], found: dict[int, _Place]
) -> None:
    """Mark a statement's own expressions, then go on with the statements inside of it."""
    if isinstance(node, (ast.ClassDef, *_FUNCTIONS)):
        _enter_body(ast.Module(body=[node], type_ignores=[]), prefix, functions, found)
        return
    if isinstance(node, (ast.Import, ast.ImportFrom)) or _is_text(node):
        return
    inner = [child for child in ast.walk(node) if isinstance(child, ast.stmt) and child is not node]
    end = min([child.lineno for child in inner], default=(node.end_lineno or node.lineno) + 1) - 1
    place = _Place((node.lineno, max(node.lineno, end)), functions)
    found[id(node)] = place
    for name, value in ast.iter_fields(node):
        if name == "annotation" or (isinstance(node, ast.Raise) and name in {"exc", "cause"}):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.stmt):
                _statement(child, prefix, functions, found)
            elif isinstance(child, (ast.ExceptHandler, ast.match_case)):
                for statement in child.body:
                    _statement(statement, prefix, functions, found)
                guard = getattr(child, "guard", None)
                if guard is not None:
                    _mark(guard, _Place(_span(guard), functions), found)
            elif isinstance(child, ast.AST):
                _mark(child, place, found)


def _mark(node: ast.AST, place: _Place, found: dict[int, _Place]) -> None:
    """Mark an expression and what is inside; f-strings are words, not decisions."""
    if isinstance(node, ast.JoinedStr):
        return
    found[id(node)] = place
    for child in ast.iter_child_nodes(node):
        _mark(child, place, found)


def _span(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.end_lineno or node.lineno


def _is_text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


# --- what is changed ---------------------------------------------------------------------------


def _variants(node: ast.AST) -> Iterator[ast.AST]:
    """The changes of one node."""
    if isinstance(node, ast.expr):
        yield from _expression_variants(node)
    elif isinstance(node, ast.Raise) or _is_call(node):
        yield ast.Pass()
    elif isinstance(node, ast.Continue):
        yield ast.Break()
    elif isinstance(node, ast.Break):
        yield ast.Continue()
    elif isinstance(node, (ast.If, ast.While)) and not _is_negated(node.test):
        yield type(node)(test=_negated(node.test), body=node.body, orelse=node.orelse)
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield ast.Return(value=ast.Constant(value=None))
    elif isinstance(node, ast.AugAssign) and type(node.op) in _OPERATORS:
        swapped = _OPERATORS[type(node.op)]()
        yield ast.AugAssign(target=node.target, op=swapped, value=node.value)
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield ast.comprehension(target=node.target, iter=node.iter, ifs=[], is_async=node.is_async)


def _expression_variants(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.Compare):
        for position, operator in enumerate(node.ops):
            swapped = [*node.ops]
            swapped[position] = _COMPARISONS[type(operator)]()
            yield ast.Compare(left=node.left, ops=swapped, comparators=node.comparators)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield ast.BoolOp(op=other, values=node.values)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        yield ast.BinOp(left=node.left, op=_OPERATORS[type(node.op)](), right=node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield node.operand
    elif isinstance(node, ast.IfExp) and not _is_negated(node.test):
        yield ast.IfExp(test=_negated(node.test), body=node.body, orelse=node.orelse)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in _NAMES:
        yield ast.Name(id=_NAMES[node.id], ctx=ast.Load())
    elif isinstance(node, ast.Constant):
        yield from _constant_variants(node.value)


def _constant_variants(value: object) -> Iterator[ast.expr]:
    if isinstance(value, bool):
        yield ast.Constant(value=not value)
    elif isinstance(value, int):
        yield ast.Constant(value=value + 1)
    elif isinstance(value, str) and " " not in value:  # with a space it is words for people
        yield ast.Constant(value=value + "X")
    elif isinstance(value, bytes):
        yield ast.Constant(value=value + b"X")


def _negated(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(op=ast.Not(), operand=test)


def _is_negated(test: ast.expr) -> bool:
    """Whether taking the ``not`` away is a change of its own already."""
    return isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)


def _is_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
