# ruff: noqa: D417 - options is documented by its class
"""``ta policy runtime``: which files a host may run, made from good sources and named by policies."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import Progress

from trustauthority.appraisal.runtimefiles import judge_files as judge_entries
from trustauthority.cli import runtime_sources as sources
from trustauthority.cli.evidence_files import (
    EXIT_REFUSED,
    EXIT_YES,
    Answer,
    Output,
    judge_files,
    print_answers,
    read_log,
)
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.session import session
from trustauthority.cli.text import count
from trustauthority.codec.ima_log import decode_ima_log
from trustauthority.codec.runtimerules import (
    MAX_DOCUMENT_BYTES,
    decode_runtime_rules,
    encode_runtime_rules,
)
from trustauthority.errors import AlreadyExists, InvalidRequest, PolicyInvalid
from trustauthority.verification.runtime import entry_findings

if TYPE_CHECKING:
    from trustauthority.v1.admin_pb2 import UploadRuntimeRulesRequest

app = App(name="runtime", help="Runtime rules: which files a host's runtime log may name.")
CHUNK_BYTES = 256 * 1024
EVERYWHERE = "/*"


@app.command(
    help_epilogue=examples(
        "ta policy runtime create --log binary_runtime_measurements --out rules.json",
        "ta policy runtime create --root /mnt/golden --exclude '/var/log/*' --out rules.json",
        "ta policy runtime create --package linux-image.deb --base rules.json --out new.json",
    )
)
def create(
    *,
    out: Path,
    log: list[Path] | None = None,
    root: Path | None = None,
    package: list[Path] | None = None,
    base: Path | None = None,
    exclude: list[str] | None = None,
    keyring: list[str] | None = None,
    signed: list[str] | None = None,
    force: bool = False,
) -> ExitCode:
    """Write a rules document. Look at it, upload it, then name it in a policy.

    Args:
        out: File to write.
        log: Runtime log of a host that is known to be good; may be given several times.
        root: Root file system: its programs, libraries, modules and firmware.
        package: Debian package; all its files. May be given several times.
        base: Document to begin with: its files, exclusions, keyrings and buffers are kept.
        exclude: Path that is not judged, or the beginning of such paths and *.
        keyring: NAME=FILE with a PEM certificate or public key that signs files.
        signed: Paths for which the keyrings' signatures count (all of them unless given).
        force: Replace the file.
    """
    if not (log or root or package or base or keyring):
        raise InvalidRequest("give at least one of --log, --root, --package, --base", field="log")
    if out.exists() and not force:
        raise AlreadyExists(f"{out} exists: --force replaces it", kind="file", name=str(out))
    files, buffers, rest = _begin(base)
    for each in log or []:
        found, measured = sources.from_log(read_log(each, sources.MAX_LOG_BYTES))
        _merge(files, found.items())
        _merge(buffers, measured.items())
    with Progress(console=Console(stderr=True), transient=True) as progress:
        if root is not None:
            task = progress.add_task("hashing files", total=None)
            _merge(
                files,
                _singles(
                    sources.from_root(
                        root, lambda done: progress.update(task, description=f"{done} files")
                    )
                ),
            )
        for each in progress.track(package or [], description="packages"):
            _merge(files, _singles(sources.from_package(each)))
    rest["buffers"] = {name: sorted(each) for name, each in buffers.items()}
    rest["excluded"] = sorted({*rest.get("excluded", ()), *(exclude or [])})
    rest["keyrings"] = rest.get("keyrings", {}) | _keyrings(keyring or [], signed or [EVERYWHERE])
    document = encode_runtime_rules(files, rest)
    rules = decode_runtime_rules(document)  # what we write is what we would read
    out.write_bytes(document)
    Console(stderr=True).print(
        f"{out}: {count(len(rules.digests), 'path')}, {count(len(rules.buffers), 'buffer')}, "
        f"{len(rules.excluded)} excluded, {count(len(rules.keyrings), 'keyring')}",
        markup=False,
        highlight=False,
    )
    return ExitCode.YES


@app.command(
    help_epilogue=examples(
        "ta policy runtime check rules.json --log measurements.bin",
        "ta policy runtime check rules.json --log host-a.bin --log host-b.bin -o json",
    )
)
def check(
    rules: Path, /, *, log: Annotated[list[Path], Parameter(name="--log")], output: Output = "table"
) -> int:
    """Judge runtime logs by rules, offline.

    Exit status: 0 every entry is approved, 1 some are refused, 2 malformed or unreadable.

    Args:
        rules: Rules document.
        log: Runtime log of Linux IMA, binary or text; may be given several times.
        output: Format of the answer.
    """
    known = decode_runtime_rules(read_log(rules, MAX_DOCUMENT_BYTES))

    def judge(data: bytes) -> Answer:
        entries = decode_ima_log(data).entries
        defects = entry_findings(entries, limit=len(entries) + 1)
        found = judge_entries(
            entries, known, defective=frozenset(defect.index for defect in defects)
        )
        good = not found.refused
        return Answer(
            exit_code=EXIT_YES if good else EXIT_REFUSED,
            reason=None if good else "FILES_NOT_APPROVED",
            message=None if good else f"{found.refused} of {len(entries)} entries are not approved",
            document={
                "rules": found.rules,
                "entries": len(entries),
                "byDigest": found.by_digest,
                "bySignature": found.by_signature,
                "excluded": found.excluded,
                "violations": found.violations,
                "refused": found.refused,
                "named": [
                    {
                        "entry": each.number,
                        "path": each.path,
                        "digest": each.digest,
                        "why": each.why,
                    }
                    for each in found.named
                ],
            },
        )

    return print_answers(judge_files(log, judge, limit=sources.MAX_LOG_BYTES), output, _table)


@app.command(
    help_epilogue=examples(
        "ta policy runtime upload rules.json --dry-run", "ta policy runtime upload rules.json"
    )
)
def upload(file: Path, /, *, dry_run: DryRun = False, options: Options = DEFAULTS) -> ExitCode:
    """Keep a rules document at the authority. It is in force once a policy names its hash.

    Args:
        file: The document.
        dry_run: Only check it.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    document = read_log(file, MAX_DOCUMENT_BYTES)
    decode_runtime_rules(document)

    def parts() -> "Iterator[UploadRuntimeRulesRequest]":
        for start in range(0, len(document), CHUNK_BYTES):
            chunk = document[start : start + CHUNK_BYTES]
            yield admin.UploadRuntimeRulesRequest(chunk=chunk, dry_run=dry_run)

    with session(options) as ta:
        service = ta.authority.on(ClusterServiceStub)
        reply = service.upload(lambda s: s.UploadRuntimeRules, parts())
        ta.done(
            f"the document is good ({reply.sha256}); nothing was kept"
            if dry_run
            else f"{count(reply.files, 'path')} kept; name them in a policy and apply it:\n"
            f'[runtime]\nfiles = "required"\nrules = "{reply.sha256}"',
            reply,
            name=reply.sha256,
        )
    return ExitCode.YES


