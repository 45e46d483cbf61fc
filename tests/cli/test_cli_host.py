"""The screens people read at three in the morning: ta host list and ta host explain."""

import json
from pathlib import Path

import pytest
import yaml
from fakes.fake_authority import FakeAuthority
from support.admin_messages import PASSED, UNKNOWN, at, fleet, host, verdict

from trustauthority.cli.exit import ExitCode
from trustauthority.v1 import admin_pb2 as admin
from trustauthority.v1 import common_pb2 as common


def test_list_shows_scope_standing_reason_and_next_command(ta, authority: FakeAuthority) -> None:
    """Style 4.2: one line a host, with a mark and not only a colour, and what to type next."""
    authority.answer("ListHosts", admin.ListHostsResponse(hosts=fleet()))
    result = ta("host", "list")
    assert result.code is ExitCode.YES
    assert result.err == ""
    assert result.out == (
        "5 hosts · 3 passed, 1 failed, 1 unknown · authority SERVER · 14:02:11Z\n"
        "HOST     STANDING   SINCE  REPORT   BASELINE   REASON\n"
        "esx-a01  ● passed   6h     5h left  r640-2.19  –\n"
        "esx-a03  ✖ failed   4m     –        r640-2.19  "
        "boot.secure-boot: dbx changed   → ta host explain esx-a03\n"
        "esx-a04  ? unknown  6h     –        r640-2.19  "
        "no evidence since 2026-11-18 09:13Z   → is its agent running?\n"
        "esx-a05  ● passed   6h     5h left  r640-2.19  "
        "not admitted: no keys   → ta host admit esx-a05\n"
        "esx-a06  ● passed   6h     5h left  r640-2.19  revoked   → ta host reinstate esx-a06\n"
    )


def test_explain_shows_the_check_that_failed(ta, authority: FakeAuthority) -> None:
    """Style 4.2: which check, expected and found, the event, the effect, the next step; exit 1."""
    authority.answer("GetHost", admin.GetHostResponse(host=fleet()[1], verdict=verdict()))
    result = ta("host", "explain", "esx-a03")
    assert result.code is ExitCode.NO
    assert result.out == (
        "esx-a03 is ✖ failed, judged 4m ago at 13:58:02Z (policy prod-hosts v7, authority SERVER)\n"
        "✔ endorsement  EK chains to Infineon Root CA 2\n"
        "✔ quote        signature, challenge, digest, counters\n"
        "✖ boot         1 of 14 components differs from baseline r640-2.19\n"
        "  ✖ boot.secure-boot.dbx  forbidden signatures  PCR 7\n"
        "        expected  dbx 2025-05 c2b1…\n"
        "        found     dbx 2026-10 77e0…  event #31\n"
        "        why       3 revocations more, none less\n"
        "– runtime      the policy does not ask\n"
        "! clock        the TPM clock was not safe\n"
        "      why       the machine lost power\n"
        "Effect: no new keys and no renewals; 12 running encrypted VMs must stop when their leases "
        "end; moves to this host are refused.\n"
        "Next:   was a firmware update expected? Then capture a new baseline\n"
    )
    assert authority.request(admin.GetHostRequest).host == "esx-a03"


def test_explain_all_shows_also_what_passed(ta, authority: FakeAuthority) -> None:
    """The whole tree is one flag away."""
    authority.answer("GetHost", admin.GetHostResponse(host=fleet()[1], verdict=verdict()))
    assert "  ✔ boot.kernel           vmlinuz 6.12.9-2\n" in ta("host", "explain", "a", "--all").out
    assert "boot.kernel" not in ta("host", "explain", "a").out


@pytest.mark.parametrize(
    ("record", "code", "effect"),
    [
        (host("a"), ExitCode.YES, "may receive keys it has a reason to ask for"),
        (host("a", UNKNOWN), ExitCode.NO, "no new keys and no renewals"),
        (host("a", common.STANDING_UNSPECIFIED), ExitCode.NO, "no new keys and no renewals"),
        (host("a", revoked=True), ExitCode.NO, "revoked: no keys and no renewals"),
        (fleet()[3], ExitCode.YES, "not admitted: it is attested, but may hold no key"),
    ],
)
def test_explain_answers_by_exit_code(
    ta, authority: FakeAuthority, record: admin.Host, code: ExitCode, effect: str
) -> None:
    """Design 9: 0 is trusted now, 1 is everything else, and a standing not said is not trusted."""
    authority.answer("GetHost", admin.GetHostResponse(host=record, verdict=verdict(PASSED)))
    result = ta("host", "explain", "a")
    assert result.code is code
    assert effect in result.out


