"""The other nouns: what is sent, what is shown, what a dry run does."""

import hashlib
import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from fakes.fake_authority import FakeAuthority
from google.protobuf.message import Message
from google.rpc import status_pb2
from grpc import StatusCode
from support.admin_messages import at, verdict
from support.client_certificates import CertificateAuthority
from support.pe_images import Built

from trustauthority.appraisal.baseline import content_sha256
from trustauthority.cli import key_rewrap
from trustauthority.cli.exit import ExitCode
from trustauthority.codec.pe import decode_pe
from trustauthority.keyrelease.keyimport import open_import
from trustauthority.keyrelease.releasepolicy import check_owner_signature
from trustauthority.model.baseline import Component
from trustauthority.v1 import admin_pb2 as admin
from trustauthority.v1 import common_pb2 as common
from trustauthority.v1 import keyadmin_pb2 as keyadmin
from trustauthority.v1 import keyprovider_pb2 as keys
from trustauthority.v1 import placement_pb2 as placement

EK = "5f" * 32


def stamped(message: Any, **times: datetime) -> Any:
    for name, when in times.items():
        getattr(message, name).FromDatetime(when)
    return message


CLUSTER = stamped(
    admin.Cluster(
        name="prod", policy_epoch=7, policy_name="prod-hosts", hosts=3, admit_by_inventory=True
    ),
    created_at=at("08:00:00"),
)
ANCHOR = stamped(
    admin.Anchor(anchor_id="9f3c", cluster="prod", kind=admin.ANCHOR_KIND_CA, subject="CN=TPM CA"),
    expires_at=datetime(2035, 1, 1, tzinfo=UTC),
)
BASELINE = stamped(
    admin.Baseline(
        name="r640",
        cluster="prod",
        state=admin.BASELINE_STATE_PROPOSED,
        sha256="77e0",
        captured_from="esx-a01",
        component=admin.BOOT_COMPONENT_KERNEL,
        expects=["PCR 4: 2 events", "PCR 9: 2 events"],
    ),
    captured_at=at("13:00:00"),
    last_matched_at=at("13:30:00"),
)
VM = stamped(
    keys.Vm(
        vm_id="payroll",
        cluster="prod",
        lease_class=keys.LEASE_CLASS_STRICT,
        lease=common.LeaseTerms(
            lease_ms=300_000,
            continue_for_ms=60_000,
            skew_ms=10_000,
            on_lease_loss=common.ON_LEASE_LOSS_CONTINUE_FOR,
        ),
        owner_host_id="h-1",
        owner_host_name="esx-a01",
        grant_epoch=4,
        key_state=keys.KEY_STATE_ACTIVE,
    ),
    lease_until=at("14:05:00"),
    fence_until=at("14:06:10"),
)
KEY = stamped(
    keys.VmKey(
        vm_id="payroll",
        key_epoch=1,
        state=keys.KEY_STATE_ACTIVE,
        provider="kmip-1",
        kek_id="kek-7",
        created_by="alice",
    ),
    created_at=at("12:00:00"),
)
PROVIDER = keyadmin.KeyProvider(
    name="kmip-1",
    kind="kmip",
    health=admin.HEALTH_OK,
    detail="answers",
    versions=[
        stamped(
            keyadmin.KekVersion(version=2, kek_id="kek-9", keys=3, created_by="alice"),
            created_at=at("13:00:00"),
        ),
        keyadmin.KekVersion(version=1, kek_id="kek-7", created_by="alice"),
    ],
    clusters=["prod"],
    trusts_server=True,
    trusted_by_server=False,
)
HELD = stamped(
    keyadmin.HeldKey(
        vm_id="payroll",
        key_epoch=1,
        current_key_epoch=1,
        host_id="h-1",
        host_name="esx-a01",
        purpose="run",
        baseline="r640",
    ),
    released_at=at("13:00:00"),
)
REWRAP = stamped(
    keyadmin.Rewrap(
        job_id="5f0c",
        provider="kmip-1",
        target="bao",
        target_kek_id="kek-9",
        state=keyadmin.REWRAP_STATE_DONE,
        total=4,
        done=4,
        created_by="alice",
    ),
    created_at=at("13:00:00"),
    updated_at=at("13:01:00"),
)
INTENT = stamped(
    placement.Intent(
        intent_id="i-1", vm_id="payroll", host_id="h-2", host_name="esx-a02", created_by="nova"
    ),
    expires_at=at("14:12:11"),
)


def test_status_is_one_screen(ta, authority: FakeAuthority) -> None:
    """Roles, hosts, parts with what to do; exit 1 when a part is broken."""
    items = [
        admin.HealthItem(name="store", health=admin.HEALTH_OK, detail="12 MiB"),
        admin.HealthItem(
            name="certificates", health=admin.HEALTH_WARNING, detail="host CA: 20 days"
        ),
    ]
    reply = stamped(
        admin.GetStatusResponse(
            version="0.1.0", roles=["attest", "admin"], hosts_passed=3, hosts_failed=1, items=items
        ),
        now=at("14:02:10"),
    )
    authority.answer("GetStatus", reply)
    result = ta("status")
    assert result.code is ExitCode.YES
    assert result.out == (
        "Trust Authority 0.1.0 at SERVER · roles attest, admin · 2026-11-20 14:02:10Z\n"
        "hosts: ● 3 passed  ✖ 1 failed  ? 0 unknown\n"
        "   PART          DETAIL\n"
        "✔  store         12 MiB\n"
        "!  certificates  host CA: 20 days\n"
        "audit log: –\n"
    )
    reply.items.add(name="KMS", health=admin.HEALTH_ERROR, detail="does not answer")
    broken = ta("status")
    assert broken.code is ExitCode.NO
    assert "✖  KMS           does not answer\n" in broken.out


