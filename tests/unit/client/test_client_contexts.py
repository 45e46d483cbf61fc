"""Where contexts live and what a pinned audit key looks like."""

import base64
from pathlib import Path

import pytest

from trustauthority.client.contexts import AuditKey, contexts_path, load_contexts, parse_audit_key
from trustauthority.errors import ConfigurationInvalid, NotFound

KEY = AuditKey(origin="authority.example/audit", public_key=bytes(range(32)))


def test_an_audit_key_round_trips() -> None:
    """It is a C2SP verifier key, which other tools read too."""
    assert parse_audit_key(f" {KEY}\n") == KEY
    # Go's published example of the format.
    text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    assert str(parse_audit_key(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "++",
        str(KEY)[:-4],
        str(KEY).replace("authority", "other"),
        str(KEY).replace("+", "-", 1),
        "a+00000000+" + base64.b64encode(b"\x02" + bytes(32)).decode(),
        "a+00000000+" + base64.b64encode(b"\x01" + bytes(31)).decode(),
        "+" + str(KEY).partition("+")[2],
    ],
)
def test_what_is_no_audit_key_is_refused(text: str) -> None:
    """A cut or mistyped pin is refused by its own check digits."""
    with pytest.raises(ConfigurationInvalid):
        parse_audit_key(text)


def test_where_contexts_live() -> None:
    """The environment may say so, else the configuration folder of the user."""
    assert contexts_path({"TA_CONTEXTS_FILE": "/x/c.toml"}) == Path("/x/c.toml")
    assert contexts_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/trustauthority/contexts.toml")
    home = Path("/home/a/.config/trustauthority/contexts.toml")
    assert contexts_path({"HOME": "/home/a"}) == home


def test_no_file_is_no_contexts(tmp_path: Path) -> None:
    """The first command says what to do instead of failing on a missing file."""
    contexts = load_contexts({"TA_CONTEXTS_FILE": str(tmp_path / "none.toml")})
    assert contexts.contexts == {}
    with pytest.raises(NotFound, match="ta context add"):
        contexts.get()


def test_all_problems_at_once(tmp_path: Path) -> None:
    """Style 3.9: every wrong key is reported with its place, not only the first."""
    path = tmp_path / "c.toml"
    path.write_text('[contexts.a]\nserver = 1\n[contexts.b]\nca = "x"\ncolour = "y"\n')
    path.chmod(0o600)
    with pytest.raises(ConfigurationInvalid) as caught:
        load_contexts({"TA_CONTEXTS_FILE": str(path)})
    for place in ("contexts.a.server: not a text", "contexts.a.ca: missing", "contexts.b.colour"):
        assert place in caught.value.message


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """A folder with contexts and certificates can be moved as one."""
    path = tmp_path / "c.toml"
    path.write_text(
        'current = "a"\n[contexts.a]\nserver = "h:1"\nca = "ca.pem"\ncertificate = "/abs.pem"\n'
        'key = "k"\n'
    )
    path.chmod(0o600)
    context = load_contexts({"TA_CONTEXTS_FILE": str(path)}).get()
    assert (context.ca, context.certificate) == (tmp_path / "ca.pem", Path("/abs.pem"))
