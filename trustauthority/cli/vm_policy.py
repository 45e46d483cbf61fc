# ruff: noqa: D417 - options is documented by its class
"""``ta vm policy``: what must hold for the host that gets one VM's key."""

import json
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App

from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import DEFAULTS, DryRun, Options
from trustauthority.cli.render import STRONG, Field, Marked
from trustauthority.cli.session import Session, screen_for, session
from trustauthority.cli.text import absolute, moment

if TYPE_CHECKING:
    from trustauthority.v1.keyadmin_pb2 import ReleasePolicy

policy_app = App(name="policy", help="The release policy of one VM: which hosts may get its key.")


@policy_app.command(
    help_epilogue=examples("ta vm policy show payroll", "ta vm policy show payroll -o json")
)
def show(vm: str, /, *, options: Options = DEFAULTS) -> ExitCode:
    """Show a VM's release policy and what it asks for.

    Args:
        vm: Id of the VM.
    """
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    with session(options) as ta:
        service = ta.authority.on(KeyAdministrationServiceStub)
        request = admin.GetReleasePolicyRequest(vm_id=vm)
        _show(ta, vm, service.read(lambda s: s.GetReleasePolicy, request).policy)
    return ExitCode.YES


@policy_app.command(
    name="set",
    help_epilogue=examples(
        "ta vm policy set payroll --file policy.json",
        "ta vm policy set payroll --file policy.json --signature policy.sig --dry-run",
    ),
)
def put(
    vm: str,
    /,
    *,
    file: Path,
    signature: Path | None = None,
    dry_run: DryRun = False,
    options: Options = DEFAULTS,
) -> ExitCode:
    """Put the next version of a VM's release policy in force. It counts for the next release of the key.

    Args:
        vm: Id of the VM.
        file: The policy, JSON: docs/reference/keys.md.
        signature: What ta vm policy sign made of it; needed once a version named an owner's key.
        dry_run: Only check.
    """
    from trustauthority.v1 import keyadmin_pb2 as admin
    from trustauthority.v1.keyadmin_pb2_grpc import KeyAdministrationServiceStub

    document = _canonical(vm, file)
    signed = b"" if signature is None else _read(signature)
    with session(options) as ta:
        request = admin.SetReleasePolicyRequest(
            vm_id=vm, document=document, signature=signed, dry_run=dry_run
        )
        service = ta.authority.on(KeyAdministrationServiceStub)
        _show(ta, vm, service.write(lambda s: s.SetReleasePolicy, request).policy)
    return ExitCode.YES


@policy_app.command(
    help_epilogue=examples(
        "ta vm policy sign payroll --file policy.json --key owner.key --out policy.sig",
        "ta vm policy sign payroll --file p.json --key owner.key --out p.sig -q",
    )
)
def sign(vm: str, /, *, file: Path, key: Path, out: Path, options: Options = DEFAULTS) -> ExitCode:
    """Sign a version of a release policy as the VM's owner. Needs no authority and no network.

    Args:
        vm: Id of the VM.
        file: The policy.
        key: The owner's private key, PEM, Ed25519 or P-256, mode 600.
        out: File to write the signature to.
    """
    from trustauthority.client.files import read_private
    from trustauthority.errors import AlreadyExists

    if out.exists():
        raise AlreadyExists(f"{out} exists", kind="file", name=str(out))
    signature, public = _sign(_canonical(vm, file), read_private(key, "owner's key"))
    out.write_bytes(signature)
    screen = screen_for(options)
    screen.say(f"wrote {out}; the owner's key, for ownerKey: {public}")
    return ExitCode.YES


def _sign(document: bytes, pem: bytes) -> tuple[bytes, str]:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from trustauthority.errors import InvalidRequest
    from trustauthority.keyrelease.releasepolicy import LABEL

    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise InvalidRequest("the owner's key is no unencrypted PEM", field="key") from error
    if isinstance(key, Ed25519PrivateKey):
        signature = key.sign(LABEL + document)
    elif isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name == "secp256r1":
        signature = key.sign(LABEL + document, ec.ECDSA(hashes.SHA256()))
    else:
        raise InvalidRequest("the owner's key is Ed25519 or P-256", field="key")
    spki = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return signature, b64encode(spki).decode()


def _canonical(vm: str, file: Path) -> bytes:
    """The bytes that are sent and signed: format and VM may be left out of the file."""
    from trustauthority.errors import InvalidRequest
    from trustauthority.keyrelease.releasepolicy import (
        FORMAT,
        decode_release_policy,
        encode_release_policy,
    )

    try:
        found: Any = json.loads(_read(file))
    except ValueError as error:
        raise InvalidRequest(f"{file}: not JSON: {error}", field="file") from error
    if not isinstance(found, dict):
        raise InvalidRequest(f"{file}: an object is expected", field="file")
    document = json.dumps({"format": FORMAT, "vm": vm} | found).encode()
    return encode_release_policy(decode_release_policy(document))


def _read(path: Path) -> bytes:
    from trustauthority.errors import InvalidRequest

    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"can't read {path}: {error.strerror}", field="file") from error


def _show(ta: Session, vm: str, policy: "ReleasePolicy") -> None:
    since = moment(policy.set_at)
    fields = [
        Field("version", str(policy.version) if policy.version else "none"),
        Field("set", f"{absolute(since)} by {policy.set_by}" if since else ""),
        Field("signed by the owner", "yes" if policy.signature else ""),
        *(
            Field("asks for" if not number else "", line)
            for number, line in enumerate(policy.lines)
        ),
    ]
    title = Marked(text=f"release policy of {vm}", style=STRONG)
    ta.screen.record(title, fields, name=vm, data=policy)
