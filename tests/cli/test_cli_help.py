"""What people read before they type: help, examples, completion, the reference."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trustauthority.cli.app import NOUNS, app
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ExitCode
from trustauthority.cli.options import hoist, parse_duration
from trustauthority.cli.reference import leaves, reference

ROOT = Path(__file__).parents[2]
COMMANDS = {" ".join(words): command for words, command in leaves(app, ("ta",))}
OF_OTHERS = ("ta evidence",)


@pytest.mark.parametrize("name", [c for c in COMMANDS if not c.startswith(OF_OTHERS)])
def test_every_command_has_help_and_two_examples(ta, name: str) -> None:
    """Style 4.1: help leads to something one can copy; each example names a command there is."""
    epilogue = str(COMMANDS[name].help_epilogue)
    lines = [line.strip() for line in epilogue.splitlines() if line.startswith("    ")]
    assert len(lines) >= 2
    for line in lines:
        words = re.search(r"\bta(?: --context lab)?((?: [a-z][a-z-]*)+)", line)
        assert words is not None
        assert any(f"ta{words[1]} ".startswith(f"{known} ") for known in COMMANDS), line
    result = ta(*name.split()[1:], "--help")
    assert result.code is ExitCode.YES
    assert "Examples" in result.out
    assert result.err == ""


def test_the_commands_of_the_product_are_there() -> None:
    """Style 4.2 and issue 2: the nouns and verbs that the demo and the docs use."""
    wanted = """status; host list show explain admit rebind remove revoke reinstate evidence;
        anchor add list remove; inventory add list remove; cluster create list;
        baseline capture predict diff approve list retire; policy show apply; vm protect list show;
        key create list show; report show verify keys; placement check intent intents;
        identity issue renew revoke list; audit tail verify; context add list use show remove;
        version; completion"""
    for group in wanted.split(";"):
        noun, *verbs = group.split()
        for command in [f"ta {noun} {verb}" for verb in verbs] or [f"ta {noun}"]:
            assert command in COMMANDS


def test_help_of_nouns_is_the_one_of_their_modules() -> None:
    """The words shown without importing a noun are its own."""
    for noun, about in NOUNS.items():
        if noun != "evidence":
            assert about == app[noun].help


def test_the_reference_is_fresh() -> None:
    """Docs and commands say the same; `python -m trustauthority.cli.reference` writes it anew."""
    assert (ROOT / "docs/reference/cli.md").read_text() == reference()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_of_that_shell(ta, shell: str) -> None:
    """Completion names nouns, verbs and options; the shell itself accepts it where it is installed."""
    script = ta("completion", shell).out
    assert all(word in script for word in ("explain", "baseline", "dry-run"))
    program = shutil.which(shell)
    if program is not None:
        checked = subprocess.run([program, "-n"], input=script, text=True, check=False)
        assert checked.returncode == 0


def test_bash_completes_a_verb() -> None:
    """Typing `ta host ex` and tab gives explain."""
    script = "source /dev/stdin; COMP_WORDS=(ta host expl); COMP_CWORD=2; _ta; echo ${COMPREPLY[@]}"
    made = subprocess.run(
        [sys.executable, "-m", "trustauthority.cli.app", "completion", "bash"],
        capture_output=True,
        text=True,
        check=True,
    )
    done = subprocess.run(
        ["bash", "-c", script], input=made.stdout, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "explain"


def test_help_comes_quickly_and_loads_no_grpc() -> None:
    """Start-up stays light: help imports neither gRPC nor protobuf nor the nouns."""
    code = (
        "import sys; from trustauthority.cli.app import run; run(['--help']);"
        "heavy = {'grpc', 'google.protobuf', 'trustauthority.cli.host', 'cryptography', 'yaml'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 5


def test_options_move_behind_the_command() -> None:
    """Options before the noun are the command's; what follows -- stays where it is."""
    assert hoist(["-o", "json", "-q", "host", "list"]) == ["host", "list", "-o", "json", "-q"]
    assert hoist(["--timeout=3s", "status"]) == ["status", "--timeout=3s"]
    assert hoist(["-v", "host", "show", "--", "-x"]) == ["host", "show", "-v", "--", "-x"]
    assert hoist(["host", "-o", "json"]) == ["host", "-o", "json"]
    assert hoist(["--help"]) == ["--help"]
    assert hoist([]) == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("2m", 120), ("1h", 3_600), ("500ms", 0.5)]
)
def test_durations(text: str, seconds: float) -> None:
    """Lengths of time as people write them."""
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "-1s", "1 s", "1w", "١s", "1.5h", "1e3", "9" * 10])
def test_no_durations(text: str) -> None:
    """N44: everything else is refused rather than guessed."""
    with pytest.raises(ValueError, match="length of time"):
        parse_duration(text)


def test_version_is_the_package_s(ta) -> None:
    """Support asks for it first."""
    assert re.fullmatch(r"ta \d+\.\d+\.\d+\n", ta("version").out)
    assert ta("version", "-o", "name").out.strip() == ta("version").out.split()[1]


def test_examples_keep_their_lines() -> None:
    """An example is shown as it is typed."""
    assert examples("ta a", "ta b") == "Examples:\n\n    ta a\n    ta b"
