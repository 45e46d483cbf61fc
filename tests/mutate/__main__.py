"""Draw mutants, run what reaches them, report the score with its 95 % interval and the survivors.

    PYTHONPATH=tests python -m mutate codec --sample 400 --seed 1

Survivors of the quick way (a fork in which one function's code is exchanged) are tried again in a
process of their own, with the tests that reach the line: what is reported has survived that.
``--rough`` leaves this out, and what acts at import: minutes instead of hours. ``--again FILE`` tries the survivors that a
run wrote to ``.build/mutate/PACKAGE/survivors``.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import coverage

from mutate.install import ROOT, module_name
from mutate.mutants import Mutant, as_fields, find_mutants

FOLDERS = {
    "codec": ("unit/codec", "unit/verification", "fuzz", "properties/test_log_properties.py"),
    "verification": ("unit/verification", "unit/appraisal"),
    "appraisal": (
        "unit/appraisal",
        "scenarios/test_scenario_evidence_bundle.py",
        "scenarios/test_scenario_baselines.py",
        "scenarios/test_scenario_runtime_rules.py",
    ),
}
"""The tests that may kill a mutant of a package: quick ones that reach it. Others may kill more, never less."""
WORK = ROOT / ".build" / "mutate"
EXPLAINED = Path(__file__).parent / "explained.json"
QUICK_S, WHOLE_S = 8.0, 20.0
"""Seconds of tests, as they took in the survey, for the quick try and for the last word.

