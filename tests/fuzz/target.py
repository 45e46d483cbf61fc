"""The process that atheris drives: ``python -m fuzz.target FAMILY [libFuzzer options] [folders]``."""

import sys

import atheris

STRANGERS = ("codec", "verification", "appraisal", "report")
"""The packages that read what strangers send; the rest is not slowed down."""

with atheris.instrument_imports(include=[f"trustauthority.{name}" for name in STRANGERS]):
    from fuzz.inputs import run_one


def main() -> None:
    """Fuzz one family until libFuzzer's limits; a finding ends the process with its traceback."""
    family = sys.argv.pop(1)

    def one_input(data: bytes) -> None:
        run_one(family, data)

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
