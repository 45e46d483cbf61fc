"""Who may call what: every call of the protocol against every kind of caller (N02).

The cases come from the descriptors, so that a new call without a row in the matrix fails here.
"""

from dataclasses import replace

import grpc
import pytest
from support.authority import (
    RPCS,
    Authority,
    Credentials,
    Rpc,
    call,
    certify,
    foreign_authority,
    issue,
    self_signed,
    served,
)

from trustauthority.adapters.clock import SystemClock
from trustauthority.adapters.keyfiles import ADMIN_CA, HOST_CA, SERVER_CA
from trustauthority.model.catalogue import Role
from trustauthority.model.host import Admission
from trustauthority.rpc.authorize import MATRIX, Listener, rule_of

Code = grpc.StatusCode
DAY_MS = 24 * 3_600_000
MUTUAL = tuple(rpc for rpc in RPCS if rpc.service != "EnrolmentService")
ENROLMENT = tuple(rpc for rpc in RPCS if rpc.service == "EnrolmentService")


@pytest.fixture
async def authority(tmp_path):
    async with served(tmp_path) as running:
        yield running


def handlers_that_ran(authority: Authority) -> list[dict]:
    return authority.journal.of("rpc")


async def refusals(
    authority: Authority,
    credentials: Credentials | None,
    rpcs: tuple[Rpc, ...],
    listener: str = "mutual",
) -> dict[str, tuple[Code, str]]:
    channel = authority.channel(credentials, listener)
    answers = {}
    for rpc in rpcs:
        answer = await call(channel, rpc)
        answers[str(rpc)] = (answer.code, answer.reason)
    await channel.close()
    return answers


# --- the matrix ------------------------------------------------------------------------------


@pytest.mark.parametrize("rpc", RPCS, ids=str)
def test_every_call_of_the_protocol_has_a_row(rpc):
    """N02: a new call without a rule is found here, not in the field."""
    assert rule_of(rpc.path) is not None


def test_the_matrix_has_no_rows_of_calls_that_do_not_exist():
    """N02: a row under a mistyped name would protect nothing."""
    rows = {(service, name) for service, calls in MATRIX.items() for name in calls}
    assert rows == {(rpc.service, rpc.name) for rpc in RPCS}


@pytest.mark.parametrize("rpc", RPCS, ids=str)
def test_only_enrolment_answers_to_nobody(rpc):
    """N02: a rule names a host or at least one role, unless it is one of the three of enrolment."""
    rule = rule_of(rpc.path)
    assert (rule.listener is Listener.ENROL) == (rpc.service == "EnrolmentService")
    assert rule.listener is Listener.ENROL or rule.host or rule.roles


@pytest.mark.parametrize(
    "path",
    [
        "/trustauthority.v1.HostService/Nope",
        "/trustauthority.v2.HostService/ListHosts",
        "/HostService/ListHosts",
        "/evil.trustauthority.v1.EnrolmentService/Enrol",
        "//trustauthority.v1.HostService//ListHosts",
        "",
    ],
)
def test_other_names_have_no_rule(path):
    """N02: the default is deny."""
    assert rule_of(path) is None


# --- the handshake ---------------------------------------------------------------------------


def _expired(authority: Authority) -> Credentials:
    return issue(
        authority.authority(ADMIN_CA),
        "/identity/admin",
        now_ms=SystemClock().now_ms() - 2 * DAY_MS,
        ttl_ms=DAY_MS,
    )


def _not_yet(authority: Authority) -> Credentials:
    return issue(
        authority.authority(ADMIN_CA), "/identity/admin", now_ms=SystemClock().now_ms() + DAY_MS
    )


def _foreign(authority: Authority) -> Credentials:
    return issue(foreign_authority(), "/identity/admin", now_ms=SystemClock().now_ms())


def _server(authority: Authority) -> Credentials:
    files = authority.files
    return Credentials(
        chain=files.path("server-attest", "crt").read_bytes(), key=files.secret("server-attest")
    )


def _by_server_ca(authority: Authority) -> Credentials:
    return issue(authority.authority(SERVER_CA), "/identity/admin", now_ms=SystemClock().now_ms())


def _server_usage(authority: Authority) -> Credentials:
    """Of the right CA, but for servers."""
    from cryptography.hazmat.primitives.asymmetric import ec

    from trustauthority.adapters.keyfiles import private_pem

    key = ec.generate_private_key(ec.SECP256R1())
    chain = authority.authority(ADMIN_CA).issue_server(
        key.public_key(), names=("admin",), now_ms=SystemClock().now_ms(), ttl_ms=DAY_MS
    )
    return Credentials(chain=chain, key=private_pem(key))