SCREENS = {
    "cluster list": (
        "ListClusters",
        admin.ListClustersResponse(clusters=[CLUSTER]),
        (
            "1 cluster · authority SERVER · 14:02:11Z\n"
            "CLUSTER  HOSTS  POLICY         ADMITS\n"
            "prod     3      prod-hosts v7  by inventory\n"
        ),
    ),
    "anchor list": (
        "ListAnchors",
        admin.ListAnchorsResponse(anchors=[ANCHOR]),
        (
            "1 anchor · authority SERVER · 14:02:11Z\n"
            "KIND  SUBJECT    CLUSTER  EXPIRES               ID\n"
            "ca    CN=TPM CA  prod     2035-01-01 00:00:00Z  9f3c\n"
        ),
    ),
    "anchor crl list": (
        "ListCrls",
        admin.ListCrlsResponse(
            crls=[admin.Crl(crl_id="7e1a", cluster="prod", issuer="CN=TPM CA", revoked=2)]
        ),
        (
            "1 revocation list · authority SERVER · 14:02:11Z\n"
            "ISSUER     CLUSTER  REVOKED  NEXT  ID\n"
            "CN=TPM CA  prod     2        –     7e1a\n"
        ),
    ),
    "inventory list": (
        "ListInventory",
        admin.ListInventoryResponse(
            entries=[admin.InventoryEntry(cluster="prod", ek_sha256="5f0c")]
        ),
        (
            "1 machine · authority SERVER · 14:02:11Z\n"
            "NAME   CLUSTER  CLASS  EK SHA-256\n"
            "(any)  prod     –      5f0c\n"
        ),
    ),
    "baseline list": (
        "ListBaselines",
        admin.ListBaselinesResponse(baselines=[BASELINE]),
        (
            "1 variant · authority SERVER · 14:02:11Z\n"
            "BASELINE  COMPONENT  CLUSTER  CLASS  STATE     LAST MATCHED\n"
            "r640      kernel     prod     (any)  proposed  32m ago\n"
        ),
    ),
    "vm list": (
        "ListVms",
        keys.ListVmsResponse(vms=[VM, keys.Vm(vm_id="free", any_host=True)]),
        (
            "2 VMs · 1 held by a host · authority SERVER · 14:02:11Z\n"
            "VM       CLUSTER  OWNER    EPOCH  LEASE                      UNTIL    KEY     ANY HOST"
            "  STATE\n"
            "payroll  prod     esx-a01  4      strict 5m                  2m left  active  no      "
            "  ● runs\n"
            "free     –        –        0      ! unlimited: never fenced  –        none    ! yes   "
            "  ! no usable key\n"
        ),
    ),
    "key provider list": (
        "ListKeyProviders",
        keyadmin.ListKeyProvidersResponse(providers=[PROVIDER]),
        (
            "1 key provider · authority SERVER · 14:02:11Z\n"
            "PROVIDER  KIND  KEK        VM KEYS  DEFAULT OF  HEALTH\n"
            "kmip-1    kmip  version 2  3        prod        ✔ answers\n"
        ),
    ),
    "key provider show kmip-1": (
        "GetKeyProvider",
        keyadmin.GetKeyProviderResponse(provider=PROVIDER),
        (
            "kmip-1\n"
            "  kind                kmip\n"
            "  health              ✔ answers\n"
            "  we accept the KMS   yes\n"
            "  the KMS accepts us  no\n"
            "  default of          prod\n"
            "  KEK version 2       kek-9: 3 VM keys, made 2026-11-20 13:00:00Z by alice\n"
            "  KEK version 1       kek-7: 0 VM keys, made – by alice\n"
        ),
    ),
    "key jobs": (
        "ListRewraps",
        keyadmin.ListRewrapsResponse(rewraps=[REWRAP]),
        (
            "1 job · authority SERVER · 14:02:11Z\n"
            "JOB   STATE  KEYS OF  WRAPPED BY  DONE  WAITS  BEGAN\n"
            "5f0c  done   kmip-1   bao         4/4   –      2026-11-20 13:00:00Z\n"
        ),
    ),
    "key who-held --host esx-a01": (
        "ListKeyHolders",
        keyadmin.ListKeyHoldersResponse(held=[HELD]),
        (
            "1 release to esx-a01 · authority SERVER · 14:02:11Z\n"
            "VM       KEY EPOCH  RELEASED              UNTIL               PURPOSE  BASELINE\n"
            "payroll  1          2026-11-20 13:00:00Z  ! never given back  run      r640\n"
        ),
    ),
    "vm policy show payroll": (
        "GetReleasePolicy",
        keyadmin.GetReleasePolicyResponse(
            policy=keyadmin.ReleasePolicy(version=2, lines=["one", "two"], signature=b"s")
        ),
        (
            "release policy of payroll\n"
            "  version              2\n"
            "  signed by the owner  yes\n"
            "  asks for             one\n"
            "                       two\n"
        ),
    ),
    "vm show payroll": (
        "GetVm",
        keys.GetVmResponse(vm=VM, release_policy=["the host's region is one of: eu"]),
        (
            "payroll\n"
            "  state                  ● runs\n"
            "  cluster                prod\n"
            "  lease                  strict 5m\n"
            "  fence after            lease + 1m10s\n"
            "  on lease loss          continue-for 1m\n"
            "  any host               no\n"
            "  profile                any definition\n"
            "  key                    active\n"
            "  owner                  esx-a01\n"
            "  grant epoch            4\n"
            "  lease until            2026-11-20 14:05:00Z (2m left)\n"
            "  no other owner before  2026-11-20 14:06:10Z\n"
            "  release policy         the host's region is one of: eu\n"
        ),
    ),
    "key list": (
        "ListKeys",
        keys.ListKeysResponse(keys=[KEY]),
        (
            "1 VM key · authority SERVER · 14:02:11Z\n"
            "VM       STATE   KEY EPOCH  PROVIDER  CREATED\n"
            "payroll  active  1          kmip-1    2026-11-20 12:00:00Z\n"
        ),
    ),
    "key show payroll": (
        "GetKey",
        keys.GetKeyResponse(
            key=KEY,
            releases=[
                stamped(
                    keys.KeyRelease(
                        vm_id="payroll", host_id="h-1", host_name="esx-a01", grant_epoch=4
                    ),
                    released_at=at("13:02:11"),
                )
            ],
        ),
        (
            "payroll\n"
            "  state      active\n"
            "  key epoch  1\n"
            "  provider   kmip-1\n"
            "  KEK        kek-7\n"
            "  created    2026-11-20 12:00:00Z by alice\n"
            "1 release, newest first\n"
            "HOST     EPOCH  AGO  AT                    HOST ID\n"
            "esx-a01  4      60m  2026-11-20 13:02:11Z  h-1\n"
        ),
    ),
    "placement intents": (
        "ListIntents",
        placement.ListIntentsResponse(intents=[INTENT]),
        (
            "1 intent · authority SERVER · 14:02:11Z\n"
            "VM       HOST     UNTIL     USED  BY    ID\n"
            "payroll  esx-a02  10m left  no    nova  i-1\n"
        ),
    ),
}


