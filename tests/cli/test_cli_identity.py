"""ta identity: keys are made here, stay here, and are readable by one."""

import json
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fakes.fake_authority import FakeAuthority
from support.admin_messages import at

from trustauthority.cli.exit import ExitCode
from trustauthority.v1 import admin_pb2 as admin


@pytest.fixture
def files(ta) -> tuple[Path, Path]:
    return ta.home / "bob.key", ta.home / "bob.pem"


def issue(ta, files: tuple[Path, Path], *more: str):
    key, cert = files
    roles = ["--role", "policy", "--role", "keys"]
    return ta("identity", "issue", "bob", *roles, "--key", str(key), "--cert", str(cert), *more)


def reply() -> admin.IssueIdentityResponse:
    identity = admin.Identity(
        name="bob",
        roles=[admin.ROLE_POLICY, admin.ROLE_KEYS],
        key_sha256="ab" * 32,
        issued_by="alice",
    )
    identity.certificate_expires_at.FromDatetime(at("23:00:00"))
    return admin.IssueIdentityResponse(
        certificate_chain=b"CHAIN",
        identity=identity,
        warnings=["one identity holds policy and keys"],
    )


def test_issue_makes_the_key_here(ta, authority: FakeAuthority, files) -> None:
    """The request carries a P-256 public key and its proof; the private key is only in a 0600 file."""
    authority.answer("IssueIdentity", reply())
    result = issue(ta, files, "--yes", "--ttl", "2h")
    assert result.code is ExitCode.YES
    key, cert = files
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    sent = authority.request(admin.IssueIdentityRequest)
    request = x509.load_pem_x509_csr(sent.certificate_request)
    assert request.is_signature_valid
    assert request.public_key() == private.public_key()
    assert (sent.name, list(sent.roles), sent.ttl_ms) == ("bob", [1, 3], 7_200_000)
    assert key.stat().st_mode & 0o777 == 0o600
    assert cert.read_bytes() == b"CHAIN"
    assert "! one identity holds policy and keys" in result.err
    assert "roles              policy, keys" in result.out
    assert "PRIVATE" not in result.out + result.err


def test_issue_can_add_a_context(ta, authority: FakeAuthority, files) -> None:
    """From nothing to a working context in one command."""
    authority.answer("IssueIdentity", reply())
    assert issue(ta, files, "--yes", "--add-context", "bob").code is ExitCode.YES
    context = json.loads(ta("context", "show", "bob", "-o", "json").out)
    assert (context["key"], context["certificate"]) == (str(files[0]), str(files[1]))
    assert ta("context", "show", "-o", "name").out == "test\n"


def test_a_refused_issue_leaves_no_key(ta, authority: FakeAuthority, files) -> None:
    """A key that nobody certified is not left lying about."""
    authority.fail("IssueIdentity", code=grpc.StatusCode.PERMISSION_DENIED, reason="ROLE_REQUIRED")
    assert issue(ta, files, "--yes").code is ExitCode.DENIED
    assert not files[0].exists()
    assert not files[1].exists()


@pytest.mark.parametrize("which", [0, 1])
def test_nothing_is_overwritten(ta, authority: FakeAuthority, files, which: int) -> None:
    """A key or certificate in use is not replaced by a slip, and nobody is asked."""
    files[which].write_text("precious")
    assert issue(ta, files, "--yes").code is ExitCode.USAGE
    assert files[which].read_text() == "precious"
    assert not authority.requests


def test_issue_dry_run_writes_and_sends_nothing(ta, authority: FakeAuthority, files) -> None:
    """--dry-run leaves no key behind."""
    result = issue(ta, files, "--dry-run")
    assert result.code is ExitCode.YES
    assert "the authority was not asked" in result.err
    assert not files[0].exists()
    assert not authority.requests


def test_renew_replaces_the_context_s_certificate(ta, authority: FakeAuthority) -> None:
    """The key stays, the certificate file is new and still the owner's alone."""
    fresh = reply()
    authority.answer(
        "RenewIdentity",
        admin.RenewIdentityResponse(certificate_chain=b"NEW", identity=fresh.identity),
    )
    key = (ta.home / "alice.key").read_bytes()
    assert ta("identity", "renew", "--ttl", "90d").code is ExitCode.YES
    assert (ta.home / "alice.pem").read_bytes() == b"NEW"
    assert (ta.home / "alice.key").read_bytes() == key
    assert authority.request(admin.RenewIdentityRequest).ttl_ms == 90 * 86_400_000


def test_a_failed_renewal_keeps_the_old_certificate(ta, authority: FakeAuthority) -> None:
    """Nothing is lost when there is no answer."""
    before = (ta.home / "alice.pem").read_bytes()
    authority.fail("RenewIdentity", code=grpc.StatusCode.UNAVAILABLE)
    assert ta("identity", "renew").code is ExitCode.NO_ANSWER
    assert (ta.home / "alice.pem").read_bytes() == before


def test_list_shows_roles_and_ends(ta, authority: FakeAuthority) -> None:
    """Who may do what, until when."""
    gone = admin.Identity(name="eve", roles=[admin.ROLE_AUDITOR, 99], revoked=True)
    rows = [reply().identity, gone]
    authority.answer("ListIdentities", admin.ListIdentitiesResponse(identities=rows))
    assert ta("identity", "list").out == (
        "2 identities · authority SERVER · 14:02:11Z\n"
        "IDENTITY  ROLES         STATE      CERTIFICATE  ISSUED BY\n"
        "bob       policy, keys  active     8h left      alice\n"
        "eve       auditor, 99   ✖ revoked  –            –\n"
    )


def test_revoke_asks_and_then_revokes(ta, authority: FakeAuthority) -> None:
    """A script must say --yes."""
    authority.answer("RevokeIdentity", admin.RevokeIdentityResponse())
    assert ta("identity", "revoke", "bob").code is ExitCode.USAGE
    assert not authority.requests
    assert ta("identity", "revoke", "bob", "--yes").code is ExitCode.YES
    assert authority.request(admin.RevokeIdentityRequest).name == "bob"


def test_every_role_can_be_given():
    """A role that the authority knows and ta can't give would stay with the first identity."""
    from trustauthority.cli import identity
    from trustauthority.model.catalogue import Role as Known

    assert {str(role) for role in Known} == {str(role) for role in identity.RoleName}
