"""``ta status``: one screen over all processes of an authority."""

from collections.abc import Callable

from fakes.fake_authority import FakeAuthority

from trustauthority.cli.exit import ExitCode
from trustauthority.v1 import admin_pb2 as admin


def item(name: str, detail: str = "fine") -> admin.HealthItem:
    """A part that works."""
    return admin.HealthItem(name=name, health=admin.HEALTH_OK, detail=detail)


def with_key_server(ta, address: str):
    """The same caller, whose context names a process with the key role."""
    lines = [
        line + f'\nkey_server = "{address}"' if line.startswith("server") else line
        for line in ta.contexts.read_text().splitlines()
        if not line.startswith("key_server")
    ]
    ta.contexts.write_text("\n".join(lines) + "\n")
    return ta


def test_a_key_process_that_does_not_answer_is_seen(ta, authority: FakeAuthority) -> None:
    """Design 10: the key role is a process of its own; its silence is an error with a detail."""
    authority.answer(
        "GetStatus", admin.GetStatusResponse(version="1", roles=["admin"], items=[item("releases")])
    )
    ran = with_key_server(ta, "127.0.0.1:1")("status")
    assert ran.code == ExitCode.NO
    assert "key role at 127.0.0.1:1" in ran.out
    assert "does not answer" in ran.out


def test_one_process_with_all_roles_is_asked_once(ta, authority: FakeAuthority) -> None:
    """A context may name a key server that nobody needs: the admin process has the role."""
    authority.answer(
        "GetStatus",
        admin.GetStatusResponse(version="1", roles=["admin", "key"], items=[item("kms default")]),
    )
    ran = with_key_server(ta, "127.0.0.1:1")("status")
    assert ran.code == ExitCode.YES
    assert "kms default" in ran.out


def test_the_kms_is_on_the_same_screen(
    ta, make_ta: Callable[[str], object], authority: FakeAuthority
) -> None:
    """Style 4.2: one screen; what both processes say of the same part stands once."""
    answers = iter(
        [
            admin.GetStatusResponse(version="1", roles=["admin"], items=[item("releases")]),
            admin.GetStatusResponse(
                version="1", roles=["key"], items=[item("releases"), item("kms default")]
            ),
        ]
    )
    authority.answer("GetStatus", lambda _request: next(answers))
    host, _, port = authority.address.rpartition(":")
    other = f"{'127.0.0.1' if host == 'localhost' else 'localhost'}:{port}"
    ran = with_key_server(ta, other)("status")
    assert ran.out.count("releases") == 1
    assert "kms default" in ran.out
    assert "admin, key" in ran.out