@pytest.mark.parametrize("command", SCREENS)
def test_screens(ta, authority: FakeAuthority, command: str) -> None:
    """Style 4.1: lists have a header with scope and count, records a line per field."""
    method, reply, screen = SCREENS[command]
    authority.answer(method, reply)
    result = ta(*command.split())
    assert (result.code, result.err) == (ExitCode.YES, "")
    assert result.out == screen
    assert json.loads(ta(*command.split(), "-o", "json").out)
    assert ta(*command.split(), "-o", "name").out.strip()
    assert ta(*command.split(), "-o", "wide").code is ExitCode.YES


EMPTY = {
    "cluster list": ("ListClusters", admin.ListClustersResponse(), "ta cluster create"),
    "anchor list": ("ListAnchors", admin.ListAnchorsResponse(), "ta anchor add"),
    "anchor crl list": ("ListCrls", admin.ListCrlsResponse(), "its maker took back"),
    "inventory list": ("ListInventory", admin.ListInventoryResponse(), "ta inventory add"),
    "baseline list": ("ListBaselines", admin.ListBaselinesResponse(), "ta baseline capture"),
    "vm list": ("ListVms", keys.ListVmsResponse(), "ta vm protect"),
    "key list": ("ListKeys", keys.ListKeysResponse(), "ta key create"),
    "placement intents": ("ListIntents", placement.ListIntentsResponse(), "ta placement intent"),
    "identity list": ("ListIdentities", admin.ListIdentitiesResponse(), "ta identity issue"),
}


@pytest.mark.parametrize("command", EMPTY)
def test_empty_lists_say_what_to_do_next(ta, authority: FakeAuthority, command: str) -> None:
    """Style 4.1: an empty state is an invitation, on standard error."""
    method, reply, hint = EMPTY[command]
    authority.answer(method, reply)
    result = ta(*command.split())
    assert (result.code, result.out) == (ExitCode.YES, "")
    assert hint in result.err


