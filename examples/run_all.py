"""Runs every example, or those that are named, each as a process of its own; every one asserts its own result.

Run: python examples/run_all.py [FILE ...]
Prints a line for each, and what one that failed has printed; ends with 1 if any failed.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
TIMEOUT_S = 180
STOP_RUNTIME = "import asyncio; from infinity_matrix.runtime import stop_runtime; asyncio.run(stop_runtime())"


def all_examples() -> list[Path]:
    """Every example of this folder, in the order of their names."""
    return sorted(path for path in [*HERE.glob("*.py"), HERE / "polyglot" / "run.py"] if path.name != "run_all.py")


def user_of_nothing(home: Path) -> dict[str, str]:
    """The environment of a user for whom nothing is prepared; what the local runtime keeps goes to `home`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IM_")}
    binary = os.environ.get("IM_NATS_SERVER_BIN")
    return environment | {"IM_HOME": str(home)} | ({"IM_NATS_SERVER_BIN": binary} if binary else {})


def run(path: Path, environment: dict[str, str]) -> tuple[bool, str]:
    """Runs one example; answers whether it went well, and what it printed."""
    try:
        done = subprocess.run(
            [sys.executable, str(path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        return False, f"{printed.decode() if isinstance(printed, bytes) else printed}\nno end after {TIMEOUT_S} s\n"
    return done.returncode == 0, done.stdout


def main(paths: list[Path]) -> int:
    failed = 0
    with tempfile.TemporaryDirectory(prefix="infinity-matrix-examples-") as home:
        environment = user_of_nothing(Path(home))
        try:
            for path in paths:
                began_s = time.perf_counter()
                is_well, printed = run(path, environment)
                name = path.relative_to(HERE) if path.is_relative_to(HERE) else path
                print(f"{'ok    ' if is_well else 'FAILED'} {time.perf_counter() - began_s:5.1f} s  {name}", flush=True)
                if not is_well:
                    failed += 1
                    print(printed, flush=True)
        finally:
            subprocess.run([sys.executable, "-c", STOP_RUNTIME], env=environment, timeout=TIMEOUT_S, check=True)
    print(f"{len(paths) - failed} of {len(paths)} examples went well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main([Path(name).resolve() for name in sys.argv[1:]] or all_examples()))
