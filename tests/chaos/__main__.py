"""`python -m tests.chaos --minutes 3`: breaks a whole system of real processes, and says what came of it."""

import argparse
import asyncio
import math
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

from .run import PER_SECOND, Report, Run

FAULTS_MIN, EXECUTIONS_MIN, STRUCK_OPEN_MIN = 20, 2000, 0.5


def main() -> int:
    """Answers 0 when all ended, the checker found nothing, and with `--ci` enough was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="about how long a run takes; most of it is faults")
    parser.add_argument("--replicas", type=int, choices=(1, 3), default=1, help="one server, or a cluster of three")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20))
    parser.add_argument("--per-second", type=float, default=PER_SECOND, help="executions started in a second")
    parser.add_argument("--only", default="", help="only faults whose name begins so")
    parser.add_argument("--ci", action="store_true", help="fail unless enough faults met enough executions")
    parser.add_argument("--golden", type=int, default=0, help="so many histories of the run become golden ones")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a clean run, too")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="im-chaos-"))
    _say(f"seed {options.seed}, replicas {options.replicas}, {options.minutes:g} min, in {folder}")
    run = Run(
        options.seed,
        options.replicas,
        options.minutes,
        folder,
        per_second=options.per_second,
        golden=options.golden,
        only=options.only,
    )
    report = asyncio.run(_run(run))
    _print(report)
    missing = _missing(report) if options.ci else []
    for line in missing:
        _say(line)
    if not report.is_clean:
        _say(f"again: python -m tests.chaos --seed {report.seed} --replicas {report.replicas}; evidence in {folder}")
    elif not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if report.is_clean and not missing else 1


async def _run(run: Run) -> Report:
    """Told to stop, it leaves no processes, networks or mounts behind."""
    running = asyncio.create_task(run.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    return await running


def _missing(report: Report) -> list[str]:
    missing = []
    if len(report.strikes) < FAULTS_MIN:
        missing.append(f"only {len(report.strikes)} faults, {FAULTS_MIN} are wanted")
    if report.executions < EXECUTIONS_MIN:
        missing.append(f"only {report.executions} executions, {EXECUTIONS_MIN} are wanted")
    if report.struck_open < STRUCK_OPEN_MIN * report.executions:
        missing.append(f"only {report.struck_open} executions were open when a fault struck")
    return missing


def _print(report: Report) -> None:
    counts = Counter(strike.kind for strike in report.strikes)
    recoveries: dict[str, list[float]] = defaultdict(list)
    for kind, seconds in report.recoveries:
        recoveries[kind].append(seconds)
    _say("| fault | times | recovery p50 | p99 | max |\n|---|---|---|---|---|")
    for kind in sorted(counts):
        _say(_row(kind, counts[kind], recoveries[kind]))
    _say(_row("**all**", len(report.strikes), [seconds for times in recoveries.values() for seconds in times]))
    _say(
        f"{len(report.strikes)} faults, {report.executions} executions, {report.struck_open} of them open when a fault "
        f"struck; {report.facts} facts; {report.states}"
    )
    _say(
        f"{report.repeated} works begun more than once, {report.starts_unknown} starts of unknown fate; "
        f"all had ended {report.settled_s:.0f} s after the last fault"
    )
    if report.restarts:
        _say(f"ended by themselves and were started again: {report.restarts}")
    for failure in report.failures:
        _say(f"FAILURE {failure}")
    for execution in report.open[:20]:
        _say(f"OPEN {execution}")
    for violation in report.violations[:50]:
        _say(f"VIOLATION {violation}")
    _say(f"{len(report.violations)} violations, {len(report.open)} executions that did not end")


def _row(kind: str, count: int, recoveries: list[float]) -> str:
    """A line of the table that goes into the documentation."""
    times = sorted(recoveries)
    shown = (percentile(times, 0.5), percentile(times, 0.99), times[-1]) if times else ()
    return " | ".join([f"| {kind}", str(count), *(f"{seconds:.1f} s" for seconds in shown)]) + " |"


def percentile(ordered: list[float], share: float) -> float:
    """The least of these that so large a share of them does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
