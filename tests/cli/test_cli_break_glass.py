"""``ta key break-glass``, ``drill`` and ``escrow`` against a fake authority: what is sent and what is said."""

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from support.escrow import PRIVATE, VM_KEY, binding, public, sealed

from trustauthority.cli.escrow_files import encrypt_private_key
from trustauthority.cli.exit import ExitCode
from trustauthority.keyrelease.escrow import drill_answer
from trustauthority.keyrelease.escrow_export import decode_drill, decode_export
from trustauthority.v1 import breakglass_pb2 as glass_pb
from trustauthority.v1 import escrow_pb2 as escrow_pb
from trustauthority.v1 import keyprovider_pb2 as keys

NOW = datetime(2026, 11, 20, 14, 2, 11, tzinfo=UTC)
PASSPHRASE = "correct horse battery"


def at(moment: datetime) -> Timestamp:
    made = Timestamp()
    made.FromDatetime(moment)
    return made


def asked(authority, method):
    """Requests of one call, in order."""
    return [each for each in authority.requests if type(each).__name__ == f"{method}Request"]


GLASS = glass_pb.BreakGlass(
    glass_id="91ab34f207c5d6e8",
    vm_id="payroll",
    host_id="h-1",
    host_name="esx-1",
    reason="policy fails all, INC-481",
    opened_by="identity:alice",
    opened_at=at(NOW),
    expires_at=at(NOW + timedelta(minutes=30)),
    open=True,
)


class TestBreakGlass:
    def test_open(self, ta, authority):
        """What is asked for is sent, and that it is open is not to be missed."""
        authority.answer("OpenBreakGlass", glass_pb.OpenBreakGlassResponse(glass=GLASS))
        words = ["--host", "esx-1", "--why", "policy fails all, INC-481", "--for", "30m", "--yes"]
        answer = ta("key", "break-glass", "open", "payroll", *words)
        assert answer.code is ExitCode.YES, answer.err
        assert asked(authority, "OpenBreakGlass") == [
            glass_pb.OpenBreakGlassRequest(
                vm_id="payroll", host="esx-1", why="policy fails all, INC-481", ttl_ms=1_800_000
            )
        ]
        assert answer.out.startswith("! Break-glass 91ab34f207c5d6e8 is open")
        assert "INC-481" in answer.out

    def test_open_asks_first(self, ta, authority):
        """It widens trust: without a terminal and without --yes nothing is sent."""
        answer = ta("key", "break-glass", "open", "payroll", "--host", "esx-1", "--why", "INC-481")
        assert answer.code is ExitCode.USAGE
        assert asked(authority, "OpenBreakGlass") == []

    @pytest.mark.parametrize("missing", ["--host", "--why"])
    def test_open_needs_host_and_reason(self, ta, authority, missing):
        """No host, no reason: nothing is sent."""
        words = {"--host": "esx-1", "--why": "INC-481 and so on"}
        given = [w for name, value in words.items() if name != missing for w in (name, value)]
        answer = ta("key", "break-glass", "open", "payroll", *given, "--yes")
        assert (answer.code, missing in answer.err) == (ExitCode.USAGE, True)
        assert asked(authority, "OpenBreakGlass") == []

    def test_list_and_close(self, ta, authority):
        """Who may have what, why, and for how long; closing names it."""
        used = glass_pb.BreakGlass()
        used.CopyFrom(GLASS)
        used.used_by, used.grant_epoch = "r" * 16, 7
        closed = glass_pb.BreakGlass()
        closed.CopyFrom(GLASS)
        closed.open = False
        closed.closed_at.CopyFrom(at(NOW))
        expired = glass_pb.BreakGlass()
        expired.CopyFrom(GLASS)
        expired.open = False
        reply = glass_pb.ListBreakGlassesResponse(glasses=[GLASS, used, closed, expired])
        authority.answer("ListBreakGlasses", reply)
        answer = ta("key", "break-glass", "list", "--all")
        assert answer.code is ExitCode.YES, answer.err
        for words in ("! open ", "! open, used", "closed", "expired", "esx-1", "INC-481", "7"):
            assert words in answer.out
        authority.answer("CloseBreakGlass", glass_pb.CloseBreakGlassResponse(glass=closed))
        assert ta("key", "break-glass", "close", "91ab34f207c5d6e8").code is ExitCode.YES
        assert asked(authority, "CloseBreakGlass")[0].glass_id == "91ab34f207c5d6e8"

    def test_vm_show_says_it(self, ta, authority):
        """An open break-glass is a warning wherever the VM shows."""
        reply = keys.GetVmResponse(vm=keys.Vm(vm_id="payroll"), break_glasses=[GLASS])
        authority.answer("GetVm", reply)
        answer = ta("vm", "show", "payroll")
        assert answer.code is ExitCode.YES
        assert "! esx-1 may have it whatever its verdict says" in answer.out
        assert "break-glass 91ab34f207c5d6e8 is open" in answer.err


