"""Examples at the end of each command's help: what people copy."""


def examples(*lines: str) -> str:
    """The help epilogue of a command: each line is a command as one would type it.

    A comment after two spaces and ``#`` may follow.
    """
    return "Examples:\n\n" + "\n".join(f"    {line}" for line in lines)
