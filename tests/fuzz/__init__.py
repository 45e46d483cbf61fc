"""Coverage-guided fuzzing of every decoder with atheris: ``make fuzz [TARGET=x509] [SECONDS=600]``.

One target per decoder family of ``support.decoders``. The corpus is checked in as text, an input per
line, so that a regression is a line of a diff; tests/fuzz/test_fuzz_corpus.py runs it without atheris.
"""
