"""``ta vm protect --domain``: the authority's part and the host's, in an order that can be repeated."""

import json
from pathlib import Path

import grpc
import pytest
from fakes.fake_authority import FakeAuthority

from trustauthority.cli.exit import ExitCode
from trustauthority.v1 import keyprovider_pb2 as keys
from trustauthority.v1 import placement_pb2 as pb

DIGEST = "91ab" * 16
PLAN = {
    "vm": "payroll",
    "domain": "pay",
    "host": "esx-a01",
    "profile_sha256": DIGEST,
    "disks": [{"target": "vda", "was": "plain", "plain": "/vm/p.img", "disk": "/vm/p.ta.qcow2"}],
}


class Host:
    """A hostagent that plans, and does or refuses; remembers its words."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "hostagent.log"
        self.plan, self.do = folder / "plan.json", folder / "do.sh"
        self.plan.write_text(json.dumps(PLAN))
        self.does(0)
        program = folder / "hostagent"
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {self.log}\n'
            f'case "$*" in *--plan*) cat {self.plan};; *) . {self.do};; esac\n'
        )
        program.chmod(0o755)

    def does(self, status: int) -> None:
        self.do.write_text(f"cat {self.plan}; exit {status}\n")

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def host(tmp_path: Path, monkeypatch) -> Host:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Host(folder)


def vm(**changes) -> keys.Vm:
    return keys.Vm(vm_id="payroll", cluster="prod", profile_digest=bytes.fromhex(DIGEST), **changes)


@pytest.fixture(autouse=True)
def _answers(authority: FakeAuthority) -> None:
    authority.answer("ProtectVm", keys.ProtectVmResponse(vm=vm()))
    authority.answer("GetVm", keys.GetVmResponse(vm=vm()))
    authority.answer("CreateKey", keys.CreateKeyResponse())
    authority.answer("CreateIntent", pb.CreateIntentResponse())


def exists(authority: FakeAuthority, method: str) -> None:
    authority.fail(method, code=grpc.StatusCode.ALREADY_EXISTS, reason="ALREADY_EXISTS")


WORDS = ("vm", "protect", "payroll", "--domain", "pay")


def test_records_keys_reason_then_disks(ta, authority: FakeAuthority, host: Host) -> None:
    """The profile is that of the new definition; the disks come last, when the key can be had."""
    result = ta(*WORDS)
    assert result.code is ExitCode.YES, result.err
    kinds = [type(request).__name__ for request in authority.requests]
    assert kinds == ["ProtectVmRequest", "CreateKeyRequest", "CreateIntentRequest"]
    assert authority.request(keys.ProtectVmRequest).profile_digest.hex() == DIGEST
    assert authority.request(pb.CreateIntentRequest).host == "esx-a01"
    assert [("--plan" in line) for line in host.asked] == [True, False]
    assert "/vm/p.img is in the clear" in result.err
    assert "virsh start pay" in result.out


def test_repeated_after_a_failure(ta, authority: FakeAuthority, host: Host) -> None:
    """What an earlier try did is not done again, and does not stand in the way."""
    host.does(1)
    assert ta(*WORDS).code is ExitCode.NO
    exists(authority, "ProtectVm")
    exists(authority, "CreateKey")
    host.does(0)
    assert ta(*WORDS).code is ExitCode.YES


def test_another_profile_is_not_taken_over(ta, authority: FakeAuthority, host: Host) -> None:
    """A VM that is protected with another definition is reprofiled by a person, not by the way."""
    exists(authority, "ProtectVm")
    authority.answer(
        "GetVm", keys.GetVmResponse(vm=keys.Vm(vm_id="payroll", profile_digest=b"x" * 32))
    )
    result = ta(*WORDS)
    assert result.code is ExitCode.NO
    assert f"ta vm reprofile payroll --profile-sha256 {DIGEST}" in result.err
    assert len(host.asked) == 1


@pytest.mark.parametrize("changes", [{"any_host": True}, {"last_owner_host_id": "h-1"}])
def test_no_reason_is_given_where_there_is_one(
    ta, authority: FakeAuthority, host: Host, changes
) -> None:
    """An intent that nobody needs would lie around."""
    authority.answer("ProtectVm", keys.ProtectVmResponse(vm=vm(**changes)))
    assert ta(*WORDS).code is ExitCode.YES
    assert not any(isinstance(r, pb.CreateIntentRequest) for r in authority.requests)


def test_may_not_give_a_reason(ta, authority: FakeAuthority, host: Host) -> None:
    """Without the role the host's disks are not touched."""
    authority.fail("CreateIntent", code=grpc.StatusCode.PERMISSION_DENIED, reason="ROLE_REQUIRED")
    assert ta(*WORDS).code is ExitCode.DENIED
    assert len(host.asked) == 1


