"""A ta that runs in this process against a fake authority over real mutual TLS."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from fakes.fake_authority import FakeAuthority
from support.client_certificates import CertificateAuthority, write_identity

from trustauthority.cli.app import run
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.session import World

NOW = datetime(2026, 11, 20, 14, 2, 11, tzinfo=UTC)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class Result:
    code: ExitCode
    out: str
    err: str


@dataclass
class Ta:
    """Runs ``ta`` as a person or a script would."""

    home: Path
    address: str
    environment: dict[str, str] = field(default_factory=dict)
    now: datetime = NOW
    terminal: bool = False
    typed: str = ""

    @property
    def contexts(self) -> Path:
        return self.home / "contexts.toml"

    def __call__(self, *tokens: str) -> Result:
        stream = Terminal if self.terminal else io.StringIO
        out, err = stream(), stream()
        world = World(
            out=out,
            err=err,
            keyboard=stream(self.typed),
            environment={"TA_CONTEXTS_FILE": str(self.contexts), **self.environment},
            now=lambda: self.now,
        )
        code = run(tokens, world)
        text = err.getvalue().replace(self.address, "SERVER").replace(str(self.home), "HOME")
        return Result(code, out.getvalue().replace(self.address, "SERVER"), text)


@pytest.fixture(scope="session")
def ca() -> CertificateAuthority:
    return CertificateAuthority("test authority")


@pytest.fixture(scope="session")
def running(ca: CertificateAuthority) -> Iterator[FakeAuthority]:
    certificate, key = ca.issue("authority")
    with FakeAuthority(ca=ca.pem, certificate=certificate, key=key) as fake:
        yield fake


@pytest.fixture
def authority(running: FakeAuthority) -> FakeAuthority:
    running.forget()
    return running


@pytest.fixture
def make_ta(tmp_path: Path, ca: CertificateAuthority) -> Callable[[str], Ta]:
    (tmp_path / "ca.pem").write_bytes(ca.pem)
    write_identity(tmp_path, ca, "alice", left=timedelta(days=3_650))

    def make(address: str) -> Ta:
        text = f"""current = "test"

[contexts.test]
server = "{address}"
ca = "ca.pem"
certificate = "alice.pem"
key = "alice.key"
cluster = "prod"
"""
        ta = Ta(home=tmp_path, address=address)
        ta.contexts.write_text(text)
        ta.contexts.chmod(0o600)
        return ta

    return make


@pytest.fixture
def ta(make_ta: Callable[[str], Ta], authority: FakeAuthority) -> Ta:
    return make_ta(authority.address)