def test_explain_of_a_host_that_never_attested(ta, authority: FakeAuthority) -> None:
    """No verdict is not a good verdict."""
    authority.answer("GetHost", admin.GetHostResponse(host=host("a", UNKNOWN)))
    result = ta("host", "explain", "a")
    assert result.code is ExitCode.NO
    assert "a is ? unknown: it never sent evidence" in result.out
    assert "check that the agent on a runs" in result.out


@pytest.mark.parametrize("state", [common.CHECK_STATE_UNSPECIFIED, 77])
def test_a_check_state_that_is_not_known_shows_as_failed(
    ta, authority: FakeAuthority, state: int
) -> None:
    """S12: a newer or broken server can't make a check look good."""
    tree = common.Verdict(checks=[common.Check(id="x", state=state, title="t")])
    authority.answer("GetHost", admin.GetHostResponse(host=fleet()[1], verdict=tree))
    assert "✖ x  t" in ta("host", "explain", "a").out


def test_an_endless_tree_is_cut_on_the_screen(ta, authority: FakeAuthority) -> None:
    """N44: a server can't fill the stack; JSON holds what the screen left out."""
    root = common.Check(id="d0", state=common.CHECK_STATE_FAILED)
    node = root
    for depth in range(1, 40):
        node = node.children.add(id=f"d{depth}", state=common.CHECK_STATE_FAILED)
    reply = admin.GetHostResponse(host=fleet()[1], verdict=common.Verdict(checks=[root]))
    authority.answer("GetHost", reply)
    screen = ta("host", "explain", "a").out
    assert "✖ d7" in screen
    assert "d8" not in screen
    assert '"d39"' in ta("host", "explain", "a", "-o", "json").out


def test_json_and_yaml_say_the_same_and_nothing_else(ta, authority: FakeAuthority) -> None:
    """Style 4.1: standard output parses, enums are words, times are RFC 3339, keys are camelCase."""
    authority.answer("ListHosts", admin.ListHostsResponse(hosts=fleet()))
    data = json.loads(ta("host", "list", "-o", "json").out)
    assert data == yaml.safe_load(ta("host", "list", "-o", "yaml").out)
    assert [row["standing"] for row in data][:3] == ["passed", "failed", "unknown"]
    assert data[0]["attestedUntil"] == "2026-11-20T19:30:00Z"
    assert data[1]["attestedUntil"] is None
    assert data[0]["trustEpoch"] == 1
    assert data[3]["admission"] == "waiting"


def test_explain_json_holds_the_tree_and_the_exit_code_stays(ta, authority: FakeAuthority) -> None:
    """The check tree is data too: same ids, and the answer is still in the exit code."""
    authority.answer("GetHost", admin.GetHostResponse(host=fleet()[1], verdict=verdict()))
    result = ta("-o", "json", "host", "explain", "esx-a03")
    tree = json.loads(result.out)["verdict"]["checks"]
    assert result.code is ExitCode.NO
    assert tree[2]["children"][1]["id"] == "boot.secure-boot.dbx"
    assert tree[2]["state"] == "failed"


def test_names_are_for_pipes(ta, authority: FakeAuthority) -> None:
    """-o name prints a name a line."""
    authority.answer("ListHosts", admin.ListHostsResponse(hosts=fleet()[:2]))
    assert ta("host", "list", "-o", "name").out == "esx-a01\nesx-a03\n"


def test_wide_has_absolute_times_and_ids(ta, authority: FakeAuthority) -> None:
    """What relative times hide is in -o wide."""
    authority.answer("ListHosts", admin.ListHostsResponse(hosts=fleet()[:1]))
    out = ta("host", "list", "-o", "wide").out
    assert "2026-11-20 08:00:00Z" in out
    assert "h-esx-a01" in out


def test_an_empty_fleet_says_what_to_do(ta, authority: FakeAuthority) -> None:
    """Style 4.1: an empty state is a message on standard error, and JSON is still JSON."""
    authority.answer("ListHosts", admin.ListHostsResponse())
    result = ta("host", "list", "--cluster", "prod")
    assert (result.code, result.out) == (ExitCode.YES, "")
    assert result.err == (
        "No host is enrolled in cluster prod. Start the host agent on one, with this authority's CA.\n"
    )
    assert ta("host", "list", "-q").err == ""
    assert json.loads(ta("host", "list", "-o", "json").out) == []


def test_all_pages_are_one_list(ta, authority: FakeAuthority) -> None:
    """A fleet larger than a page is shown whole."""

    def page(request: admin.ListHostsRequest) -> admin.ListHostsResponse:
        number = int(request.page_token or "0")
        last = number == 3
        return admin.ListHostsResponse(
            hosts=[host(f"esx-{number}")], next_page_token="" if last else str(number + 1)
        )

    authority.answer("ListHosts", page)
    assert ta("host", "list", "-o", "name").out == "esx-0\nesx-1\nesx-2\nesx-3\n"