SENT: dict[str, tuple[str, Message, Message]] = {
    "cluster create lab": (
        "CreateCluster",
        admin.CreateClusterResponse(cluster=CLUSTER),
        admin.CreateClusterRequest(name="lab"),
    ),
    f"anchor add --ek-sha256 {EK} --yes": (
        "AddAnchor",
        admin.AddAnchorResponse(anchor=ANCHOR),
        admin.AddAnchorRequest(
            cluster="prod", kind=admin.ANCHOR_KIND_EK, ek_sha256=bytes.fromhex(EK), ek_type="rsa"
        ),
    ),
    "key suspend payroll --why audit": (
        "ChangeKeyState",
        keyadmin.ChangeKeyStateResponse(key=KEY),
        keyadmin.ChangeKeyStateRequest(
            vm_id="payroll", step=keyadmin.KEY_STEP_SUSPEND, why="audit"
        ),
    ),
    "key resume payroll --epoch 3": (
        "ChangeKeyState",
        keyadmin.ChangeKeyStateResponse(key=KEY),
        keyadmin.ChangeKeyStateRequest(vm_id="payroll", key_epoch=3, step=keyadmin.KEY_STEP_RESUME),
    ),
    "key deactivate payroll --yes": (
        "ChangeKeyState",
        keyadmin.ChangeKeyStateResponse(key=KEY),
        keyadmin.ChangeKeyStateRequest(vm_id="payroll", step=keyadmin.KEY_STEP_DEACTIVATE),
    ),
    "key compromise payroll --yes": (
        "ChangeKeyState",
        keyadmin.ChangeKeyStateResponse(key=KEY),
        keyadmin.ChangeKeyStateRequest(vm_id="payroll", step=keyadmin.KEY_STEP_COMPROMISE),
    ),
    "key destroy payroll --epoch 2 --yes": (
        "DestroyKey",
        keyadmin.DestroyKeyResponse(key=KEY),
        keyadmin.DestroyKeyRequest(vm_id="payroll", key_epoch=2),
    ),
    "key cancel-destroy payroll --dry-run": (
        "CancelDestroyKey",
        keyadmin.CancelDestroyKeyResponse(key=KEY),
        keyadmin.CancelDestroyKeyRequest(vm_id="payroll", dry_run=True),
    ),
    "key provider create bao": (
        "CreateKeyProvider",
        keyadmin.CreateKeyProviderResponse(provider=PROVIDER),
        keyadmin.CreateKeyProviderRequest(name="bao"),
    ),
    "key provider set-default bao -c lab": (
        "SetDefaultKeyProvider",
        keyadmin.SetDefaultKeyProviderResponse(),
        keyadmin.SetDefaultKeyProviderRequest(cluster="lab", provider="bao"),
    ),
    "key rewrap --provider kmip-1 --to bao --new-kek": (
        "StartRewrap",
        keyadmin.StartRewrapResponse(rewrap=REWRAP),
        keyadmin.StartRewrapRequest(provider="kmip-1", target="bao", new_kek=True),
    ),
    "key rewrap --dry-run": (
        "StartRewrap",
        keyadmin.StartRewrapResponse(rewrap=REWRAP),
        keyadmin.StartRewrapRequest(provider="default", dry_run=True),
    ),
    "key jobs 5f0c --cancel": (
        "CancelRewrap",
        keyadmin.CancelRewrapResponse(rewrap=REWRAP),
        keyadmin.CancelRewrapRequest(job_id="5f0c"),
    ),
    "host set-region esx-a01 eu": (
        "SetHostRegion",
        keyadmin.SetHostRegionResponse(),
        keyadmin.SetHostRegionRequest(host="esx-a01", region="eu"),
    ),
    "key roll payroll": (
        "RollKey",
        keyadmin.RollKeyResponse(key=KEY),
        keyadmin.RollKeyRequest(vm_id="payroll"),
    ),
    "key roll payroll --to 2 --yes": (
        "SwitchKey",
        keyadmin.SwitchKeyResponse(key=KEY),
        keyadmin.SwitchKeyRequest(vm_id="payroll", key_epoch=2),
    ),
    "anchor remove 9f3c --yes": (
        "RemoveAnchor",
        admin.RemoveAnchorResponse(),
        admin.RemoveAnchorRequest(cluster="prod", anchor_id="9f3c"),
    ),
    "anchor crl remove 7e1a --yes": (
        "RemoveCrl",
        admin.RemoveCrlResponse(),
        admin.RemoveCrlRequest(cluster="prod", crl_id="7e1a"),
    ),
    f"inventory add --ek-sha256 {EK} --class r650 --yes": (
        "AddInventory",
        admin.AddInventoryResponse(added=1),
        admin.AddInventoryRequest(
            entries=[admin.InventoryEntry(cluster="prod", ek_sha256=EK, host_class="r650")]
        ),
    ),
    f"inventory add --ek-sha256 sha256:{EK.upper()} --name esx-a07 -c lab --yes": (
        "AddInventory",
        admin.AddInventoryResponse(added=1),
        admin.AddInventoryRequest(
            entries=[admin.InventoryEntry(cluster="lab", ek_sha256=EK, name="esx-a07")]
        ),
    ),
    f"inventory remove --ek-sha256 {EK} --yes": (
        "RemoveInventory",
        admin.RemoveInventoryResponse(),
        admin.RemoveInventoryRequest(cluster="prod", ek_sha256=EK),
    ),
    "baseline capture r640 --host esx-a01": (
        "CaptureBaseline",
        admin.CaptureBaselineResponse(baselines=[BASELINE], sha256="77e0"),
        admin.CaptureBaselineRequest(cluster="prod", name="r640", host="esx-a01"),
    ),
    "baseline capture r640 --host esx-a01 --component kernel --class r650": (
        "CaptureBaseline",
        admin.CaptureBaselineResponse(baselines=[BASELINE], sha256="77e0"),
        admin.CaptureBaselineRequest(
            cluster="prod",
            name="r640",
            host="esx-a01",
            component=admin.BOOT_COMPONENT_KERNEL,
            host_class="r650",
        ),
    ),
    "baseline predict next --host esx-a01 --command-line quiet --dry-run": (
        "PredictBaseline",
        admin.PredictBaselineResponse(
            baselines=[BASELINE], bank="sha256", pcrs=[admin.PredictedPcr(index=8, value="aa")]
        ),
        admin.PredictBaselineRequest(
            cluster="prod", name="next", host="esx-a01", command_line="quiet", dry_run=True
        ),
    ),
    "baseline approve r640 --component secure-boot --sha256 77e0 --yes": (
        "ApproveBaseline",
        admin.ApproveBaselineResponse(baselines=[BASELINE], policy_epoch=8),
        admin.ApproveBaselineRequest(
            cluster="prod",
            name="r640",
            sha256="77e0",
            component=admin.BOOT_COMPONENT_SECURE_BOOT,
        ),
    ),
    "baseline approve r640 --sha256 77e0 --yes": (
        "ApproveBaseline",
        admin.ApproveBaselineResponse(baselines=[BASELINE], policy_epoch=8),
        admin.ApproveBaselineRequest(cluster="prod", name="r640", sha256="77e0"),
    ),
    "baseline retire r640 --dry-run": (
        "RetireBaseline",
        admin.RetireBaselineResponse(baselines=[BASELINE]),
        admin.RetireBaselineRequest(cluster="prod", name="r640", dry_run=True),
    ),
    f"vm protect payroll --lease strict --any-host --profile-sha256 {EK}": (
        "ProtectVm",
        keys.ProtectVmResponse(vm=VM),
        keys.ProtectVmRequest(
            vm_id="payroll",
            cluster="prod",
            lease_class=keys.LEASE_CLASS_STRICT,
            any_host=True,
            profile_digest=bytes.fromhex(EK),
        ),
    ),
    "key create payroll --provider kmip-1": (
        "CreateKey",
        keys.CreateKeyResponse(key=KEY),
        keys.CreateKeyRequest(vm_id="payroll", provider="kmip-1"),
    ),
    "placement intent --vm payroll --host esx-a02 --ttl 30m": (
        "CreateIntent",
        placement.CreateIntentResponse(intent=INTENT),
        placement.CreateIntentRequest(vm_id="payroll", host="esx-a02", ttl_ms=1_800_000),
    ),
}


@pytest.mark.parametrize("command", SENT)
def test_what_is_sent(ta, authority: FakeAuthority, command: str) -> None:
    """The request says exactly what was typed, once, and the answer is shown in every form."""
    method, reply, request = SENT[command]
    authority.answer(method, reply)
    result = ta(*command.split())
    assert result.code is ExitCode.YES
    assert result.out
    assert [r for r in authority.requests if type(r) is type(request)] == [request]
    json.loads(ta(*command.split(), "-o", "json").out)


DRY = [
    command.replace(" --yes", "")
    for command, (_, _, request) in SENT.items()
    if "dry_run" not in request.DESCRIPTOR.fields_by_name
] + ["identity revoke bob", "identity renew"]


@pytest.mark.parametrize("command", DRY)
def test_a_dry_run_that_the_server_can_not_do_sends_nothing(
    ta, authority: FakeAuthority, command: str
) -> None:
    """--dry-run on every mutation: what would be sent is shown, and nobody is asked."""
    result = ta(*command.split(), "--dry-run")
    assert result.code is ExitCode.YES
    assert "the authority was not asked" in result.err
    assert result.out
    assert not authority.requests


