"""The whole ``hostagent`` command on a software TPM, against an authority that checks what it shows.

Residency, credential, quote signature and qualifyingData are checked with the authority's own core,
so that the formulas of the two sides are compared where they meet.
"""

import asyncio
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from support.agent_authority import Authority
from support.agent_host import write_config
from support.swtpm import SoftwareTpm, TpmMaker

from trustauthority.cli.evidence import main
from trustauthority.codec.tpm import decode_attest, decode_public, decode_signature
from trustauthority.v1 import common_pb2 as common
from trustauthority.verification.challenge import Purpose, qualifying_data
from trustauthority.verification.credential import CREDENTIAL_ENTROPY, make_credential
from trustauthority.verification.residency import (
    ClaimedKeys,
    EnrolmentBinding,
    KeyCertification,
    verify_residency,
)
from trustauthority.verification.signature import check_signature

pytestmark = [pytest.mark.swtpm, pytest.mark.xdist_group("swtpm-agent")]


class ServedAuthority:
    """The test authority on a thread of its own, because commands run as processes."""

    def __init__(self):
        self.authority = Authority()
        self.authority.make_credential = self._credential
        self.authority.check_enrolment = self._check
        self.resident = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self):
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.authority.start(), self._loop).result(10)
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self.authority.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _check(self, request):
        ca = hashlib.sha256(self.authority.ca.public_bytes(Encoding.DER)).digest()
        self.resident = verify_residency(
            ClaimedKeys(
                ek=decode_public(request.ek_public),
                ak=decode_public(request.ak_public),
                tls=decode_public(request.tls_public),
                storage=decode_public(request.storage_public),
                tls_certification=KeyCertification(
                    attest=request.tls_certification.attest,
                    signature=request.tls_certification.signature,
                ),
                storage_certification=KeyCertification(
                    attest=request.storage_certification.attest,
                    signature=request.storage_certification.signature,
                ),
            ),
            EnrolmentBinding(
                authority_ca_sha256=ca,
                cluster=request.cluster,
                host_label=request.name,
                challenge=request.challenge,
            ),
        )

    def _credential(self, request, secret):
        made = make_credential(
            decode_public(request.ek_public),
            self.resident.ak_name,
            secret,
            os.urandom(CREDENTIAL_ENTROPY),
        )
        return made.blob, made.encrypted_secret


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    root = tmp_path_factory.mktemp("agent-tpm")
    maker = TpmMaker(root / "maker")
    with SoftwareTpm.manufacture(root / "tpm", maker=maker, serial="agent") as made:
        yield made


@pytest.fixture
def served():
    with ServedAuthority() as made:
        yield made


@pytest.fixture
def config(tmp_path, served, tpm):
    for name in ("state", "run"):
        (tmp_path / name).mkdir(mode=0o700)
    (tmp_path / "ca.pem").write_bytes(served.authority.ca_pem)
    (tmp_path / "boot.log").write_bytes(b"boot log")
    (tmp_path / "ima.log").write_bytes(b"ima log")
    return write_config(tmp_path, served.authority, tcti=tpm.tcti)


def hostagent(config, *arguments):
    command = [sys.executable, "-c", "from hostagent.main import main; main()", *arguments]
    return subprocess.run(
        [*command, "--config", str(config)], capture_output=True, text=True, timeout=60, check=False
    )