@app.command(
    help_epilogue=examples(
        "ta policy runtime get SHA256 --out rules.json",
        "ta policy runtime get SHA256 --out rules.json --force",
    )
)
def get(sha256: str, /, *, out: Path, force: bool = False, options: Options = DEFAULTS) -> ExitCode:
    """Fetch a rules document that was uploaded, such as the one a policy names.

    Args:
        sha256: Its hash.
        out: File to write.
        force: Replace the file.
    """
    from trustauthority.v1 import admin_pb2 as admin
    from trustauthority.v1.admin_pb2_grpc import ClusterServiceStub

    if out.exists() and not force:
        raise AlreadyExists(f"{out} exists: --force replaces it", kind="file", name=str(out))
    with session(options) as ta:
        request = admin.GetRuntimeRulesRequest(sha256=sha256)
        service = ta.authority.on(ClusterServiceStub)
        document = bytearray()
        for part in service.stream(lambda s: s.GetRuntimeRules, request):
            document += part.chunk
            if len(document) > MAX_DOCUMENT_BYTES:
                raise InvalidRequest("the document is larger than 64 MiB", field="chunk")
        if decode_runtime_rules(bytes(document)).sha256 != sha256:
            raise PolicyInvalid("what came is not the document of that hash", fields="sha256")
        out.write_bytes(document)
        ta.screen.say(f"wrote {count(len(document), 'byte')} to {out}")
    return ExitCode.YES


def _begin(
    base: Path | None,
) -> tuple[dict[str, set[str]], dict[str, set[str]], dict[str, Any]]:
    """Files, buffers and the other keys of the document to begin with."""
    if base is None:
        return {}, {}, {}
    content = read_log(base, MAX_DOCUMENT_BYTES)
    decode_runtime_rules(content)
    document = json.loads(content)
    files, buffers = (
        {name: set(digests) for name, digests in document.pop(key, {}).items()}
        for key in ("files", "buffers")
    )
    return files, buffers, document


def _merge(into: dict[str, set[str]], found: Any) -> None:
    for name, digests in found:
        into.setdefault(name, set()).update(digests)


def _singles(found: sources.Found) -> Iterator[tuple[str, tuple[str]]]:
    return ((path, (digest,)) for path, digest in found)


def _keyrings(named: list[str], paths: list[str]) -> dict[str, Any]:
    rings: dict[str, Any] = {}
    for each in named:
        name, separator, file = each.partition("=")
        if not (name and separator and file):
            raise InvalidRequest("--keyring is NAME=FILE", field="keyring")
        ring = rings.setdefault(name, {"keys": [], "paths": paths})
        ring["keys"].append(base64.b64encode(_key(read_log(Path(file), 1 << 20))).decode())
    return rings


def _key(content: bytes) -> bytes:
    try:
        return x509.load_pem_x509_certificate(content).public_bytes(Encoding.DER)
    except ValueError:
        try:
            key = load_pem_public_key(content)
        except ValueError as error:
            raise InvalidRequest(
                "a keyring's file is a PEM certificate or public key", field="keyring"
            ) from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _table(document: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{document['entries']} entries: {document['byDigest']} approved by digest, "
        f"{document['bySignature']} by signature, {document['excluded']} excluded, "
        f"{document['violations']} violations, {document['refused']} refused"
    )
    for each in document["named"]:
        yield f"entry {each['entry']}: {each['path'] or '(unreadable)'} {each['digest']}"
        yield f"    {each['why']}"
