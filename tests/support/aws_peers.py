"""Two servers that speak AWS KMS, on the loopback: moto and MiniStack. Neither is a KMS.

moto has real AEAD, IAM users and signatures, and decrypts with disabled keys. MiniStack refuses those,
and opens tampered ciphertexts and takes every signature. TLS is that of the relay in front of them.
"""

import json
import re
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import botocore.session

from kms_mock import pki
from support.kms_peers import Peer
from support.wire import Relay, free_port
from trustauthority.adapters.kms.settings import AwsSettings, ProviderSettings

REGION = "eu-west-1"
START_S = 60
_SET_UP = 3
"""Calls to IAM before moto asks for signatures."""
_ALL = {"Effect": "Allow", "Action": "*", "Resource": "*"}
_OURS = {
    "Effect": "Allow",
    "Action": [
        *("kms:CreateKey", "kms:TagResource", "kms:DescribeKey"),
        *("kms:Encrypt", "kms:Decrypt", "kms:ListKeys"),
    ],
    "Resource": "*",
}
_THEIRS = {"Effect": "Allow", "Action": "kms:ListKeys", "Resource": "*"}


class AwsPeer(Peer):
    """What both have in common."""

    algorithm = 5

    def start(self) -> None:
        self.pki = self.folder / "pki"
        pki.init(self.pki)
        self._port = free_port()
        command, variables = self.command(self._port)
        self.log = self.folder / "server.log"
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={"HOME": str(self.folder), "PATH": "/usr/bin", **variables},
                start_new_session=True,
            )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        self._until_it_answers()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pki / "server.pem", self.pki / "server.key")
        self.relay = Relay(("127.0.0.1", self._port), serve=context)
        self.stack.callback(self.relay.close)
        self.set_up_clients()

    def command(self, port: int) -> tuple[list[str], Mapping[str, str]]:
        raise NotImplementedError

    def set_up_clients(self) -> None:
        """Write the credentials files client, tenant and ended."""
        raise NotImplementedError

    def _until_it_answers(self) -> None:
        import socket

        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)
            else:
                return

    def client(self, service: str, key: str = "x", secret: str = "") -> Any:
        """botocore's client, past the relay."""
        session = botocore.session.Session()
        return session.create_client(
            service,
            region_name=REGION,
            endpoint_url=f"http://127.0.0.1:{self._port}",
            aws_access_key_id=key,
            aws_secret_access_key=secret or "none",
        )

    def write_credentials(self, name: str, key: str, secret: str, **more: str) -> None:
        path = self.folder / f"{name}.aws"
        path.touch(mode=0o600)
        fields = {"aws_access_key_id": key, "aws_secret_access_key": secret, **more}
        path.write_text("[default]\n" + "".join(f"{k} = {v}\n" for k, v in fields.items()))

    def settings(self, client: str = "client", **changes: Any) -> ProviderSettings:
        fields = {
            "region": REGION,
            "credentials": self.folder / f"{client}.aws",
            "endpoint": f"https://127.0.0.1:{self.relay.port}",
            "ca": self.pki / "ca.pem",
        }
        return AwsSettings(**(fields | changes))

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

    def lying(self) -> AbstractContextManager[None]:
        return self.relay.behaving(rewrite=_another_plaintext)


class MotoPeer(AwsPeer):
    """moto, with IAM."""

    name = "aws-moto"

    def command(self, port: int) -> tuple[list[str], Mapping[str, str]]:
        server = str(Path(sys.executable).with_name("moto_server"))
        return [server, "-H", "127.0.0.1", "-p", str(port)], {
            "INITIAL_NO_AUTH_ACTION_COUNT": str(_SET_UP)
        }

    def set_up_clients(self) -> None:
        self._iam = self.client("iam")
        self._admin = self._user("admin", _ALL)
        self._iam = self.client("iam", *self._admin)
        self.write_credentials("client", *self._user("client", _OURS))
        self.write_credentials("tenant", *self._user("tenant", _THEIRS))
        self.write_credentials("ended", "AKIAENDEDENDEDENDED0", "no")

    def _user(self, name: str, statement: Mapping[str, Any]) -> tuple[str, str]:
        self._iam.create_user(UserName=name)
        document = {"Version": "2012-10-17", "Statement": [statement]}
        self._iam.put_user_policy(
            UserName=name, PolicyName="kms", PolicyDocument=json.dumps(document)
        )
        return self._access_key(name)

    def _access_key(self, name: str) -> tuple[str, str]:
        made = self._iam.create_access_key(UserName=name)["AccessKey"]
        return made["AccessKeyId"], made["SecretAccessKey"]

    @contextmanager
    def revoking(self) -> Iterator[None]:
        """The access key is deleted; the next one comes with the same file."""
        (listed,) = self._iam.list_access_keys(UserName="client")["AccessKeyMetadata"]
        self._iam.delete_access_key(UserName="client", AccessKeyId=listed["AccessKeyId"])
        try:
            yield
        finally:
            self.write_credentials("client", *self._access_key("client"))

    def take_out_of_use(self, kek_id: str) -> str:
        self.client("kms", *self._admin).disable_key(KeyId=kek_id)
        return f"KEK {kek_id} is disabled in the KMS, not enabled"


class MiniStackPeer(AwsPeer):
    """MiniStack, where the access key is the account."""

    name = "aws-ministack"

    def command(self, port: int) -> tuple[list[str], Mapping[str, str]]:
        server = str(Path(sys.executable).with_name("ministack"))
        return [server], {"GATEWAY_PORT": str(port)}

    def set_up_clients(self) -> None:
        self.write_credentials("client", "111111111111", "no")
        self.write_credentials("tenant", "222222222222", "no")
        self.write_credentials("ended", "333333333333", "no")

    def revoking(self) -> AbstractContextManager[None]:
        """MiniStack takes every signature: the relay says what AWS says."""
        return self.relay.behaving(rewrite=lambda _: _EXPIRED)

    def take_out_of_use(self, kek_id: str) -> str:
        kms = self.client("kms", "111111111111")
        kms.schedule_key_deletion(KeyId=kek_id, PendingWindowInDays=7)
        return f"KEK {kek_id} is pending-deletion in the KMS, not enabled"


_BODY = b'{"__type":"ExpiredTokenException","message":"canary"}'
_EXPIRED = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/x-amz-json-1.1\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(_BODY), _BODY)
)


def _another_plaintext(answer: bytes) -> bytes:
    return re.sub(rb'("Plaintext": ?)"[A-Za-z0-9+/]{8}', rb'\1"AAAAAAAA', answer)
