"""The architecture as tests: what import contracts can't say.

Layers and purity are import-linter's (pyproject.toml). Here: who may construct a sealed value, how
long a module may be, which names exist, that each error and each RPC is complete and documented, and
that nothing of one machine was committed.
"""

import ast
import configparser
import importlib
import os
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from google.protobuf.descriptor import FileDescriptor

from trustauthority import errors, ports
from trustauthority.cli.exit import exit_code
from trustauthority.client import reasons
from trustauthority.errors import TrustAuthorityError
from trustauthority.rpc.authorize import MATRIX, PACKAGE, Listener
from trustauthority.rpc.errors import code_of

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("trustauthority", "hostagent", "kms_mock")
GENERATED = PROJECT / "trustauthority" / "v1"
MAX_LINES = 400
SEALED = {
    "Evidence": "trustauthority/codec/evidence.py",
    "VerifiedEvidence": "trustauthority/verification/pipeline.py",
    "VerifiedQuote": "trustauthority/verification/quote.py",
    "VerifiedBootLog": "trustauthority/verification/replay.py",
    "ProvenEntries": "trustauthority/verification/runtimelog.py",
    "RuntimeReplay": "trustauthority/verification/runtimelog.py",
    "ResidentKeys": "trustauthority/verification/residency.py",
    "VerifiedEndorsement": "trustauthority/verification/endorsement.py",
    "BootFacts": "trustauthority/appraisal/bootfacts.py",
    "Verdict": "trustauthority/appraisal/appraise.py",
    "Report": "trustauthority/report/token.py",
    "KeyGrant": "trustauthority/keyrelease/wrap.py",
}
"""A value of these types is proof that its stage was passed, so one module may make it."""
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}


@cache
def modules() -> tuple[Path, ...]:
    """Every module that a person wrote."""
    found = sorted(path for name in PACKAGES for path in (PROJECT / name).rglob("*.py"))
    return tuple(path for path in found if GENERATED not in path.parents)


def relative(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


# --- trust is a type -------------------------------------------------------------------------


def protobuf_modules(tree: ast.Module) -> set[str]:
    """Local names of generated modules: their messages may be called as our nouns are."""
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name.endswith("_pb2")
    }


def made_in(path: Path) -> Iterator[tuple[str, int]]:
    """Each call in a module that makes a sealed value, under whatever local name."""
    tree = tree_of(path)
    names = {name: name for name in SEALED}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(
            "trustauthority.v1"
        ):
            names |= {a.asname: a.name for a in node.names if a.asname and a.name in SEALED}
    generated = protobuf_modules(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id=name) if name in names:
                yield names[name], node.lineno
            case ast.Attribute(value=owner, attr=name) if name in SEALED:
                if not (isinstance(owner, ast.Name) and owner.id in generated):
                    yield name, node.lineno
            case _:
                pass


def test_sealed_values_are_made_in_one_module_each() -> None:
    """Nobody can skip a stage of the verifier: each proof has one constructor (design 4)."""
    found = {(name, relative(path)) for path in modules() for name, _line in made_in(path)}
    assert found == set(SEALED.items())


def test_nothing_makes_a_sealed_value_by_a_back_door() -> None:
    """The ways around a constructor stay shut: ``__new__`` of a sealed type, and pickles."""
    doors = []
    for path in modules():
        for node in ast.walk(tree_of(path)):
            match node:
                case ast.Import(names=names) | ast.ImportFrom(names=names):
                    words = {alias.name for alias in names} | {getattr(node, "module", None)}
                    found = bool(words & {"pickle", "marshal", "shelve"})
                case ast.Attribute(value=ast.Name(id=owner), attr="__new__"):
                    found = owner in {*SEALED, "object"}
                case _:
                    found = False
            if found:
                doors.append(f"{relative(path)}:{node.lineno}")
    assert doors == []


def test_nothing_named_verify_returns_a_bool() -> None:
    """A forgotten ``if`` must not turn a refusal into trust: verifiers return proof or raise."""
    wrong = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in modules()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.lstrip("_").startswith("verify")
        and (node.returns is None or "bool" in re.findall(r"\w+", ast.unparse(node.returns)))
    ]
    assert wrong == []


# --- shape -----------------------------------------------------------------------------------