def test_words_go_to_the_host(ta, authority: FakeAuthority, host: Host) -> None:
    """The passphrase goes by the name of its file, never as a word."""
    words = ("--passphrase-file", "/root/old", "--erase-old-passphrase", "--host-config", "/h.toml")
    assert ta(*WORDS, *words).code is ExitCode.YES
    assert host.asked[-1] == (
        "vm protect pay --vm payroll --passphrase-file /root/old --erase-old-passphrase "
        "--config /h.toml --json"
    )


def test_dry_run_asks_nobody(ta, authority: FakeAuthority, host: Host) -> None:
    """Only the plan: what would be encrypted, and what would be sent."""
    result = ta(*WORDS, "--dry-run")
    assert result.code is ExitCode.YES
    assert authority.requests == []
    assert len(host.asked) == 1
    assert DIGEST in result.out


def test_a_host_that_prints_nonsense(ta, authority: FakeAuthority, host: Host) -> None:
    """Without a digest nothing is recorded."""
    for nonsense in ("", "[]", "{}", '{"profile_sha256": "zz"}'):
        host.plan.write_text(nonsense)
        assert ta(*WORDS).code is ExitCode.NO
    assert authority.requests == []


def test_domain_or_profile(ta, host: Host) -> None:
    """The profile comes of the domain: both is a mistake."""
    assert ta(*WORDS, "--profile-sha256", DIGEST).code is ExitCode.USAGE
    assert host.asked == []


def test_a_new_disk_goes_to_the_host(ta, authority: FakeAuthority, host: Host) -> None:
    """Its words as they were given; hostagent judges them, when it plans already."""
    host.plan.write_text(
        json.dumps(PLAN | {"disks": [{"target": "vda", "was": "new", "plain": "/d", "disk": "/d"}]})
    )
    words = ("--new-disk", "/d", "--new-size", "20GiB", "--new-target", "vda", "--new-thin")
    result = ta(*WORDS, *words)
    assert result.code is ExitCode.YES, result.err
    told = "--new-disk /d --new-size 20GiB --new-target vda --new-thin"
    assert [told in line for line in host.asked] == [True, True]
    assert "new and empty" in result.err
    assert "in the clear" not in result.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--domain", "pay", "--new-disk", "/d"), "--new-size 20GiB"),
        (("--domain", "pay", "--new-size", "1GiB"), "--new-disk"),
        (("--domain", "pay", "--new-target", "vdb"), "--new-disk"),
        (("--domain", "pay", "--new-thin"), "--new-disk"),
        (("--new-disk", "/d", "--new-size", "1GiB"), "--domain"),
    ],
)
def test_half_a_new_disk(ta, authority: FakeAuthority, host: Host, words, says: str) -> None:
    """Nobody is asked, nothing is recorded."""
    result = ta("vm", "protect", "payroll", *words)
    assert result.code is ExitCode.USAGE
    assert says in result.err
    assert (authority.requests, host.asked) == ([], [])


def test_a_new_disk_that_the_host_refuses(ta, authority: FakeAuthority, host: Host) -> None:
    """While it plans: nothing is recorded at the authority."""
    (host.log.parent / "hostagent").write_text("#!/bin/sh\necho exists >&2; exit 1\n")
    result = ta(*WORDS, "--new-disk", "/d", "--new-size", "1GiB")
    assert result.code is ExitCode.NO
    assert authority.requests == []
