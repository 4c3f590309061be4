"""`python -m tests.mutants [WORD ...]`: takes each rule out of a copy of the sources and runs the tests that must fail.

Prints which test found which mutant, and ends with 1 when one was found by none, or no longer fits the sources.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .catalog import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
PACKAGES = ("actors", "bus", "coordinator", "agents", "workflow")
COPIED = (*PACKAGES, "tests", "examples", "docs", "pyproject.toml")
TIMEOUT_S = 180
#: A run of the tests has ended so when one of them failed.
FAILED = 1
IGNORED = shutil.ignore_patterns("__pycache__", "node_modules", ".mypy_cache")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def copy(to: Path) -> None:
    """The sources and the tests, as they are now."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=IGNORED)
        else:
            shutil.copy(source, to / name)


def run(tree: Path, tests: Iterable[str]) -> tuple[int, str]:
    """Runs tests against the sources of a tree; answers how they ended, and the test that failed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(tree / name) for name in PACKAGES)}
    # The same examples each time: what finds a mutant today is to find it tomorrow.
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return FAILED, f"no end after {TIMEOUT_S} s"
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED tests", "ERROR tests"))]
    return done.returncode, failed[0].split(" - ")[0].partition(" ")[2] if failed else (lines or [""])[-1]


def judge(mutant: Mutant, tree: Path) -> tuple[bool, str]:
    """Whether the tests find the mutant, and which of them does. `tree` is left as it was."""
    path = tree / mutant.path
    text = path.read_text()
    if text.count(mutant.old) != 1:
        return False, f"no longer fits {mutant.path}"
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        code, by = run(tree, mutant.tests)
    finally:
        path.write_text(text)
    if code == 0:
        return False, "SURVIVED"
    return (True, by) if code == FAILED else (False, f"the tests did not run: {by}")


def main() -> int:
    words = sys.argv[1:]
    mutants = [one for one in MUTANTS if not words or any(word in one.name for word in words)]
    began = time.monotonic()
    workers = os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [Path(folder) / str(number) for number in range(workers)]
        for tree in trees:
            copy(tree)
        for tests in dict.fromkeys(one.tests for one in mutants):
            code, by = run(trees[0], tests)
            if code:
                say(f"without any mutant {' '.join(tests)} does not pass: {by}")
                return 1
        survivors = 0
        free = list(trees)

        def work(mutant: Mutant) -> tuple[Mutant, bool, str]:
            tree = free.pop()
            try:
                return mutant, *judge(mutant, tree)
            finally:
                free.append(tree)

        with ThreadPoolExecutor(workers) as pool:
            for mutant, is_found, by in pool.map(work, mutants):
                survivors += not is_found
                say(f"{'found   ' if is_found else 'SURVIVOR'} {mutant.name:58} {by}")
    say(f"{len(mutants)} mutants, {survivors} survived, {time.monotonic() - began:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
