"""`python -m tests.simulation --seeds 2000`: runs seeds on all cores, and prints what struck and what broke."""

import argparse
import functools
import multiprocessing
import os
import sys
import time
from collections import Counter

HASH_SEED = "0"
#: In so many seeds each kind of fault strikes, and each kind of work is done, at least so often. Some hundreds are held
#: to half of their share, and fewer to nothing: chance is too great there.
STRIKES_MIN = 100
STRIKES_SEEDS = 2000
SHARE_SEEDS_MIN = 400
#: Seeds a worker process runs before another takes its place, so that memory stays small.
SEEDS_A_WORKER = 400


def main() -> int:
    """Answers 0 when no seed broke anything."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds to run")
    parser.add_argument("--seed", type=int, default=0, help="the first of them")
    parser.add_argument("--trace", action="store_true", help="print all that the first does to the streams")
    parser.add_argument("--work", help="these kinds of work, in place of each seed's own: children,maps... or none")
    parser.add_argument("--hashes", action="store_true", help="print the hash of each run's trace")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != HASH_SEED:
        # Sets of names are gone through in the order of their hashes, which must be the same each time.
        os.environ["PYTHONHASHSEED"] = HASH_SEED
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])
    return _trace(options) if options.trace else _run(options)


def _kinds(options: argparse.Namespace) -> tuple[str, ...] | None:
    if options.work is None:
        return None
    return () if options.work == "none" else tuple(options.work.split(","))


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _trace(options: argparse.Namespace) -> int:
    from .run import run_seed

    report = run_seed(options.seed, kinds=_kinds(options), with_trace=True)
    for line in (*report.trace, report.hash, *report.violations):
        _say(line)
    return 1 if report.violations else 0


def strikes_wanted(seeds: int) -> int:
    """How often each kind must be met with in so many seeds."""
    if seeds >= STRIKES_SEEDS:
        return STRIKES_MIN
    return STRIKES_MIN * seeds // STRIKES_SEEDS // 2 if seeds >= SHARE_SEEDS_MIN else 0


def _run(options: argparse.Namespace) -> int:
    from .census import COUNTED
    from .disorder import KINDS
    from .run import run_seed

    began = time.monotonic()
    seeds = range(options.seed, options.seed + options.seeds)
    kinds = (*KINDS, *COUNTED)
    counts: Counter[str] = Counter(dict.fromkeys(kinds, 0))
    executions = partly = broken = 0
    simulated_s = 0.0
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.processes, maxtasksperchild=SEEDS_A_WORKER // 5) as pool:
        for report in pool.imap(functools.partial(run_seed, kinds=_kinds(options)), seeds, chunksize=5):
            counts.update(report.faults)
            executions += report.executions
            partly += report.partly
            simulated_s += report.simulated_s
            if options.hashes:
                _say(f"{report.seed} {report.hash}")
            if report.violations:
                broken += 1
                _say(f"seed {report.seed} ({report.hash}):")
                for violation in report.violations:
                    _say(f"  {violation}")
                _say(f"  again: python -m tests.simulation --seeds 1 --seed {report.seed} (or with --trace)")
    took_s = time.monotonic() - began
    for title, some in (("faults", KINDS), ("work and what came of it", COUNTED)):
        _say(f"{title}:")
        for kind in sorted(some):
            _say(f"{counts[kind]:8} {kind}")
    wanted = 0 if options.work is not None else strikes_wanted(len(seeds))
    rare = [kind for kind in kinds if counts[kind] < wanted]
    for kind in rare:
        _say(f"only {counts[kind]} times, {wanted} are wanted: {kind}")
    _say(
        f"{len(seeds)} seeds, {executions} executions ({partly} checked without an account), "
        f"{simulated_s:.0f} simulated seconds in {took_s:.1f} s; {broken} broken"
    )
    return 1 if broken or rare else 0


if __name__ == "__main__":
    sys.exit(main())
