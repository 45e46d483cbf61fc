"""A person sees at once what differs: long values are cut to where they part."""

from trustauthority.cli.checks import MAX_VALUE, around_difference


def test_short_values_stay_whole() -> None:
    """Style 4.2: expected and found as they are, newlines visible."""
    assert around_difference("a\nb", "a\nc") == ("a↵b", "a↵c")


def test_long_values_show_their_difference() -> None:
    """Issue of explain: one argument at the end of a long command line must be on the screen."""
    line = "linux /vmlinuz " + "quiet " * 60
    expected, found = around_difference(line, line + "systemd.debug_shell=1")
    assert "systemd.debug_shell" in found
    assert len(expected) <= MAX_VALUE + 2
    assert len(found) <= MAX_VALUE + 2


def test_an_absent_value_is_no_difference_to_cut_at() -> None:
    """An empty side, as of a check without expectation, cuts the other at its start."""
    expected, found = around_difference("", "x" * 500)
    assert expected == ""
    assert found == "x" * MAX_VALUE + "…"
