"""hostagent.bundle and hostagent.collect: what goes out, in which order, and what never does."""

import datetime as dt
import hashlib
import io
import json
import tarfile

import pytest
from support.agent_host import SoftwareTpmPort

from hostagent.bundle import collect_bundle
from hostagent.collect import (
    CHUNK,
    LogPaths,
    active_selections,
    chunks,
    ima_chunks,
    qualifying_data,
    read_boot_log,
    read_userspace_log,
)
from hostagent.tpm import BankSelection, TpmError
from trustauthority.v1.common_pb2 import PcrSelection
from trustauthority.verification import challenge

NOW = dt.datetime(2026, 11, 22, 12, 0, tzinfo=dt.UTC)


@pytest.fixture
def logs(tmp_path):
    (tmp_path / "boot").write_bytes(b"boot")
    (tmp_path / "ima").write_bytes(b"ima")
    (tmp_path / "userspace").write_bytes(b"userspace")
    return LogPaths(boot=tmp_path / "boot", ima=tmp_path / "ima", userspace=tmp_path / "userspace")


def unpacked(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        names = tar.getnames()
        return names, {name: tar.extractfile(name).read() for name in names}


class TestBundle:
    def test_manifest_describes_every_other_file(self, logs):
        """docs/reference/evidence-bundle.md: sizes and hashes of all, manifest first."""
        tpm = SoftwareTpmPort()
        names, files = unpacked(collect_bundle(tpm, tpm.keys(), logs, labels={}, now=NOW))
        manifest = json.loads(files.pop("manifest.json"))
        assert names[0] == "manifest.json"
        assert (manifest["format"], manifest["version"]) == ("trustauthority-evidence-bundle", 1)
        assert manifest["files"] == {
            name: {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            for name, body in files.items()
        }
        assert (files["boot.log"], files["ima.log"]) == (b"boot", b"ima")

    def test_its_quote_answers_no_authority(self, logs):
        """A bundle's purpose is its own: the quote can't be passed on as evidence (N10)."""
        tpm = SoftwareTpmPort()
        _, files = unpacked(collect_bundle(tpm, tpm.keys(), logs, labels={}, now=NOW))
        manifest = json.loads(files["manifest.json"])
        nonce, name = bytes.fromhex(manifest["nonce"]), tpm.keys().identity.name
        assert tpm.quoted[0][1].hex() == manifest["qualifying_data"]
        accepted = {
            challenge.qualifying_data(nonce, name, purpose) for purpose in challenge.Purpose
        }
        assert tpm.quoted[0][1] not in accepted

    def test_the_nonce_is_fresh(self, logs):
        """Two bundles share no nonce."""
        tpm = SoftwareTpmPort()
        made = [collect_bundle(tpm, tpm.keys(), logs, labels={}, now=NOW) for _ in range(2)]
        nonces = {json.loads(unpacked(one)[1]["manifest.json"])["nonce"] for one in made}
        assert len(nonces) == 2

    def test_a_bank_without_a_name_is_left_out(self, logs):
        """A TPM with banks newer than we are can still be looked at."""
        tpm = SoftwareTpmPort()
        known = tpm.active_banks()
        tpm.active_banks = lambda: (*known, BankSelection(bank="0x0027", indices=(0,)))
        collect_bundle(tpm, tpm.keys(), logs, labels={}, now=NOW)
        assert tpm.quoted[0][0] == known

    def test_missing_logs_are_absent_and_not_empty(self, tmp_path):
        """A kernel without IMA or securityfs: no file, rather than an empty one."""
        tpm = SoftwareTpmPort()
        nowhere = LogPaths(**dict.fromkeys(("boot", "ima", "userspace"), tmp_path / "none"))
        names, _ = unpacked(collect_bundle(tpm, tpm.keys(), nowhere, labels={}, now=NOW))
        assert {"boot.log", "ima.log"} & set(names) == set()


class TestCollect:
    @pytest.mark.parametrize("purpose", list(challenge.Purpose))
    def test_qualifying_data_is_what_the_authority_expects(self, purpose):
        """N11: one formula, written twice, compared here."""
        mine = qualifying_data(b"token", b"name", purpose.value)
        assert mine == challenge.qualifying_data(b"token", b"name", purpose)

    def test_an_absurd_boot_log_is_refused(self, tmp_path):
        """More than 16 MiB is no boot log."""
        path = tmp_path / "boot"
        with path.open("wb") as file:
            file.truncate(16 * 1024 * 1024 + 1)
        with pytest.raises(OSError, match="more than"):
            read_boot_log(path)

    @pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
    def test_chunks_join_to_the_whole(self, tmp_path, size):
        """Nothing is lost or doubled at a boundary, in memory or in a file, from any offset."""
        body = bytes(i % 251 for i in range(size))
        (tmp_path / "log").write_bytes(body)
        assert b"".join(chunks(body)) == body
        for offset in (0, size // 2, size, size + 10):
            parts = list(ima_chunks(tmp_path / "log", offset))
            assert b"".join(parts) == body[offset:]
            assert all(0 < len(part) <= CHUNK for part in parts)


class TestSelections:
    def test_a_bank_that_the_tpm_lacks_is_not_asked_of_it(self):
        """Many machines come without a SHA-1 bank; quoting one fails (rule 40)."""
        asked = [PcrSelection(bank=bank, indices=(0, 7)) for bank in ("sha1", "sha256")]
        found = active_selections(SoftwareTpmPort(), asked)
        assert found == (BankSelection(bank="sha256", indices=(0, 7)),)

    def test_a_tpm_without_any_of_the_banks_says_so(self):
        """An empty quote would prove nothing (rule 5): the agent names the banks in place of it."""
        with pytest.raises(TpmError, match=r"none of the banks .*\(sha1, sha384\)"):
            active_selections(
                SoftwareTpmPort(),
                [PcrSelection(bank=bank, indices=(0,)) for bank in ("sha1", "sha384")],
            )


class TestUserspaceLog:
    def test_one_that_may_not_be_read_is_none(self, tmp_path, monkeypatch):
        """systemd makes it for root alone; the agent attests all the same (rule 49)."""
        assert read_userspace_log(tmp_path / "none") == b""
        (tmp_path / "log").write_bytes(b"record")
        assert read_userspace_log(tmp_path / "log") == b"record"

        def refuse(*_: object) -> None:
            raise PermissionError("not for you")

        monkeypatch.setattr("pathlib.Path.open", refuse)
        assert read_userspace_log(tmp_path / "log") == b""