def test_anchor_add_shows_what_it_would_trust(ta, authority: FakeAuthority) -> None:
    """The subject, the validity and the hash of each CA are shown before anything is sent."""
    maker = CertificateAuthority("TPM maker root")
    file = ta.home / "maker.pem"
    file.write_bytes(maker.pem + CertificateAuthority("TPM maker 2").pem)
    authority.answer("AddAnchor", admin.AddAnchorResponse(anchor=ANCHOR))
    refused = ta("anchor", "add", str(file), "--cluster", "prod")
    assert refused.code is ExitCode.USAGE
    assert "subject     CN=TPM maker root\n" in refused.err
    assert "valid to    2045-01-01 00:00:00Z\n" in refused.err
    assert not authority.requests
    assert ta("anchor", "add", str(file), "--cluster", "prod", "--yes").code is ExitCode.YES
    sent = [r.certificate for r in authority.requests]
    assert len(sent) == 2
    assert sent[0] == maker.certificate.public_bytes(serialization.Encoding.DER)
    assert ta("anchor", "add", str(file), "--dry-run").code is ExitCode.YES
    assert authority.request(admin.AddAnchorRequest).dry_run


def test_lists_are_all_looked_at_before_one_counts(ta, authority: FakeAuthority, tmp_path) -> None:
    """Bad input loses nothing: with one bad list among three, none is in force."""
    folder = tmp_path / "crls"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.crl").write_bytes(b"list %d" % number)

    def answer(request: admin.AddCrlRequest) -> Message | status_pb2.Status:
        if request.crl == b"list 2":
            return status_pb2.Status(code=StatusCode.INVALID_ARGUMENT.value[0], message="no list")
        return admin.AddCrlResponse(crl=admin.Crl(crl_id="7e1a", cluster="prod"))

    authority.answer("AddCrl", answer)
    assert ta("anchor", "crl", "add", str(folder), "--yes").code is ExitCode.USAGE
    assert [each.dry_run for each in authority.requests] == [True, True, True]
    (folder / "2.crl").unlink()
    assert ta("anchor", "crl", "add", str(folder), "--yes").code is ExitCode.YES
    assert [each.dry_run for each in authority.requests[3:]] == [True, True, False, False]
    assert ta("anchor", "crl", "add", "--yes").code is ExitCode.USAGE


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
def test_anchor_add_refuses_what_is_no_certificate(
    ta, authority: FakeAuthority, content: bytes
) -> None:
    """A wrong file is told before anything is sent."""
    file = ta.home / "x.pem"
    file.write_bytes(content)
    assert ta("anchor", "add", str(file), "--yes").code is ExitCode.USAGE
    assert not authority.requests


@pytest.mark.parametrize(
    "tokens",
    [
        ["anchor", "add"],
        ["anchor", "add", "x.pem", "--ek-sha256", EK],
        ["anchor", "add", "--ek-sha256", "5f0c"],
        ["anchor", "add", "--ek-sha256", EK[:-1]],
        ["anchor", "add", "--ek-sha256", EK + "5f"],
        ["inventory", "add"],
        ["inventory", "add", "--ek-sha256", "../../x"],
        ["vm", "protect", "a", "--profile-sha256", "zz"],
        ["policy", "apply", "/nonexistent"],
    ],
)
def test_wrong_arguments_are_told_without_asking(ta, authority: FakeAuthority, tokens) -> None:
    """Bad hashes, missing files and half-said commands end with 2 before any call."""
    result = ta(*tokens, "--yes")
    assert result.code is ExitCode.USAGE
    assert not authority.requests


def test_inventory_from_a_file(ta, authority: FakeAuthority) -> None:
    """A line a machine; comments and empty lines are skipped."""
    file = ta.home / "machines.txt"
    file.write_text(f"# rack 4\n{EK} esx-a01\n\n{'ab' * 32}\n")
    authority.answer("AddInventory", admin.AddInventoryResponse(added=1))
    result = ta("inventory", "add", str(file), "--yes")
    assert result.code is ExitCode.YES
    assert result.out == "1 machine is registered in cluster prod, 1 were known\n"
    sent = authority.request(admin.AddInventoryRequest).entries
    assert [(e.ek_sha256, e.name) for e in sent] == [(EK, "esx-a01"), ("ab" * 32, "")]


@pytest.mark.parametrize(
    "line", ["zz", f"{EK} UPPER", f"{EK} a b", f"{EK} ../x", "", f"{EK} a\x1b[1m", "\xff" * 40]
)
def test_a_bad_line_of_the_file_is_named(ta, authority: FakeAuthority, line: str) -> None:
    """N44: nothing is registered when one line is wrong."""
    file = ta.home / "machines.txt"
    file.write_text(line + "\n")
    result = ta("inventory", "add", str(file), "--yes")
    assert result.code is ExitCode.USAGE
    assert "\x1b" not in result.err
    assert not authority.requests


def test_baseline_diff_answers_by_exit_code(ta, authority: FakeAuthority) -> None:
    """0 is no drift, 1 is drift, shown as the same tree as explain."""
    checks = verdict().checks
    authority.answer("DiffBaseline", admin.DiffBaselineResponse(matches=False, checks=checks))
    result = ta("baseline", "diff", "esx-a03", "r640")
    assert result.code is ExitCode.NO
    assert result.out.startswith("✖ esx-a03 differs from baseline r640\n")
    assert "expected  dbx 2025-05 c2b1…" in result.out
    authority.answer("DiffBaseline", admin.DiffBaselineResponse(matches=True))
    assert ta("baseline", "diff", "esx-a03", "r640").code is ExitCode.YES


