"""What `imx` begins with: the command line, and a Ctrl-C that comes while that is still being imported."""

import sys

#: As shells number a program that Ctrl-C ended.
INTERRUPTED = 130


def main() -> None:
    """Runs the command line; ends the process with its exit code."""
    try:
        from infinity_matrix.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
