"""The part of JSON Schema that docs/reference uses, so that outputs can be held against it.

Knows type, enum, required, properties, additionalProperties, propertyNames, format, items, minItems, minimum, oneOf, $ref into
$defs; any other keyword but the descriptive ones is an error, so that none is ignored by accident.
"""

from datetime import datetime
from typing import Any

_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
_SILENT = {"$schema", "$defs", "title", "description"}


def violations(
    value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "$"
) -> list[str]:
    """What in ``value`` the schema does not allow; empty when it fits."""
    found: list[str] = []
    for keyword, rule in schema.items():
        if keyword in _SILENT:
            continue
        found += _CHECKS[keyword](value, rule, schema, root, at)
    return found


def _reference(value, rule, _schema, root, at):
    target = root
    for step in rule.removeprefix("#/").split("/"):
        target = target[step]
    return violations(value, target, root, at)


def _one_of(value, rule, _schema, root, at):
    outcomes = [violations(value, option, root, at) for option in rule]
    fitting = sum(not outcome for outcome in outcomes)
    return [] if fitting == 1 else [f"{at}: {fitting} of oneOf fit: {outcomes}"]


def _type(value, rule, _schema, _root, at):
    names = rule if isinstance(rule, list) else [rule]
    fits = any(
        isinstance(value, _TYPES[name]) and not (name == "integer" and isinstance(value, bool))
        for name in names
    )
    return [] if fits else [f"{at}: {value!r} is not {rule}"]


def _enum(value, rule, _schema, _root, at):
    return [] if value in rule else [f"{at}: {value!r} is none of {rule}"]


def _required(value, rule, _schema, _root, at):
    return [
        f"{at}: {key} is missing" for key in rule if isinstance(value, dict) and key not in value
    ]


def _properties(value, rule, _schema, root, at):
    if not isinstance(value, dict):
        return []
    return [
        problem
        for key, inner in rule.items()
        if key in value
        for problem in violations(value[key], inner, root, f"{at}.{key}")
    ]


def _additional(value, rule, schema, root, at):
    if not isinstance(value, dict):
        return []
    extra = [key for key in value if key not in schema.get("properties", {})]
    if rule is False:
        return [f"{at}: {key} is not described" for key in extra]
    return [
        problem for key in extra for problem in violations(value[key], rule, root, f"{at}.{key}")
    ]


def _items(value, rule, _schema, root, at):
    if not isinstance(value, list):
        return []
    return [
        problem
        for number, item in enumerate(value)
        for problem in violations(item, rule, root, f"{at}[{number}]")
    ]


def _min_items(value, rule, _schema, _root, at):
    short = isinstance(value, list) and len(value) < rule
    return [f"{at}: fewer than {rule} items"] if short else []


def _minimum(value, rule, _schema, _root, at):
    low = isinstance(value, int) and value < rule
    return [f"{at}: {value} is below {rule}"] if low else []


def _format(value, rule, _schema, _root, at):
    assert rule == "date-time"
    good = not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None
    return [] if good else [f"{at}: {value!r} is no time"]


def _names(value, rule, _schema, root, at):
    names = value if isinstance(value, dict) else ()
    return [problem for name in names for problem in violations(name, rule, root, f"{at}: key")]


_CHECKS = {
    "$ref": _reference,
    "oneOf": _one_of,
    "type": _type,
    "enum": _enum,
    "required": _required,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
    "minItems": _min_items,
    "minimum": _minimum,
    "propertyNames": _names,
    "format": _format,
}