def test_baseline_approve_shows_what_is_approved(ta, authority: FakeAuthority) -> None:
    """S10: without --sha256 the content is fetched, shown, and its hash is what is approved."""
    authority.answer("ListBaselines", admin.ListBaselinesResponse(baselines=[BASELINE]))
    authority.answer("ApproveBaseline", admin.ApproveBaselineResponse(baselines=[BASELINE]))
    result = ta("baseline", "approve", "r640", "--yes")
    assert result.code is ExitCode.YES
    assert "kernel: PCR 4: 2 events" in result.err
    assert authority.request(admin.ApproveBaselineRequest).sha256 == "77e0"
    assert ta("baseline", "approve", "nope", "--yes").code is ExitCode.NOT_FOUND


def test_baseline_approve_covers_every_component_of_the_name(ta, authority: FakeAuthority) -> None:
    """S10: what was looked at together is approved together; one by one with --component."""
    firmware = admin.Baseline()
    firmware.CopyFrom(BASELINE)
    firmware.component, firmware.sha256 = admin.BOOT_COMPONENT_FIRMWARE, "88e0"
    authority.answer("ListBaselines", admin.ListBaselinesResponse(baselines=[firmware, BASELINE]))
    authority.answer(
        "ApproveBaseline", admin.ApproveBaselineResponse(baselines=[firmware, BASELINE])
    )
    assert ta("baseline", "approve", "r640", "--yes").code is ExitCode.YES
    together = content_sha256({Component.FIRMWARE: "88e0", Component.KERNEL: "77e0"})
    assert authority.request(admin.ApproveBaselineRequest).sha256 == together
    assert ta("baseline", "approve", "r640", "--component", "firmware", "--yes").code == 0
    assert authority.request(admin.ApproveBaselineRequest).sha256 == "88e0"
    missing = ta("baseline", "approve", "r640", "--component", "boot-loader", "--yes")
    assert missing.code is ExitCode.NOT_FOUND


def test_baseline_predict_sends_hashes_not_files(ta, authority: FakeAuthority) -> None:
    """The kernel stays here; its hash as firmware measures it is what travels."""
    answer = admin.PredictBaselineResponse(
        baselines=[BASELINE],
        sha256="77e0",
        bank="sha256",
        pcrs=[admin.PredictedPcr(index=4, value="c0ffee")],
    )
    authority.answer("PredictBaseline", answer)
    image = Built(sections=((b".text", b"x"), (b".cmdline", b"quiet"))).bytes
    (ta.home / "vmlinuz").write_bytes(image)
    (ta.home / "initrd").write_bytes(b"no executable")
    replaced = [
        f"--replace={role}={ta.home / file}"
        for role, file in (("kernel", "vmlinuz"), ("/boot/initrd", "initrd"))
    ]
    result = ta("baseline", "predict", "next", "--from", "r640", *replaced)
    assert result.code is ExitCode.YES
    assert "PCR 4 sha256" in result.out
    assert "c0ffee" in result.out
    assert "ta baseline approve next -c prod --sha256 77e0" in result.out
    sent = authority.request(admin.PredictBaselineRequest)
    kernel, initrd = sent.files
    assert (sent.base, kernel.role, initrd.role) == ("r640", "kernel", "/boot/initrd")
    (found,) = [each for each in kernel.digests if each.bank == "sha256"]
    assert found.file == hashlib.sha256(image).digest()
    assert found.image == decode_pe(image).image_hash(hashlib.sha256())
    assert {each.section: each.digest for each in found.sections}[".cmdline"] == (
        hashlib.sha256(b"quiet").digest()
    )
    options = "quiet".encode("utf-16-le") + b"\0\0"
    assert found.load_options == hashlib.sha256(options).digest()
    assert {each.image for each in initrd.digests} == {b""}
    assert image not in sent.SerializeToString()


@pytest.mark.parametrize("argument", ["kernel", "=file", "kernel=", "kernel=/no/such/file"])
def test_baseline_predict_asks_for_a_role_and_a_file(
    ta, authority: FakeAuthority, argument: str
) -> None:
    """A wrong argument is a usage error, and nothing is sent."""
    result = ta("baseline", "predict", "next", "--host", "esx-a01", "--replace", argument)
    assert result.code is ExitCode.USAGE
    assert not authority.requests


def test_baseline_list_asks_whether_an_unused_variant_is_needed(
    ta, authority: FakeAuthority
) -> None:
    """An approved variant that nobody boots any more is trust that nobody needs."""
    variant = admin.Baseline()
    variant.CopyFrom(BASELINE)
    variant.state = admin.BASELINE_STATE_APPROVED
    variant.last_matched_at.FromDatetime(at("13:00:00") - timedelta(days=91))
    authority.answer("ListBaselines", admin.ListBaselinesResponse(baselines=[variant]))
    assert "91d ago: safe to delete?" in ta("baseline", "list").out
    variant.ClearField("last_matched_at")
    authority.answer("ListBaselines", admin.ListBaselinesResponse(baselines=[variant]))
    assert "never\n" in ta("baseline", "list").out
    variant.captured_at.FromDatetime(at("13:00:00") - timedelta(days=91))
    authority.answer("ListBaselines", admin.ListBaselinesResponse(baselines=[variant]))
    assert "never: safe to delete?" in ta("baseline", "list").out
    variant.state = admin.BASELINE_STATE_RETIRED
    authority.answer("ListBaselines", admin.ListBaselinesResponse(baselines=[variant]))
    assert "safe" not in ta("baseline", "list").out


def test_policy_round_trips(ta, authority: FakeAuthority) -> None:
    """What show prints is byte for byte what apply takes; narration is on standard error."""
    text = 'name = "prod-hosts"\n# ünïcode\n'
    reply = stamped(
        admin.GetPolicyResponse(
            document=text, policy_epoch=7, policy_sha256="aa", applied_by="bob"
        ),
        applied_at=at("09:00:00"),
    )
    authority.answer("GetPolicy", reply)
    shown = ta("policy", "show")
    assert shown.out == text
    assert "version 7" in shown.err
    file = ta.home / "p.toml"
    file.write_text(shown.out)
    authority.answer("ApplyPolicy", admin.ApplyPolicyResponse(policy_epoch=8, policy_sha256="bb"))
    assert ta("policy", "apply", str(file)).out.startswith("policy version 8 is in force")
    assert authority.request(admin.ApplyPolicyRequest).document == text
    assert "nothing was changed" in ta("policy", "apply", str(file), "--dry-run").out
    file.write_bytes(b"\xff")
    assert ta("policy", "apply", str(file)).code is ExitCode.USAGE