def _leaf_as_issuer(authority: Authority) -> Credentials:
    """A host's certificate that issues one for an administrator."""
    from dataclasses import replace as changed

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    leaf = issue(authority.authority(HOST_CA), "/host/h-1", now_ms=SystemClock().now_ms())
    fake_ca = changed(
        authority.authority(HOST_CA),
        certificate=x509.load_pem_x509_certificate(leaf.chain),
        key=load_pem_private_key(leaf.key, None),
    )
    made = issue(fake_ca, "/identity/admin", now_ms=SystemClock().now_ms())
    return Credentials(chain=made.chain + leaf.chain, key=made.key)


STRANGERS = {
    "no certificate": lambda _authority: None,
    "self-signed": lambda _authority: self_signed("admin"),
    "expired": _expired,
    "from tomorrow": _not_yet,
    "another CA of the same name": _foreign,
    "the server's own": _server,
    "of the CA of the servers": _by_server_ca,
    "of the admin CA, for a server": _server_usage,
    "issued by a host's leaf": _leaf_as_issuer,
}


@pytest.mark.parametrize("who", STRANGERS)
async def test_a_stranger_does_not_get_past_the_handshake(authority, who):
    """N02: for every call, the client sees UNAVAILABLE and no handler runs."""
    answers = await refusals(authority, STRANGERS[who](authority), RPCS)
    assert answers == {str(rpc): (Code.UNAVAILABLE, "") for rpc in RPCS}
    assert handlers_that_ran(authority) == []


async def test_the_key_of_another_does_not_pass(authority):
    """N02: a certificate is worth nothing without its key."""
    stolen = replace(authority.admin, key=self_signed().key)
    # the client's own TLS stack refuses the pair; nothing reaches the listener
    answers = await refusals(authority, stolen, MUTUAL[:1])
    assert [code for code, _ in answers.values()] == [Code.UNAVAILABLE]
    assert handlers_that_ran(authority) == []


# --- behind the handshake --------------------------------------------------------------------


async def test_an_unregistered_key_of_the_admin_ca_may_nothing(authority):
    """N02: a certificate without a registered key is nobody, even from the right CA."""
    ghost = await authority.identity("ghost", registered=False)
    answers = await refusals(authority, ghost, RPCS)
    assert answers == {str(rpc): (Code.UNAUTHENTICATED, "UNAUTHENTICATED") for rpc in RPCS}


async def test_a_name_in_a_certificate_is_not_an_identity(authority):
    """N02: somebody certified as "admin" with another key is not admin."""
    double = issue(authority.authority(ADMIN_CA), "/identity/admin", now_ms=SystemClock().now_ms())
    answers = await refusals(authority, double, MUTUAL)
    assert set(answers.values()) == {(Code.UNAUTHENTICATED, "UNAUTHENTICATED")}


async def test_an_admin_key_certified_by_the_host_ca_is_no_admin(authority):
    """N02: the role is the issuing CA and the key together; the host CA can't make administrators."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(authority.admin.key, None)
    crossed = certify(authority.authority(HOST_CA), key, "/identity/admin", SystemClock().now_ms())
    answers = await refusals(authority, crossed, MUTUAL)
    assert set(answers.values()) == {(Code.UNAUTHENTICATED, "UNAUTHENTICATED")}


async def test_a_host_key_certified_by_the_admin_ca_is_no_host(authority):
    """N02: the admin CA can't make hosts either."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    await cluster(authority)
    host = await authority.host("h-1")
    key = load_pem_private_key(host.key, None)
    crossed = certify(authority.authority(ADMIN_CA), key, "/host/h-1", SystemClock().now_ms())
    answers = await refusals(authority, crossed, MUTUAL)
    assert set(answers.values()) == {(Code.UNAUTHENTICATED, "UNAUTHENTICATED")}


async def cluster(authority: Authority) -> None:
    rpc = named("ClusterService.CreateCluster")
    answer = await call(authority.channel(authority.admin), rpc, rpc.request(name="lab"))
    assert answer.code is Code.OK, answer


def named(name: str) -> Rpc:
    (rpc,) = (rpc for rpc in RPCS if str(rpc) == name)
    return rpc


async def test_a_host_may_only_make_the_calls_of_hosts(authority):
    """N02, N62: with a host's certificate every other call is PERMISSION_DENIED."""
    await cluster(authority)
    host = await authority.host("h-1")
    answers = await refusals(authority, host, MUTUAL)
    for rpc in MUTUAL:
        denied = answers[str(rpc)] == (Code.PERMISSION_DENIED, "ROLE_REQUIRED")
        assert denied == (not rule_of(rpc.path).host), (str(rpc), answers[str(rpc)])


async def test_a_removed_host_may_nothing(authority):
    """N02: the row of a removed host stays, its certificate is worth nothing."""
    await cluster(authority)
    gone = await authority.host("h-gone", admission=Admission.REMOVED)
    answers = await refusals(authority, gone, MUTUAL)
    assert set(answers.values()) == {(Code.PERMISSION_DENIED, "ROLE_REQUIRED")}