def test_a_list_without_an_end_is_given_up(ta, authority: FakeAuthority, monkeypatch) -> None:
    """A broken server can't keep the command for ever."""
    monkeypatch.setattr("trustauthority.cli.paging.MAX_PAGES", 5)
    authority.answer("ListHosts", admin.ListHostsResponse(next_page_token="again"))
    result = ta("host", "list")
    assert result.code is ExitCode.USAGE
    assert "the list has no end" in result.err


EVIL = "a\nb\x1b[31m\x9b1m\u202egnp\u200b../../x\x00%s"


def test_hostile_names_never_reach_the_terminal_raw(ta, authority: FakeAuthority) -> None:
    """N44: newline, ANSI, C1, NUL, bidi and zero-width characters are shown as escapes."""
    evil = host("x")
    evil.name = evil.reason = evil.baseline = evil.tpm = evil.cluster = EVIL
    authority.answer("ListHosts", admin.ListHostsResponse(hosts=[evil]))
    tree = verdict()
    tree.policy = tree.checks[0].title = tree.checks[2].children[1].found = EVIL
    authority.answer("GetHost", admin.GetHostResponse(host=evil, verdict=tree))
    for command in (["list"], ["list", "-o", "wide"], ["explain", "x"], ["show", "x"]):
        for form in ([], ["-o", "json"], ["-o", "yaml"], ["-o", "name"]):
            out = ta("host", *command, *form).out
            assert all(char == "\n" or char.isprintable() for char in out), (command, form)
    shown = ta("host", "list").out
    assert shown.count("\n") == 3
    assert r"a\nb\x1b[31m\x9b1m\u202egnp\u200b../../x\x00%s" in shown


def test_hostile_errors_never_reach_the_terminal_raw(ta, authority: FakeAuthority) -> None:
    """N44: nor do messages of the server, nor what was typed."""
    import grpc

    authority.fail(
        "GetHost",
        code=grpc.StatusCode.NOT_FOUND,
        reason="NOT_FOUND",
        message=EVIL.replace("\n", ""),
    )
    for result in (
        ta("host", "show", "x", "-v"),
        ta("host", EVIL),
        ta(EVIL),
        ta("host", "-" + EVIL),
    ):
        assert result.code in {ExitCode.NOT_FOUND, ExitCode.USAGE}
        assert "\x1b" not in result.err
        assert "\u202e" not in result.err


def test_a_very_long_value_does_not_flood_the_screen(ta, authority: FakeAuthority) -> None:
    """N44: 10 kB names are cut on screens and whole in JSON."""
    authority.answer("GetHost", admin.GetHostResponse(host=host("x" * 10_000)))
    assert len(ta("host", "show", "x").out) < 10_000
    assert len(ta("host", "show", "x", "-o", "json").out) > 10_000


def test_colour_only_on_a_terminal_that_wants_it(ta, authority: FakeAuthority) -> None:
    """NO_COLOR, --no-color and pipes get plain text, which says the same."""
    authority.answer("ListHosts", admin.ListHostsResponse(hosts=fleet()))
    plain = ta("host", "list").out
    ta.terminal = True
    ta.environment["TERM"] = "xterm"
    coloured = ta("host", "list").out
    assert "\x1b[" in coloured
    assert ta("host", "list", "--no-color").out == plain
    ta.environment["NO_COLOR"] = "1"
    assert ta("host", "list").out == plain


def test_admit_sends_the_hash_that_was_looked_at(ta, authority: FakeAuthority) -> None:
    """S10: what is admitted is what was shown; an explicit hash wins."""
    authority.answer("GetHost", admin.GetHostResponse(host=fleet()[3]))
    authority.answer("AdmitHost", admin.AdmitHostResponse(host=host("esx-a05")))
    result = ta("host", "admit", "esx-a05", "--yes")
    assert result.code is ExitCode.YES
    assert authority.request(admin.AdmitHostRequest).approval_sha256 == "a9" * 32
    assert "EK SHA-256  " + "5f" * 32 in result.err
    assert result.out.startswith("esx-a05 is admitted\n")
    ta("host", "admit", "esx-a05", "--yes", "--approval-sha256", "b0" * 32)
    assert authority.request(admin.AdmitHostRequest).approval_sha256 == "b0" * 32
    assert "would be admitted" in ta("host", "admit", "esx-a05", "--dry-run").out
    assert authority.request(admin.AdmitHostRequest).dry_run