def test_a_hostile_policy_is_escaped_for_people_only(ta, authority: FakeAuthority) -> None:
    """N44: a terminal gets escapes, a file gets the bytes."""
    authority.answer("GetPolicy", admin.GetPolicyResponse(document="a\x1b[31m\n"))
    assert ta("policy", "show").out == "a\x1b[31m\n"
    ta.terminal = True
    assert ta("policy", "show").out == "a\\x1b[31m\n"


def answers(*allowed: bool) -> placement.CheckPlacementResponse:
    reply = placement.CheckPlacementResponse()
    for number, yes in enumerate(allowed, start=1):
        answer = reply.answers.add(vm_id="payroll", host=f"esx-{number}", allowed=yes)
        if not yes:
            answer.unmet.add(reason="HOST_NOT_ATTESTED", detail="failed at 13:58")
        answer.warnings.append("any host may start it")
    return reply


@pytest.mark.parametrize(
    ("allowed", "code"),
    [((True,), 0), ((False,), 1), ((True, False), 1), ((True, True), 0)],
)
def test_placement_check_is_for_scripts(
    ta, authority: FakeAuthority, allowed: tuple[bool, ...], code: int
) -> None:
    """Style 4.2: exit 0 is yes, 1 is no with the reasons; -o name lists those that may."""
    authority.answer("CheckPlacement", answers(*allowed))
    hosts = [word for n in range(len(allowed)) for word in ("--host", f"esx-{n + 1}")]
    result = ta("placement", "check", "--vm", "payroll", *hosts)
    assert result.code == code
    assert ("HOST_NOT_ATTESTED  failed at 13:58" in result.out) == (code == 1)
    assert "! any host may start it" in result.out
    names = ta("placement", "check", "--vm", "payroll", *hosts, "-o", "name").out.split()
    assert names == [f"esx-{n}" for n, yes in enumerate(allowed, start=1) if yes]


def test_fewer_answers_than_questions_is_a_no(ta, authority: FakeAuthority) -> None:
    """S12: a host that was not answered for may not be used."""
    authority.answer("CheckPlacement", answers(True))
    two = ["--host", "a", "--host", "b"]
    assert ta("placement", "check", "--vm", "payroll", *two).code is ExitCode.NO
    authority.answer("CheckPlacement", answers())
    assert ta("placement", "check", "--vm", "payroll", "--host", "a").code is ExitCode.NO


def test_the_only_cluster_is_meant(ta, authority: FakeAuthority) -> None:
    """Without --cluster: the context's, else the only one; with several it is asked for."""
    ta.contexts.write_text(ta.contexts.read_text().replace('cluster = "prod"\n', ""))
    authority.answer("GetPolicy", admin.GetPolicyResponse(document="x"))
    authority.answer("ListClusters", admin.ListClustersResponse())
    assert "ta cluster create" in ta("policy", "show").err
    authority.answer("ListClusters", admin.ListClustersResponse(clusters=[CLUSTER]))
    assert ta("policy", "show").code is ExitCode.YES
    assert authority.request(admin.GetPolicyRequest).cluster == "prod"
    two = [CLUSTER, admin.Cluster(name="lab")]
    authority.answer("ListClusters", admin.ListClustersResponse(clusters=two))
    result = ta("policy", "show")
    assert result.code is ExitCode.USAGE
    assert "--cluster with one of: prod, lab" in result.err


def test_impossible_times_do_not_break_a_screen(ta, authority: FakeAuthority) -> None:
    """N44: a Timestamp out of range is shown as nothing."""
    vm = keys.Vm(vm_id="x")
    vm.lease_until.seconds = 1 << 60
    vm.fence_until.nanos = -5
    authority.answer("GetVm", keys.GetVmResponse(vm=vm))
    assert ta("vm", "show", "x").code is ExitCode.YES
    assert json.loads(ta("vm", "show", "x", "-o", "json").out)["leaseUntil"] is None


def test_times_are_relative_in_one_unit() -> None:
    """6h, 2d, 4m: short enough to compare down a column."""
    from trustauthority.cli.text import span

    cases = {5: "5s", 59: "59s", 60: "1m", 119: "1m", 3_600: "60m", 7_200: "2h", 172_800: "2d"}
    assert {seconds: span(timedelta(seconds=seconds)) for seconds in cases} == cases


def test_a_job_is_followed_to_its_end(ta, authority: FakeAuthority, monkeypatch) -> None:
    """The command ends when the job does: 0 when all is wrapped, 1 when somebody ended it."""
    monkeypatch.setattr(key_rewrap, "POLL_S", 0.0)
    ta.terminal = True
    for last, code in (
        (keyadmin.REWRAP_STATE_DONE, ExitCode.YES),
        (keyadmin.REWRAP_STATE_CANCELLED, ExitCode.NO),
    ):
        running = keyadmin.Rewrap(job_id="5f0c", state=keyadmin.REWRAP_STATE_RUNNING, total=4)
        states = iter([keyadmin.REWRAP_STATE_RUNNING, keyadmin.REWRAP_STATE_RUNNING, last])
        authority.answer("StartRewrap", keyadmin.StartRewrapResponse(rewrap=running))
        authority.answer(
            "GetRewrap",
            lambda _, states=states: keyadmin.GetRewrapResponse(
                rewrap=keyadmin.Rewrap(job_id="5f0c", state=next(states), total=4, done=1)
            ),
        )
        assert ta("key", "rewrap", "--new-kek").code is code
        assert next(states, None) is None
    authority.forget()
    authority.answer("StartRewrap", keyadmin.StartRewrapResponse(rewrap=running))
    assert ta("key", "rewrap", "--no-wait").code is ExitCode.YES
    assert len(authority.requests) == 1
    assert ta("key", "jobs", "--cancel").code is ExitCode.USAGE