def test_modules_are_short_enough_to_be_read_whole() -> None:
    """At most 400 lines: a reviewer holds one module in mind."""
    sizes = {relative(path): len(path.read_text("utf-8").splitlines()) for path in modules()}
    assert {path: size for path, size in sizes.items() if size > MAX_LINES} == {}


def test_no_module_is_a_drawer() -> None:
    """Modules are named after what they are about; utils, helpers, manager, common are not that."""
    drawers = [
        relative(path)
        for path in modules()
        if {path.stem, path.parent.name} & FORBIDDEN_NAMES
        or set(path.stem.split("_")) & FORBIDDEN_NAMES
    ]
    assert drawers == []


def test_each_module_says_what_it_is() -> None:
    """The first line of each module tells a newcomer what stands in it."""
    assert [relative(path) for path in modules() if not ast.get_docstring(tree_of(path))] == []


def test_ports_stay_small() -> None:
    """A port of at most eight methods can be implemented again by somebody else."""
    sizes = {}
    files = sorted((PROJECT / "trustauthority" / "ports").glob("*.py"))
    for node in (node for path in files for node in tree_of(path).body):
        if isinstance(node, ast.ClassDef):
            assert [ast.unparse(base) for base in node.bases] == ["Protocol"], node.name
            methods = [
                n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
            sizes[node.name] = sum(
                not any(ast.unparse(d) == "property" for d in method.decorator_list)
                for method in methods
            )
    assert {name: size for name, size in sizes.items() if size > 8} == {}
    assert set(sizes) == set(ports.__all__)


# --- errors ----------------------------------------------------------------------------------


def subclasses(kind: type[TrustAuthorityError]) -> Iterator[type[TrustAuthorityError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from subclasses(each)


@cache
def error_kinds() -> tuple[type[TrustAuthorityError], ...]:
    """The whole hierarchy, with every module loaded so that none hides elsewhere."""
    for found in pkgutil.walk_packages(
        importlib.import_module("trustauthority").__path__, "trustauthority."
    ):
        if "migrations" not in found.name:
            importlib.import_module(found.name)
    return tuple(dict.fromkeys(subclasses(TrustAuthorityError)))


def documented_reasons() -> list[str]:
    text = (PROJECT / "docs" / "reference" / "errors.md").read_text("utf-8")
    return re.findall(r"^### ([A-Z0-9_]+)$", text, flags=re.MULTILINE)


def test_all_errors_stand_in_one_module() -> None:
    """One file shows every way in which a request can fail."""
    elsewhere = {kind.__name__ for kind in error_kinds() if kind.__module__ != errors.__name__}
    assert elsewhere == set()


def test_reasons_are_unique_and_well_formed() -> None:
    """Scripts and alerts branch on reasons: AIP-193 grammar, one class each, own in each class."""
    found = [kind.reason for kind in error_kinds()]
    assert len(found) == len(set(found))
    assert all("reason" in vars(kind) for kind in error_kinds())
    pattern = re.compile(r"[A-Z][A-Z0-9_]+[A-Z0-9]")
    assert [r for r in found if not pattern.fullmatch(r) or len(r) > 63] == []


def test_every_error_has_a_grpc_code() -> None:
    """Only the root is INTERNAL: whatever has a name has a code that tells the caller what to do."""
    codes = {kind: code_of(kind) for kind in error_kinds()}
    internal = {kind for kind, code in codes.items() if code is grpc.StatusCode.INTERNAL}
    assert internal == {TrustAuthorityError}
    assert not set(codes.values()) & {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN}


def test_every_reason_is_documented_and_nothing_else() -> None:
    """Whoever meets a reason at three in the morning finds it in docs/reference/errors.md."""
    expected = {kind.reason for kind in error_kinds()} | set(reasons.TRANSPORT_REASONS)
    found = documented_reasons()
    assert set(found) == expected
    assert len(found) == len(set(found))


def test_documented_codes_are_the_real_ones() -> None:
    """The gRPC code and exit code under each heading are those of the two tables."""
    text = (PROJECT / "docs" / "reference" / "errors.md").read_text("utf-8")
    pattern = r"^### ([A-Z0-9_]+)\n\n(?:`(\w+)` · )?exit (\d+)$"
    documented = {
        r: (code, int(exits)) for r, code, exits in re.findall(pattern, text, re.MULTILINE)
    }
    expected = {
        **{each: ("", int(exit_code(each))) for each in reasons.TRANSPORT_REASONS},
        **{k.reason: (code_of(k).name, int(exit_code(k.reason))) for k in error_kinds()},
    }
    assert documented == expected


# --- protocol --------------------------------------------------------------------------------


def described_calls() -> set[tuple[str, str]]:
    """Every RPC of the descriptors of our package."""
    calls = set()
    for found in pkgutil.iter_modules([str(GENERATED)]):
        if found.name.endswith("_pb2"):
            descriptor: FileDescriptor = importlib.import_module(
                f"{PACKAGE}.{found.name}"
            ).DESCRIPTOR
            assert descriptor.package == PACKAGE
            for service in descriptor.services_by_name.values():
                calls |= {(service.name, method.name) for method in service.methods}
    return calls


def test_every_rpc_has_a_row_of_the_matrix_and_every_row_an_rpc() -> None:
    """N02: a new RPC without a decision about who may call it fails here, not in production."""
    rows = {(service, call) for service, calls in MATRIX.items() for call in calls}
    assert rows == described_calls()


def test_every_row_lets_somebody_in_and_hosts_are_not_people() -> None:
    """N02: no row is empty, only enrolment is open, and no call serves both a host and a role."""
    for service, calls in MATRIX.items():
        for call, rule in calls.items():
            kinds = (rule.listener is Listener.ENROL, rule.host, bool(rule.roles))
            assert sum(kinds) == 1, f"{service}/{call}"
            assert (rule.listener is Listener.ENROL) == (service == "EnrolmentService")


# --- what was committed ----------------------------------------------------------------------


@cache
def committed_files() -> tuple[Path, ...]:
    """Files that git knows; without git, all that do not lie in folders of tools."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=False
    )
    if listed.returncode == 0:
        paths = [PROJECT / name for name in listed.stdout.decode().split("\0") if name]
    else:
        paths = [
            path
            for path in PROJECT.rglob("*")
            if not any(part.startswith(".") for part in path.relative_to(PROJECT).parts[:1])
        ]
    return tuple(path for path in paths if path.is_file() and not path.is_symlink())


def configured_registries() -> set[str]:
    """Hosts of package registries that this machine is configured to use."""
    addresses = [
        value
        for name, value in os.environ.items()
        if re.fullmatch(r"(PIP|UV)_.*(INDEX|LINKS|HOST).*|GOPROXY|NPM_CONFIG_REGISTRY", name)
    ]
    for path in (
        Path("/etc/pip.conf"),
        Path.home() / ".pip/pip.conf",
        Path.home() / ".config/pip/pip.conf",
    ):
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        parser.read(path)
        addresses += [v for s in parser.sections() for k, v in parser[s].items() if "index" in k]
    found = {urlsplit(part).hostname for value in addresses for part in re.split(r"[\s,|]+", value)}
    return {host for host in found if host} - {"pypi.org", "files.pythonhosted.org"}


def test_no_path_of_this_machine_was_committed() -> None:
    """Files work wherever they are cloned, and tell nothing about who wrote them."""
    folders = [Path.home()] if len(Path.home().parts) > 2 else []
    if len(PROJECT.parts) > 2 and PROJECT.parts[1] not in {"opt", "srv", "usr", "var"}:
        folders.append(PROJECT)
    patterns = [
        rb"(?<![\w./-])" + re.escape(str(folder)).encode() + rb"(?:/|(?![\w-]))"
        for folder in folders
    ]
    wanted = re.compile(b"|".join(patterns or [rb"(?!)"]))
    here = Path(__file__).resolve()
    found = [
        relative(path)
        for path in committed_files()
        if path != here and wanted.search(path.read_bytes())
    ]
    assert found == []


def test_no_registry_was_committed() -> None:
    """A lock that names a registry works on one network only; hashes alone say what is meant."""
    directives = re.compile(
        rb"^\s*(?:--(?:extra-)?index-url|--find-links|--trusted-host|-i\s)|\"resolved\": \"http"
        rb"|^registry = ",
        flags=re.MULTILINE,
    )
    hosts = [host.encode() for host in configured_registries()]
    found = []
    for path in committed_files():
        content = path.read_bytes()
        named = any(host in content for host in hosts)
        locked = path.suffix in {".txt", ".in", ".lock", ".json", ".toml"}
        if named or (locked and directives.search(content)):
            found.append(relative(path))
    assert found == []
