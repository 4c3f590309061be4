"""A coordinator or an agent is killed between any two of its messages, and nothing is lost or done again."""

import sys
from pathlib import Path

#: The reading of journals is that of the integration tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
