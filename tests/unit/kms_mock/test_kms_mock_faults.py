"""The faults of the mock KMS and the file that names them."""

import pytest

from kms_mock.faults import NO_FAULT, Fault, FaultKind, parse_fault, read_fault, write_fault


class TestParseFault:
    @pytest.mark.parametrize(
        "text",
        [
            "none",
            "down",
            "slow:2.5",
            "wrong-key",
            "wrong-tenant",
            "truncated",
            "revoked",
            "skew:-90",
        ],
    )
    def test_what_is_written_is_read(self, tmp_path, text):
        """N56: every fault of the list can be had, and the file says which holds."""
        fault = parse_fault(text)
        write_fault(tmp_path, fault)
        assert read_fault(tmp_path) == fault
        assert (tmp_path / "fault").read_text() == f"{text}\n"

    def test_slow_has_its_seconds(self):
        """A delay is chosen, so that tests of timeouts are short."""
        assert parse_fault(" slow:30\n") == Fault(kind=FaultKind.SLOW, seconds=30)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "up",
            "Down",
            "slow",
            "slow:",
            "slow:-1",
            "slow:nan",
            "slow:601",
            "slow:x",
            "down:3",
            "skew",
            "skew:",
            "skew:inf",
            "skew:nan",
            "revoked:1",
        ],
    )
    def test_anything_else_is_refused(self, text):
        """A typing error must not look like a KMS in good order."""
        with pytest.raises(ValueError, match=r"."):
            parse_fault(text)

    def test_no_file_is_no_fault(self, tmp_path):
        """A folder that init just made."""
        assert read_fault(tmp_path) == NO_FAULT

    @pytest.mark.parametrize("content", [b"", b"bogus", b"\xff\xfe"])
    def test_a_file_with_something_else_is_told(self, tmp_path, content):
        """The server then counts as down, and says why."""
        (tmp_path / "fault").write_bytes(content)
        with pytest.raises(ValueError, match=r"."):
            read_fault(tmp_path)