ASKING = {
    "admit": ("AdmitHost", admin.AdmitHostResponse(host=host("x")), ["host", "admit", "x"]),
    "rebind": (
        "RebindHost",
        admin.RebindHostResponse(host=host("x")),
        ["host", "rebind", "x", "h-1"],
    ),
    "remove": ("RemoveHost", admin.RemoveHostResponse(), ["host", "remove", "x"]),
    "reinstate": (
        "ReinstateHost",
        admin.ReinstateHostResponse(host=host("x")),
        ["host", "reinstate", "x"],
    ),
    "revoke all": (
        "RevokeAll",
        admin.RevokeAllResponse(global_epoch=9),
        ["host", "revoke", "--all"],
    ),
}


@pytest.mark.parametrize("what", ASKING)
def test_what_widens_trust_or_hurts_asks_first(ta, authority: FakeAuthority, what: str) -> None:
    """I-E: a person is asked on a terminal, a script must say --yes; no means nothing is sent."""
    method, reply, tokens = ASKING[what]
    authority.answer("GetHost", admin.GetHostResponse(host=host("x")))
    authority.answer(method, reply)
    sent = type(reply).DESCRIPTOR.name.replace("Response", "Request")

    def was_sent() -> bool:
        return any(request.DESCRIPTOR.name == sent for request in authority.requests)

    unasked = ta(*tokens)
    assert unasked.code is ExitCode.USAGE
    assert "--yes" in unasked.err
    ta.terminal, ta.typed = True, "n\n"
    assert ta(*tokens).code is ExitCode.NO
    ta.typed = ""
    assert ta(*tokens).code is ExitCode.NO
    assert not was_sent()
    ta.typed = "y\n"
    assert ta(*tokens).code is ExitCode.YES
    assert was_sent()


def test_revoke_narrows_without_asking_and_says_what_still_runs(
    ta, authority: FakeAuthority
) -> None:
    """I-E: any single person may narrow; the reply names the VMs and until when they may run."""
    reply = admin.RevokeHostResponse(trust_epoch=4, running_vms=["payroll", "mail"])
    reply.last_fence_until.FromDatetime(at("15:07:00"))
    authority.answer("RevokeHost", reply)
    result = ta("host", "revoke", "esx-a03", "--why", "stolen disk")
    assert result.code is ExitCode.YES
    assert result.out == (
        "esx-a03 is revoked\n"
        "  trust epoch        4\n"
        "  still runs         2 VMs: payroll, mail\n"
        "  for certain until  2026-11-20 15:07:00Z\n"
    )
    assert authority.request(admin.RevokeHostRequest).why == "stolen disk"


@pytest.mark.parametrize("tokens", [[], ["x", "--all"]])
def test_revoke_wants_one_host_or_all(ta, authority: FakeAuthority, tokens: list[str]) -> None:
    """A slip must not revoke the fleet, nor silently only one host."""
    assert ta("host", "revoke", *tokens, "--yes").code is ExitCode.USAGE
    assert not authority.requests


def test_evidence_is_saved_whole_and_private(ta, authority: FakeAuthority) -> None:
    """The bundle is written 0600, whole, and not over another file unless told."""
    parts = [admin.GetEvidenceResponse(chunk=b"abc"), admin.GetEvidenceResponse(chunk=b"def")]
    authority.answer("GetEvidence", lambda _: parts)
    target: Path = ta.home / "a.bundle"
    assert ta("host", "evidence", "a", "--out", str(target)).code is ExitCode.YES
    assert target.read_bytes() == b"abcdef"
    assert target.stat().st_mode & 0o777 == 0o600
    assert ta("host", "evidence", "a", "--out", str(target)).code is ExitCode.USAGE
    assert ta("host", "evidence", "a", "--out", str(target), "--force").code is ExitCode.YES


def test_evidence_behind_an_earlier_verdict_is_asked_for_by_its_id(ta, authority) -> None:
    """Rule 67: each verdict of the audit log can be looked at again while it is kept."""
    authority.answer("GetEvidence", lambda _: [admin.GetEvidenceResponse(chunk=b"abc")])
    for name, words in (("new", []), ("old", ["--verdict", "5f" * 32])):
        out = str(ta.home / name)
        assert ta("host", "evidence", "a", "--out", out, *words).code is ExitCode.YES
    asked = [request.verdict_id for request in authority.requests]
    assert asked == ["", "5f" * 32]


def test_evidence_that_breaks_off_leaves_no_file(ta, authority: FakeAuthority, monkeypatch) -> None:
    """Half a bundle, or one without end, is not a bundle."""
    monkeypatch.setattr("trustauthority.cli.host.MAX_BUNDLE_SIZE", 4)
    authority.answer("GetEvidence", lambda _: [admin.GetEvidenceResponse(chunk=b"abc")] * 2)
    target: Path = ta.home / "a.bundle"
    assert ta("host", "evidence", "a", "--out", str(target)).code is ExitCode.USAGE
    assert not target.exists()