Nine of ten mutants die in a tenth of a second; the time goes to those that live.
"""


@dataclass
class Survey:
    """Which tests reach which lines, and how long each takes."""

    durations: dict[str, float] = field(default_factory=dict)
    by_line: dict[tuple[str, int], set[str]] = field(default_factory=lambda: defaultdict(set))
    by_file: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    at_import: set[tuple[str, int]] = field(default_factory=set)

    def tests(self, mutant: Mutant, budget_s: float) -> list[str]:
        """Tests that reach a mutant, the fastest first, up to a time."""
        name = str(mutant.path)
        lines = range(mutant.lines[0], mutant.lines[1] + 1)
        reaching = set().union(*(self.by_line[name, line] for line in lines))
        if self.runs_at_import(mutant):
            reaching |= self.by_file[name]
        chosen, spent = [], 0.0
        for test in sorted(reaching, key=lambda test: (self.durations.get(test, 9.0), test)):
            spent += self.durations.get(test, 9.0)
            if chosen and spent > budget_s:
                break
            chosen.append(test)
        return chosen

    def runs_at_import(self, mutant: Mutant) -> bool:
        """Whether the change takes effect when the module is imported."""
        lines = range(mutant.lines[0], mutant.lines[1] + 1)
        return not mutant.functions or any(
            (str(mutant.path), line) in self.at_import for line in lines
        )


def main() -> int:
    """Run; 0 when the score is at least ``--least``."""
    options = _options()
    package = ROOT / "trustauthority" / options.package
    files = sorted(package.glob("*.py"))
    mutants = [mutant for path in files for mutant in find_mutants(path)]
    if options.only:
        mutants = [mutant for mutant in mutants if options.only in mutant.key]
    if options.again:
        wanted = set(options.again.read_text(encoding="utf-8").splitlines())
        mutants = [mutant for mutant in mutants if mutant.key in wanted]
    drawn = mutants
    if options.sample and options.sample < len(mutants):
        drawn = random.Random(options.seed).sample(mutants, options.sample)
    global WORK  # noqa: PLW0603 - packages may run side by side
    WORK /= options.package
    WORK.mkdir(parents=True, exist_ok=True)
    survey = _survey(options.package)
    outcomes = _run(package, drawn, survey, rough=options.rough)
    return _report(options, len(mutants), outcomes)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mutate", description=__doc__)
    parser.add_argument("package", choices=["codec", "verification", "appraisal"])
    parser.add_argument("--sample", type=int, default=0, help="how many mutants; 0 is all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="mutants whose key contains this")
    parser.add_argument("--again", type=Path, help="a file with keys: these mutants only")
    parser.add_argument("--rough", action="store_true", help="inside functions, no second try")
    parser.add_argument("--least", type=float, default=0.0, help="per cent below which it fails")
    return parser.parse_args()


# --- the survey --------------------------------------------------------------------------------


def _survey(package: str) -> Survey:
    """Run the tests once with coverage contexts; they must pass."""
    data = WORK / f"{package}.coverage"
    answers = WORK / f"{package}.durations"
    answers.unlink(missing_ok=True)
    source = f"trustauthority/{package}"
    print(f"survey: which tests reach what in {source}", flush=True)
    task = {"kind": "survey", "answers": str(answers), "coverage": str(data), "package": source}
    code = _pytest(task, *_test_folders(package))
    if code != 0:
        raise SystemExit("the tests do not pass without mutants")
    survey = Survey()
    for line in answers.read_text(encoding="utf-8").splitlines():
        name, duration, _ = json.loads(line)
        survey.durations[name] = duration
    measured = coverage.CoverageData(basename=str(data))
    measured.read()
    for file in measured.measured_files():
        for line, contexts in measured.contexts_by_lineno(file).items():
            tests = set(contexts) - {""}
            survey.by_line[file, line] |= tests
            survey.by_file[file] |= tests
    survey.at_import = _import_lines(package)
    return survey


def _test_folders(package: str) -> list[str]:
    return [str(ROOT / "tests" / name) for name in FOLDERS[package]]


def _import_lines(package: str) -> set[tuple[str, int]]:
    """Lines that run when the package is imported, before any test."""
    data = WORK / f"{package}.imports"
    names = [module_name(path) for path in (ROOT / "trustauthority" / package).glob("*.py")]
    script = WORK / "imports.py"
    script.write_text("\n".join(f"import {name}" for name in names), encoding="utf-8")
    environment = os.environ | {"COVERAGE_FILE": str(data), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "coverage", "run", f"--source=trustauthority/{package}"]
    subprocess.run([*command, str(script)], cwd=ROOT, env=environment, check=True)
    measured = coverage.CoverageData(basename=str(data))
    measured.read()
    return {
        (file, line) for file in measured.measured_files() for line in measured.lines(file) or ()
    }


def _pytest(task: dict[str, object], *arguments: str) -> int:
    """One run of pytest with a task; its output goes to a file."""
    place = WORK / "task.json"
    place.write_text(json.dumps(task), encoding="utf-8")
    environment = os.environ | {
        "MUTATE_TASK": str(place),
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(WORK / "hypothesis"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "mutate.plugin"]
    command += ["-p", "no:randomly", *arguments]
    with (WORK / f"{task['kind']}.out").open("w") as output:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            timeout=task.get("limit_s"),  # type: ignore[arg-type]
            check=False,
        )
    return done.returncode


# --- the mutants -------------------------------------------------------------------------------


def _run(package: Path, mutants: list[Mutant], survey: Survey, *, rough: bool) -> dict[Mutant, str]:
    """The outcome of each mutant: killed, timeout, survived, or no test."""
    outcomes: dict[Mutant, str] = {}
    quick = []
    for mutant in mutants:
        if not survey.tests(mutant, QUICK_S):
            outcomes[mutant] = "no test"
        elif not survey.runs_at_import(mutant):
            quick.append(mutant)
    outcomes |= _run_forks(package, quick, survey)
    if rough:
        return outcomes
    slow = [mutant for mutant in mutants if outcomes.get(mutant) not in DEAD | {"no test"}]
    for number, mutant in enumerate(slow, 1):
        outcomes[mutant] = _run_fresh(mutant, survey)
        print(f"  alone {number}/{len(slow)}: {outcomes[mutant]}: {mutant.key}", flush=True)
    return outcomes


def _run_forks(package: Path, mutants: list[Mutant], survey: Survey) -> dict[Mutant, str]:
    answers = WORK / "forks.answers"
    answers.unlink(missing_ok=True)
    jobs = []
    for mutant in mutants:
        tests = survey.tests(mutant, QUICK_S)
        job = {"mutant": as_fields(mutant), "tests": tests, "limit_s": _limit_s(tests, survey)}
        jobs.append(job)
    print(f"{len(mutants)} mutants by fork", flush=True)
    task = {"kind": "forks", "answers": str(answers), "package": str(package), "jobs": jobs}
    _pytest(task, *_test_folders(package.name))
    lines = answers.read_text(encoding="utf-8").splitlines() if answers.exists() else []
    return {mutants[number]: outcome for number, outcome, *_ in map(json.loads, lines)}


def _run_fresh(mutant: Mutant, survey: Survey) -> str:
    tests = survey.tests(mutant, WHOLE_S)
    files = sorted({str(ROOT / test.partition("::")[0]) for test in tests})
    limit_s = 60 + _limit_s(tests, survey)
    task = {"kind": "fresh", "mutant": as_fields(mutant), "tests": tests, "limit_s": limit_s}
    try:
        code = _pytest(task, *files)
    except subprocess.TimeoutExpired:
        return "timeout"
    return "survived" if code in {0, 5} else "killed"


def _limit_s(tests: list[str], survey: Survey) -> float:
    """Far above what the tests took: a mutant is late only if it runs without end."""
    return 30 + 8 * sum(survey.durations.get(test, 1.0) for test in tests)


# --- the report --------------------------------------------------------------------------------

DEAD = {"killed", "timeout"}


def _report(options: argparse.Namespace, total: int, outcomes: dict[Mutant, str]) -> int:
    """Print score, interval and survivors."""
    explained = json.loads(EXPLAINED.read_text(encoding="utf-8"))
    alive = [mutant for mutant, outcome in outcomes.items() if outcome not in DEAD]
    equivalent = [mutant for mutant in alive if mutant.key in explained]
    survivors = sorted(
        (m for m in alive if m.key not in explained), key=lambda m: (m.path, m.lines)
    )
    for mutant in survivors:
        name = mutant.path.relative_to(ROOT)
        print(f"{outcomes[mutant]}: {name}:{mutant.lines[0]} {mutant.key.partition(' ')[2]}")
    keys = "".join(f"{mutant.key}\n" for mutant in survivors)
    (WORK / "survivors").write_text(keys, encoding="utf-8")
    drawn, killed = len(outcomes), len(outcomes) - len(alive)
    print(f"{options.package}: {total} mutants, {drawn} tried (seed {options.seed})")
    print(f"killed {killed}, without effect as explained {len(equivalent)}, alive {len(survivors)}")
    for title, good, of in (
        ("of all", killed, drawn),
        ("of those with an effect", killed, drawn - len(equivalent)),
    ):
        low, high = wilson(good, of)
        print(f"score {title}: {good / max(of, 1):.1%}, 95 % interval {low:.1%} to {high:.1%}")
    return int(100 * killed < options.least * (drawn - len(equivalent)))


def wilson(good: int, of: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927)."""
    if of == 0:
        return 0.0, 1.0
    z, share = 1.96, good / of
    middle = share + z * z / (2 * of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)


if __name__ == "__main__":
    sys.exit(main())