class TestCommands:
    def test_enrol_then_attest(self, config, served, tmp_path):
        """Issue 2: EK, three keys, credential, TPM-held TLS key and quote, each by the real code."""
        enrolled = hostagent(config, "enrol")
        assert enrolled.returncode == 0, enrolled.stderr
        assert enrolled.stdout.split()[1:] == ["host-a", "admitted"]
        assert enrolled.stderr.count("✔") == 5

        attested = hostagent(config, "attest")
        assert attested.returncode == 0, attested.stderr
        assert attested.stdout.startswith("PASSED")

        shown = served.authority.evidence[0]
        quote = shown["quote"]
        ak = decode_public(served.authority.host.request.ak_public)
        check_signature(ak, quote.attest, decode_signature(quote.signature))
        attest = decode_attest(quote.attest)
        assert attest.extra_data == qualifying_data(
            quote.challenge, served.resident.tls_name, Purpose.ATTEST
        )
        assert attest.pcr_digest == hashlib.sha256(quote.pcr_values).digest()
        assert (shown["boot"], shown["ima"]) == (b"boot log", b"ima log")

    @pytest.mark.parametrize("storage", ["p256", "p384", "rsa2048", "rsa3072"])
    def test_every_kind_of_storage_parent_enrols(self, config, served, storage):
        """``tpm.storage``: the authority's own residency check accepts each kind that a host may have."""
        text = config.read_text().replace("[paths]", f'storage = "{storage}"\n[paths]')
        config.write_text(text)
        enrolled = hostagent(config, "enrol")
        assert enrolled.returncode == 0, enrolled.stderr
        public = decode_public(served.authority.host.request.storage_public)
        strong = storage in {"p384", "rsa3072"}
        assert public.parameters.symmetric.key_bits == (256 if strong else 128)
        assert str(public.name_alg) == ("sha384" if strong else "sha256")
        # what is enrolled goes before a changed setting
        config.write_text(text.replace(f'storage = "{storage}"', 'storage = "rsa2048"'))
        assert hostagent(config, "attest").stdout.startswith("PASSED")
        assert served.authority.host.request.storage_public

    def test_an_unknown_storage_parent_is_refused(self, config):
        """A word that is no algorithm is a problem of the configuration, named by its path."""
        config.write_text(config.read_text().replace("[paths]", 'storage = "rsa1024"\n[paths]'))
        refused = hostagent(config, "enrol")
        assert refused.returncode == 2
        assert "tpm.storage" in refused.stderr

    def test_failed_ends_in_exit_status_1(self, config, served):
        """The answer is no: exit status 1 and the failed check on stdout."""
        served.authority.standing = common.STANDING_FAILED
        assert hostagent(config, "enrol").returncode == 0
        attested = hostagent(config, "attest")
        assert attested.returncode == 1
        assert "FAILED\n✖ boot.kernel-command-line" in attested.stdout

    def test_not_enrolled_is_said(self, config):
        """Without an enrolment there is nothing to attest with."""
        attested = hostagent(config, "attest")
        assert attested.returncode == 1
        assert "NOT_ENROLLED" in attested.stderr

    def test_a_grant_for_another_boot_does_not_open(self, config):
        """N53: the lease is granted, the TPM refuses the blob, and the command says so."""
        assert hostagent(config, "enrol").returncode == 0
        asked = hostagent(config, "key", "request", "vm-1", "--open")
        assert asked.returncode == 1
        assert "GRANT_TPM_REFUSED" in asked.stderr
        assert "canary-secret" not in asked.stdout + asked.stderr

    def test_a_cleared_configuration_is_exit_status_2(self, config):
        """N60: a configuration that others can write is refused before anything happens."""
        config.chmod(0o666)
        refused = hostagent(config, "enrol")
        assert refused.returncode == 2
        assert "chmod" in refused.stderr

    def test_a_bundle_holds_a_quote_over_all_banks(self, config, tmp_path, capsys):
        """docs/reference/evidence-bundle.md, version 1: complete, bound to its nonce, mode 0600.

        ``ta evidence`` reads it: the quote is genuine, and the log that is none fails the verdict.
        """
        out = tmp_path / "bundle.tar"
        made = hostagent(config, "collect", "--out", str(out))
        assert made.returncode == 0, made.stderr
        assert out.stat().st_mode & 0o777 == 0o600
        with tarfile.open(fileobj=io.BytesIO(out.read_bytes())) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        manifest = json.loads(files.pop("manifest.json"))
        assert {name: _described(body) for name, body in files.items()} == manifest["files"]
        attest = decode_attest(files["quote.attest"])
        check_signature(
            decode_public(files["ak.public"]),
            files["quote.attest"],
            decode_signature(files["quote.signature"]),
        )
        assert attest.extra_data.hex() == manifest["qualifying_data"]
        assert attest.pcr_digest == hashlib.sha256(files["pcr-values.bin"]).digest()
        assert {s["bank"] for s in manifest["selections"]} >= {"sha256"}
        assert files["boot.log"] == b"boot log"
        assert main(["show", str(out)]) == 0
        policy = tmp_path / "policy.toml"
        policy.write_text('name = "any"\n')
        capsys.readouterr()
        assert main(["check", str(out), "--policy", str(policy), "-o", "json"]) == 1
        checks = {check["id"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
        assert checks["quote"]["state"] == "passed"
        assert checks["boot-log"]["state"] == "failed"


class TestDaemon:
    def test_run_serves_status_attest_and_keys_and_stops_on_sigterm(self, config, served, tmp_path):
        """Type=notify: READY, WATCHDOG and STATUS arrive; commands go through the daemon."""
        notify = tmp_path / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(notify))
            listener.settimeout(20)
            daemon = subprocess.Popen(
                [
                    *(sys.executable, "-c", "from hostagent.main import main; main()"),
                    *("run", "--config", str(config)),
                ],
                env={**os.environ, "NOTIFY_SOCKET": str(notify)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            try:
                said = b""
                for _ in range(100):
                    if b"STATUS=passed" in said:
                        break
                    said += listener.recv(4096) + b"\n"
                assert said.startswith(b"READY=1")
                assert b"WATCHDOG=1" in said

                status = hostagent(config, "status", "--json")
                assert status.returncode == 0, status.stderr
                shown = json.loads(status.stdout)
                assert (shown["phase"], shown["admission"]) == ("passed", "admitted")
                assert shown["enforcement"] == "none"

                assert hostagent(config, "attest").stdout.startswith("PASSED")
                assert len(served.authority.evidence) >= 2

                asked = hostagent(config, "key", "request", "vm-1", "--json")
                assert asked.returncode == 0, asked.stderr
                assert json.loads(asked.stdout)["phase"] == "running"
                given = hostagent(config, "key", "give-back", "vm-1")
                assert given.returncode == 0, given.stderr

                second = hostagent(config, "enrol")
                assert second.returncode == 5
                assert "another agent" in second.stderr
            finally:
                daemon.send_signal(signal.SIGTERM)
                _, logged = daemon.communicate(timeout=20)
        assert daemon.returncode == 0
        lines = [json.loads(line) for line in logged.decode().splitlines()]
        assert {"enrol", "attest", "vm", "phase"} <= {line["event"] for line in lines}
        assert not Path(tmp_path / "state/identity.json").stat().st_mode & 0o077


def _described(body):
    return {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
