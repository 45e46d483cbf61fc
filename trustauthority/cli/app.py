"""The ``ta`` command: its nouns, and what every failure looks like.

Data on standard output, narration and errors on standard error, the answer in the exit code.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Literal

from cyclopts import App, CycloptsError
from rich.console import Console

from trustauthority.cli import status
from trustauthority.cli.examples import examples
from trustauthority.cli.exit import ADVICE, ExitCode, exit_code
from trustauthority.cli.options import DEFAULTS, Options, hoist
from trustauthority.cli.session import WORLD, Declined, World, screen_for
from trustauthority.cli.text import printable, printable_block
from trustauthority.errors import CheckpointInvalid, TrustAuthorityError

HELP = """Decide which hosts may run encrypted VMs, and see why one may not.

Start with `ta context add`, then `ta status` and `ta host list`; `ta host explain HOST` says why a
host is not trusted and what to do. Every command takes `-o table|wide|json|yaml|name`, `--context`,
`--server`, `--timeout`, `-q`, `-v`, `--no-color` and `--yes`, before or after the noun.

Exit codes: 0 yes or done, 1 the answer is no, 2 asked wrongly, 3 no such thing, 4 not allowed, 5 no
answer now, 70 a bug, 130 interrupted.
"""

app = App(
    name="ta",
    help=HELP,
    help_format="markdown",
    version_flags=("--version",),
    suppress_keyboard_interrupt=False,
)
app.command(
    status.status,
    help_epilogue=examples("ta status", "ta status -o json", "ta --context lab status"),
)
NOUNS = {
    "host": "Hosts: who is trusted, and why not.",
    "baseline": "Baselines: the expected boot of a class of hosts.",
    "policy": "Policies: what must hold for a host to be trusted.",
    "anchor": "Anchors: the TPM makers' CAs, or single TPMs, that are accepted.",
    "inventory": "Inventory: machines that are ours and are admitted by themselves.",
    "cluster": "Trusted clusters: sets of hosts under one policy.",
    "vm": "Protected VMs: who may run each, and until when.",
    "key": "VM keys: their records, and who received each. Never the keys.",
    "placement": "Placement: may this VM run there, and why not.",
    "report": "Reports: signed statements of verdicts, for other systems.",
    "evidence": "Evidence in files, judged without an authority.",
    "identity": "Identities: people and programs that may call, and their roles.",
    "audit": "Audit log: who got which key when, and proof that it is whole.",
    "context": "Contexts: which authority to ask, whom to believe, as whom.",
}
"""Each noun is a module; it is imported when one of its commands is asked for."""

for noun, about in NOUNS.items():
    attribute = "evidence_app" if noun == "evidence" else "app"
    app.command(f"trustauthority.cli.{noun}:{attribute}", name=noun, help=about)


@app.command(help_epilogue=examples("ta version", "ta version -o json"))
def version(*, options: Options = DEFAULTS) -> ExitCode:
    """Print the version of this command."""
    import importlib.metadata

    number = importlib.metadata.version("trustauthority")
    screen = screen_for(options)
    if screen.for_machines:
        screen.machine({"version": number}, names=[number])
    else:
        screen.line(f"ta {number}")
    return ExitCode.YES


@app.command(
    help_epilogue=examples(
        "source <(ta completion bash)", "ta completion zsh > ~/.zfunc/_ta", "ta completion fish"
    )
)
def completion(shell: Literal["bash", "zsh", "fish"], /) -> ExitCode:
    """Print the completion script of a shell.

    Args:
        shell: bash, zsh or fish.
    """
    WORLD.get().out.write(app.generate_completion(shell=shell))
    return ExitCode.YES


def run(tokens: Sequence[str], world: World | None = None) -> ExitCode:
    """Run one command and return its exit code; whatever happens is said, never raised."""
    world = world or World()
    token = WORLD.set(world)
    arguments = hoist(tokens)
    try:
        return _dispatch(arguments, world)
    except KeyboardInterrupt:
        world.err.write("interrupted\n")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        return ExitCode.YES  # the reader of our output had enough: nobody is left to tell
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug is said, not dumped
        return _bug(error, arguments, world)
    finally:
        WORLD.reset(token)


def _dispatch(arguments: Sequence[str], world: World) -> ExitCode:
    try:
        answer = app(
            arguments,
            exit_on_error=False,
            print_error=False,
            console=_help_console(world),
            result_action="return_value",
        )
    except CycloptsError as error:
        # Its message repeats what was typed, and that may be anything.
        _fail(world, printable_block(_message(error)), _help_hint(arguments))
        return ExitCode.USAGE
    except Declined:
        world.err.write("nothing was changed\n")
        return ExitCode.NO
    except TrustAuthorityError as error:
        # Raised here, such a message says itself what to do; only a broken log needs a word more.
        advice = ADVICE[error.reason] if isinstance(error, CheckpointInvalid) else ""
        _fail(world, error.message, advice, reason=error.reason)
        return exit_code(error.reason)
    except Exception as error:
        from trustauthority.client.errors import ClientError

        if not isinstance(error, ClientError):
            raise
        return _refused(error, arguments, world)
    return ExitCode(answer) if isinstance(answer, int) else ExitCode.YES


def _refused(error: Exception, arguments: Sequence[str], world: World) -> ExitCode:
    """Say why the authority did not do what was asked."""
    from trustauthority.client.errors import ClientError

    if not isinstance(error, ClientError):  # pragma: no cover - the caller looked
        raise TypeError
    code = exit_code(error.reason)
    message = error.message
    if code is ExitCode.BUG:
        error_id = error.metadata.get("errorId") or error.request_id
        message = f"the authority failed by a mistake of its own (error id {error_id}): {message}"
    advice = ADVICE.get(error.reason, "")
    if error.retry_after_s:
        advice = f"{advice}; try again in {error.retry_after_s:g}s".removeprefix("; ")
    _fail(world, message, advice, reason=error.reason)
    if _verbose(arguments):
        known = " ".join(f"{key}={value}" for key, value in error.metadata.items())
        world.err.write(printable(f"  request id {error.request_id} {known}") + "\n")
    return code


def _bug(error: Exception, arguments: Sequence[str], world: World) -> ExitCode:
    """Say that this is our mistake, with an id that also stands in the trace."""
    import hashlib

    frames = traceback.extract_tb(error.__traceback__)
    place = "|".join(f"{frame.name}:{frame.lineno}" for frame in frames)
    error_id = hashlib.sha256(f"{type(error).__name__}|{place}".encode()).hexdigest()[:12]
    _fail(
        world,
        f"a bug in ta: {type(error).__name__} (error id {error_id})",
        "" if _verbose(arguments) else "run it again with -v and report what it prints",
    )
    if _verbose(arguments):
        world.err.write(printable_block("".join(traceback.format_exception(error))) + "\n")
    return ExitCode.BUG


def _fail(world: World, message: str, advice: str, *, reason: str = "") -> None:
    screen = screen_for(DEFAULTS)
    screen.fail(f"{message}  [{reason}]" if reason else message)
    if advice:
        screen.advise(advice)
    world.err.flush()


def _message(error: CycloptsError) -> str:
    return str(error).strip() or type(error).__name__


def _help_hint(arguments: Sequence[str]) -> str:
    """The most specific help for what was typed."""
    words: list[str] = []
    node = app
    for token in arguments:
        if token.startswith("-") or token not in node.resolved_commands():
            break
        words.append(token)
        node = node[token]
    return " ".join(("ta", *words, "--help"))


def _verbose(arguments: Sequence[str]) -> bool:
    return "-v" in arguments or "--verbose" in arguments


def _help_console(world: World) -> Console:
    plain_text = bool(world.environment.get("NO_COLOR")) or not world.out.isatty()
    return Console(file=world.out, no_color=plain_text, highlight=False)


def main() -> None:
    """The entry point of ``ta``."""
    # Chatter of the C core belongs to nobody who asked a question.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(int(code))


if __name__ == "__main__":
    main()
