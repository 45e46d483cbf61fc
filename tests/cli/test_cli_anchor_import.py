"""``ta anchor import`` and ``add``: what would be trusted is shown, everything genuine can be read."""

import shutil
from pathlib import Path

import pytest
from fakes.fake_authority import FakeAuthority
from support.corpus import corpus_folder

from trustauthority.cli.exit import ExitCode
from trustauthority.v1 import admin_pb2 as admin

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "ekcerts"


def sent_anchors(authority: FakeAuthority) -> list[admin.AddAnchorRequest]:
    """The anchors that the authority was asked to add."""
    return [each for each in authority.requests if isinstance(each, admin.AddAnchorRequest)]


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A folder as a maker publishes it: a root, a CA below it, an EK certificate, a readme."""
    folder = tmp_path / "collection"
    (folder / "Example" / "RootCA").mkdir(parents=True)
    shutil.copy(VECTORS / "root.pem", folder / "Example" / "RootCA" / "root.pem")
    shutil.copy(VECTORS / "intermediate.pem", folder / "Example" / "intermediate.pem")
    shutil.copy(VECTORS / "good-rsa.der", folder / "Example" / "ek.der")
    (folder / "readme.txt").write_text("not a certificate")
    return folder


def test_an_import_shows_what_it_would_trust(ta, authority: FakeAuthority, collection) -> None:
    """I-E: nobody widens trust without having seen by what; a dry run sends nothing."""
    ran = ta("anchor", "import", str(collection), "-c", "prod", "--test-authorities", "--dry-run")
    assert ran.code == ExitCode.YES
    assert "2 anchors for cluster prod" in ran.out
    assert "readme.txt" in ran.err
    assert "ek.der" in ran.err
    assert not sent_anchors(authority)


def test_an_import_asks(ta, authority: FakeAuthority, collection) -> None:
    """I-E: without a yes nothing is added."""
    ran = ta("anchor", "import", str(collection), "-c", "prod", "--test-authorities")
    assert ran.code == ExitCode.USAGE
    assert not sent_anchors(authority)


def test_an_import_adds_roots_and_the_cas_below(ta, authority: FakeAuthority, collection) -> None:
    """Issue of the anchors: each CA becomes an anchor, EK certificates never do (pitfall 28)."""
    authority.answer("AddAnchor", admin.AddAnchorResponse())
    ran = ta("anchor", "import", str(collection), "-c", "prod", "--test-authorities", "--yes")
    assert ran.code == ExitCode.YES
    sent = sent_anchors(authority)
    assert len(sent) == 2
    assert {request.kind for request in sent} == {admin.ANCHOR_KIND_CA}


def test_test_authorities_are_not_taken_unless_asked(ta, tmp_path: Path) -> None:
    """Pitfall 29: a CA of software TPMs is not trusted by an import."""
    shutil.copy(VECTORS.parent / "boots" / "ca" / "root.pem", tmp_path / "root.pem")
    ran = ta("anchor", "import", str(tmp_path / "root.pem"), "-c", "prod", "--yes")
    assert ran.code == ExitCode.USAGE
    assert "no CA that may vouch" in ran.err


def test_a_folder_without_cas_is_refused(ta, tmp_path: Path) -> None:
    """Bad input gets a sentence, not an empty success."""
    (tmp_path / "empty").mkdir()
    ran = ta("anchor", "import", str(tmp_path / "empty"), "-c", "prod", "--yes")
    assert ran.code == ExitCode.USAGE


def test_roots_that_the_usual_library_refuses_can_be_added(ta, authority: FakeAuthority) -> None:
    """Pitfalls A1: every Nuvoton root is genuine, and refused by the usual X.509 library."""
    roots = sorted(corpus_folder("ca-pool").glob("Nuvoton*Root*"))
    assert roots
    authority.answer("AddAnchor", admin.AddAnchorResponse())
    for root in roots:
        ran = ta("anchor", "add", str(root), "-c", "prod", "--yes")
        assert ran.code == ExitCode.YES, ran.err
    assert len(sent_anchors(authority)) == len(roots)
