"""Reference pages say what the code says: keys, defaults, operations, the matrix."""

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from trustauthority.model.catalogue import Role
from trustauthority.model.policy import Policy
from trustauthority.rpc.authorize import MATRIX, Listener, Rule
from trustauthority.services.keyadmin import STEPS_OF_PEOPLE
from trustauthority.services.policies import parse_policy
from trustauthority.settings import KmipProvider, Settings

PROJECT = Path(__file__).resolve().parent.parent
REFERENCE = PROJECT / "docs" / "reference"
REQUIRED = object()
PROVIDERS = (KmipProvider,)


def rows(page: str) -> Iterator[tuple[str, list[str]]]:
    """Each table row of a page with the heading it stands under."""
    heading = ""
    for line in (REFERENCE / page).read_text("utf-8").splitlines():
        if line.startswith("## "):
            heading = re.sub(r"[\[\]]", "", line.removeprefix("## "))
        if line.startswith("| ") and not line.startswith("|---"):
            yield heading, [cell.strip() for cell in line.strip("|").split(" | ")]


def documented_keys(page: str) -> dict[str, Any]:
    """Key → default as the page says it, read as TOML."""
    found: dict[str, Any] = {}
    for heading, cells in rows(page):
        if len(cells) == 4 and re.fullmatch(r"`\w+`", cells[0]):
            section = "" if heading == "Top level" else heading + "."
            default = cells[2].strip("`")
            found[section + cells[0].strip("`")] = (
                REQUIRED if default == "required" else tomllib.loads(f"v = {default}")["v"]
            )
    return found


def plain(value: Any) -> Any:
    return (
        [str(v) if isinstance(v, str) else v for v in value] if isinstance(value, tuple) else value
    )


def policy_keys() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section in fields(Policy):
        if section.default_factory is MISSING:
            found[section.name] = REQUIRED
            continue
        value = section.default_factory()
        assert is_dataclass(value)
        found |= {f"{section.name}.{f.name}": plain(getattr(value, f.name)) for f in fields(value)}
    return found


def settings_keys(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= settings_keys(kind, f"{prefix}{name}.")
        elif name == "providers":
            for provider in PROVIDERS:
                (kind,) = get_args(provider.model_fields["kind"].annotation)
                found |= settings_keys(provider, f"{prefix}providers.NAME, kind {kind}.")
        else:
            found[prefix + name] = REQUIRED if field.is_required() else field.default
    return found


def test_every_policy_key_is_documented_with_its_default() -> None:
    """A security officer reads this page, not the code: keys and defaults are the real ones."""
    assert documented_keys("policy.md") == policy_keys()


def test_every_setting_is_documented_with_its_default() -> None:
    """An operator reads this page, not the code: keys and defaults are the real ones."""
    assert documented_keys("configuration.md") == settings_keys(Settings)


@pytest.mark.parametrize("page", ["policy.md", "configuration.md"])
def test_examples_are_accepted(page: str) -> None:
    """What a page shows as an example can be copied."""
    examples = re.findall(r"```toml\n(.*?)```", (REFERENCE / page).read_text("utf-8"), re.DOTALL)
    assert examples
    for example in examples:
        if page == "policy.md":
            assert parse_policy(example).name == "prod"
        else:
            assert Settings.model_validate(tomllib.loads(example)).node == "ta-1"


def recorded_operations() -> set[str]:
    """Every operation that some audit entry can have, read off the syntax trees."""
    pattern = re.compile(
        r"(?:authority|identity|cluster|policy|evidence|runtime-rules|anchor|crl|inventory|baseline|host|provider|vm|key"
        r"|lease|placement|move|order|access)\.[a-z]+(?:-[a-z]+)*"
    )
    found = set()
    for path in (
        *(PROJECT / "trustauthority/services").glob("*.py"),
        *(PROJECT / "trustauthority/main").glob("*.py"),
    ):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            arguments: list[ast.expr] = []
            if isinstance(node, ast.Call):
                arguments = [*node.args, *(k.value for k in node.keywords if k.arg == "operation")]
            found |= {
                a.value
                for a in arguments
                if isinstance(a, ast.Constant)
                and isinstance(a.value, str)
                and pattern.fullmatch(a.value)
            }
    made_of_a_word = {"baseline.approve", "baseline.retire"} | {f"key.{s}" for s in STEPS_OF_PEOPLE}
    return found - {"authority.toml"} | made_of_a_word


def test_every_audit_operation_is_documented() -> None:
    """An auditor finds each operation in the reference, and none that does not exist."""
    documented = {
        name
        for heading, cells in rows("audit.md")
        if heading == "Operations"
        for name in re.findall(r"`([a-z-]+\.[a-z-]+)`", cells[0])
    }
    assert documented == recorded_operations()


def who(rule: Rule) -> str:
    if rule.listener is Listener.ENROL:
        return "anyone, on the enrol listener"
    if rule.host:
        return "hosts"
    return "any" if rule.roles == frozenset(Role) else ", ".join(sorted(rule.roles))


def test_the_matrix_on_the_page_is_the_one_in_force() -> None:
    """N02: the table that an officer signs off is the one the server asks."""
    documented = [
        tuple(cells)
        for heading, cells in rows("ports.md")
        if heading == "Who may call what" and cells[0] != "service"
    ]
    expected = [
        (service, call, who(rule))
        for service, calls in MATRIX.items()
        for call, rule in calls.items()
    ]
    assert documented == expected


def test_links_between_pages_lead_somewhere() -> None:
    """A reader in a hurry does not meet a dead link."""
    dead = []
    for page in (*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")):
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            name, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            path = (page.parent / name).resolve() if name else page
            if not path.exists() or (anchor and anchor not in anchors(path)):
                dead.append(f"{page.relative_to(PROJECT)}: {target}")
    assert dead == []


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings
    }


def test_pages_that_the_code_names_exist() -> None:
    """Messages and docstrings point at pages; each of them is there."""
    named: dict[str, str] = {}
    for package in ("trustauthority", "hostagent", "kms_mock"):
        for path in (PROJECT / package).rglob("*.py"):
            for page in re.findall(r"docs/[\w/.-]+\.md", path.read_text("utf-8")):
                named[page] = path.relative_to(PROJECT).as_posix()
    missing = {page: source for page, source in named.items() if not (PROJECT / page).exists()}
    assert missing == {}
