"""Mutation testing of the verifier: ``make mutate PACKAGE=codec SAMPLE=400 SEED=1``.

Own and small, since mutmut 3 draws no seeded sample, leaves out the code at module level and starts
the tests anew for each mutant. Here the tests are collected once, each mutant is a fork of that
process in which the code of one function is exchanged, and only the tests that reach the changed
line run, the fastest first.
"""