def test_exposed_keys_become_a_plan(ta, authority: FakeAuthority, tmp_path) -> None:
    """Each key once with all its holders; only a current key needs a new one, every disk re-encrypting."""
    older = keyadmin.HeldKey(vm_id="payroll", key_epoch=1, current_key_epoch=2, host_id="h-9")
    again = keyadmin.HeldKey(vm_id="payroll", key_epoch=1, current_key_epoch=2, host_name="esx-a01")
    newer = keyadmin.HeldKey(vm_id="build", key_epoch=2, current_key_epoch=2, host_id="h-9")
    pages = {
        "": keyadmin.ListKeyHoldersResponse(held=[older, newer], next_page_token="7"),
        "7": keyadmin.ListKeyHoldersResponse(held=[again]),
    }
    authority.answer("ListKeyHolders", lambda request: pages[request.page_token])
    plan = tmp_path / "rekey.json"
    result = ta("key", "exposed", "--baseline", "r640", "--since", "1d", "--plan", str(plan))
    assert result.code is ExitCode.NO
    assert "re-encrypt the disk" in result.err
    made = json.loads(plan.read_text())
    assert made["because"] == {"baseline": "r640"}
    assert [(e["vm"], e["keyEpoch"], e["roll"], e["heldBy"]) for e in made["vms"]] == [
        ("build", 2, True, ["h-9"]),
        ("payroll", 1, False, ["esx-a01", "h-9"]),
    ]
    asked = authority.request(keyadmin.ListKeyHoldersRequest)
    assert asked.since.ToDatetime(tzinfo=UTC) == ta.now - timedelta(days=1)
    assert ta("key", "exposed", "--host", "h", "--plan", str(plan)).code is ExitCode.USAGE
    authority.answer("RollKey", keyadmin.RollKeyResponse(key=KEY))
    rolled = ta("key", "roll", "--plan", str(plan))
    assert rolled.code is ExitCode.YES
    assert "re-encrypt the disk" in rolled.err
    assert authority.request(keyadmin.RollKeyRequest).vm_id == "build"
    assert ta("key", "roll", "payroll", "--plan", str(plan)).code is ExitCode.USAGE
    assert ta("key", "roll", "--plan", "/nowhere").code is ExitCode.USAGE
    assert ta("key", "exposed").code is ExitCode.USAGE
    authority.answer("ListKeyHolders", keyadmin.ListKeyHoldersResponse())
    assert ta("key", "exposed", "--ek-model", "X").code is ExitCode.YES


@pytest.mark.parametrize("curve", ["ed25519", "p-256"])
def test_an_owner_signs_what_is_sent(ta, authority: FakeAuthority, tmp_path, curve: str) -> None:
    """The bytes that the owner signed are those that the authority gets, however the file was written."""
    key = (
        Ed25519PrivateKey.generate()
        if curve == "ed25519"
        else ec.generate_private_key(ec.SECP256R1())
    )
    owner, file, out = (tmp_path / name for name in ("owner.key", "policy.json", "policy.sig"))
    owner.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    file.write_text('{ "version": 2,\n "regions": ["eu"] }')
    words = ("--file", str(file), "--key", str(owner), "--out", str(out))
    owner.chmod(0o644)
    assert ta("vm", "policy", "sign", "payroll", *words).code is ExitCode.USAGE
    owner.chmod(0o600)
    assert ta("vm", "policy", "sign", "payroll", *words).code is ExitCode.YES
    assert ta("vm", "policy", "sign", "payroll", *words).code is ExitCode.USAGE  # it exists
    reply = keyadmin.SetReleasePolicyResponse(policy=keyadmin.ReleasePolicy(version=2))
    authority.answer("SetReleasePolicy", reply)
    sent = ("--file", str(file), "--signature", str(out))
    assert ta("vm", "policy", "set", "payroll", *sent).code is ExitCode.YES
    asked = authority.request(keyadmin.SetReleasePolicyRequest)
    assert json.loads(asked.document)["vm"] == "payroll"
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    check_owner_signature(b64encode(public).decode(), asked.document, asked.signature)


@pytest.mark.parametrize("content", ["", "[]", '{"version": 0}', '{"version": 1, "region": []}'])
def test_a_wrong_release_policy_is_told_without_asking(
    ta, authority: FakeAuthority, tmp_path, content: str
) -> None:
    """A document that the authority would refuse is not sent."""
    file = tmp_path / "policy.json"
    file.write_text(content)
    assert ta("vm", "policy", "set", "payroll", "--file", str(file)).code is ExitCode.USAGE
    assert ta("vm", "policy", "set", "payroll", "--file", "/nowhere").code is ExitCode.USAGE
    assert not authority.requests


def test_a_passphrase_is_sealed_before_it_is_sent(ta, authority: FakeAuthority, tmp_path) -> None:
    """N69: not in the request, the output or an error; only from a file that nobody else can read."""
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    authority.answer("GetImportKey", keyadmin.GetImportKeyResponse(public_key=public))
    authority.answer("ImportKey", keyadmin.ImportKeyResponse(key=KEY))
    file = tmp_path / "passphrase"
    file.write_bytes(b"correct horse\n")
    words = ("key", "import", "payroll", "--from-file", str(file))
    file.chmod(0o644)
    assert ta(*words).code is ExitCode.USAGE
    assert not authority.requests
    file.chmod(0o600)
    dry = ta(*words, "--dry-run")
    done = ta(*words)
    assert (dry.code, done.code) == (ExitCode.YES, ExitCode.YES)
    assert "newline" in done.err
    sent = authority.request(keyadmin.ImportKeyRequest).sealed_key
    assert bytes(open_import(sent, private, "payroll")) == b"correct horse\n"
    for shown in (dry.out, dry.err, done.out, done.err, repr(sent)):
        assert "correct horse" not in shown
    for content in (b"", bytes(4_097)):
        file.write_bytes(content)
        assert ta(*words).code is ExitCode.USAGE