class TestDrill:
    def test_begin_answer_record(self, ta, authority, tmp_path):
        """The question goes out in a file, the answer comes back as digits, the verdict is the exit code."""
        reply = escrow_pb.BeginDrillResponse(
            origin="authority.test", key_epoch=1, challenge=bytes(32), blob=sealed()
        )
        authority.answer("BeginDrill", reply)
        file, private, word = (tmp_path / name for name in ("drill.json", "escrow.key", "pass"))
        assert ta("key", "drill", "begin", "payroll", "--out", str(file)).code is ExitCode.YES
        assert decode_drill(file.read_bytes()).binding == binding()
        private.write_text(encrypt_private_key(PRIVATE, PASSPHRASE.encode()))
        word.write_text(PASSPHRASE + "\n")
        for path in (private, word):
            path.chmod(0o600)
        words = ["--private", str(private), "--passphrase-file", str(word)]
        offline = ta("key", "drill", "answer", str(file), *words, "-o", "name")
        right = drill_answer(VM_KEY, binding(), bytes(32)).hex()
        assert (offline.code, offline.out.strip()) == (ExitCode.YES, right)
        for passed, code in ((True, ExitCode.YES), (False, ExitCode.NO)):
            authority.answer("RecordDrill", escrow_pb.RecordDrillResponse(passed=passed))
            answer = ta("key", "drill", "record", str(file), "--answer", right)
            assert answer.code is code
            assert ("passed" in answer.out) is passed
        assert asked(authority, "RecordDrill")[0] == escrow_pb.RecordDrillRequest(
            vm_id="payroll", key_epoch=1, challenge=bytes(32), answer=bytes.fromhex(right)
        )

    def test_no_answer(self, ta, authority, tmp_path):
        """What is no hex, or no drill, is not sent."""
        file = tmp_path / "drill.json"
        file.write_text("{}")
        assert ta("key", "drill", "record", str(file), "--answer", "00").code is ExitCode.USAGE
        assert asked(authority, "RecordDrill") == []


class TestEscrow:
    def test_export_reads_every_page(self, ta, authority, tmp_path):
        """All keys of all pages are in the file; VMs that are not escrowed are named."""
        entry = escrow_pb.EscrowedKey(vm_id="payroll", key_epoch=1, state="active", blob=sealed())
        first = escrow_pb.ExportEscrowResponse(
            origin="authority.test", keys=[entry], next_page_token="payroll", missing=["bare"]
        )
        last = escrow_pb.ExportEscrowResponse(origin="authority.test", keys=[])
        authority.answer("ExportEscrow", lambda request: last if request.page_token else first)
        out = tmp_path / "escrow.json"
        answer = ta("key", "escrow", "export", "--out", str(out))
        assert answer.code is ExitCode.YES, answer.err
        assert "bare is not escrowed" in answer.err
        export = decode_export(out.read_bytes())
        assert [key.vm_id for key in export.keys] == ["payroll"]
        assert [each.page_token for each in asked(authority, "ExportEscrow")] == ["", "payroll"]
        assert out.stat().st_mode & 0o777 == 0o600
        assert public().key_id

    def test_reseal_says_what_failed(self, ta, authority):
        """Exit status 1 when a key could not be sealed: repeat."""
        first = escrow_pb.ResealEscrowResponse(resealed=2, current=1, next_page_token="m")
        last = escrow_pb.ResealEscrowResponse(failed=["payroll, key epoch 1: no answer"])
        authority.answer("ResealEscrow", lambda request: last if request.page_token else first)
        answer = ta("key", "escrow", "reseal")
        assert answer.code is ExitCode.NO
        assert "payroll, key epoch 1: no answer" in answer.err
        assert "2 keys sealed" in answer.out