async def test_a_host_is_removed_on_its_open_connection(authority):
    """N02: removal counts for the next call, not for the next handshake."""
    await cluster(authority)
    channel = authority.channel(await authority.host("h-1"))
    challenge = named("AttestationService.GetChallenge")
    assert (await call(channel, challenge)).code is Code.OK
    remove = named("HostService.RemoveHost")
    admin = authority.channel(authority.admin)
    assert (await call(admin, remove, remove.request(host="name-h-1"))).code is Code.OK
    answer = await call(channel, challenge)
    assert (answer.code, answer.reason) == (Code.PERMISSION_DENIED, "ROLE_REQUIRED")


async def test_a_key_that_no_host_enrolled_is_nobody(authority):
    """N02: a certificate of the host CA over another key than an enrolled one opens nothing."""
    made = issue(authority.authority(HOST_CA), "/host/h-1", now_ms=SystemClock().now_ms())
    answers = await refusals(authority, made, MUTUAL)
    assert set(answers.values()) == {(Code.UNAUTHENTICATED, "UNAUTHENTICATED")}


@pytest.mark.parametrize("role", Role, ids=str)
async def test_a_role_may_make_exactly_its_calls(authority, role):
    """N02, N62: for each role and call, the listener answers as the matrix says."""
    person = await authority.identity(f"person-{role}", role)
    answers = await refusals(authority, person, MUTUAL)
    for rpc in MUTUAL:
        denied = answers[str(rpc)] == (Code.PERMISSION_DENIED, "ROLE_REQUIRED")
        assert denied == (role not in rule_of(rpc.path).roles), (str(rpc), answers[str(rpc)])


async def test_an_identity_without_roles_may_nothing(authority):
    """N02: registered is not permitted."""
    nobody = await authority.identity("nobody")
    answers = await refusals(authority, nobody, MUTUAL)
    assert set(answers.values()) == {(Code.PERMISSION_DENIED, "ROLE_REQUIRED")}


async def test_the_refusal_names_the_roles_that_would_do(authority):
    """N02: ROLE_REQUIRED says which role, in metadata too."""
    person = await authority.identity("person", Role.PLACEMENT)
    answer = await call(authority.channel(person), named("HostService.RevokeHost"))
    assert answer.metadata == {"role": "hosts, operator"}
    assert "hosts, operator" in answer.text


async def test_a_revoked_identity_is_stopped_at_once(authority):
    """N02: on its open connection, at the next call, for every call."""
    person = await authority.identity("person", *Role)
    channel, admin = authority.channel(person), authority.channel(authority.admin)
    status, revoke = named("StatusService.GetStatus"), named("IdentityService.RevokeIdentity")
    assert (await call(channel, status)).code is Code.OK
    assert (await call(admin, revoke, revoke.request(name="person"))).code is Code.OK
    for rpc in MUTUAL:
        answer = await call(channel, rpc)
        assert (answer.code, answer.reason) == (Code.UNAUTHENTICATED, "UNAUTHENTICATED"), str(rpc)


async def test_a_certificate_ends_on_an_open_connection_too(authority):
    """N02: TLS looks at the end of a certificate once; each call looks at it again."""
    channel = authority.channel(authority.admin)
    status = named("StatusService.GetStatus")
    assert (await call(channel, status)).code is Code.OK
    authority.clock.pass_ms(31 * DAY_MS)
    answer = await call(channel, status)
    assert (answer.code, answer.reason) == (Code.UNAUTHENTICATED, "UNAUTHENTICATED")
    assert "expired" in answer.text


# --- the wrong listener ----------------------------------------------------------------------


async def test_the_enrolment_listener_serves_enrolment_only(authority):
    """Rule 66, N02: every other call is UNAUTHENTICATED there, whatever certificate is shown."""
    for credentials in (None, authority.admin):
        answers = await refusals(authority, credentials, MUTUAL, "enrol")
        assert set(answers.values()) == {(Code.UNAUTHENTICATED, "UNAUTHENTICATED")}


@pytest.mark.parametrize(
    "path",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/trustauthority.v1.HostService/Nope",
    ],
)
async def test_the_enrolment_listener_tells_nothing_else(authority, path):
    """N02: no health, no reflection, no hint of what exists for who is not known."""
    channel = authority.channel(None, "enrol")
    stub = channel.unary_unary(path)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub(b"", timeout=5)
    assert caught.value.code() is Code.UNAUTHENTICATED


async def test_enrolment_is_not_served_behind_client_certificates(authority):
    """N02: an administrator can't enrol a host over the mutual listener."""
    answers = await refusals(authority, authority.admin, ENROLMENT)
    assert set(answers.values()) == {(Code.UNAUTHENTICATED, "UNAUTHENTICATED")}


async def test_a_role_that_lives_in_another_process_is_unimplemented(tmp_path):
    """N02: the call is not refused but not known here, so that a client asks the other process."""
    async with served(tmp_path, roles=frozenset({"placement", "admin"})) as authority:
        answer = await call(
            authority.channel(authority.admin), named("KeyProviderService.ListKeys")
        )
        assert answer.code is Code.UNIMPLEMENTED
