"""Chaos on real processes: servers, coordinators, agents and clients that are killed, frozen and cut off, seeded.

`python -m tests.chaos --minutes 3`. Afterwards every execution must end, and the history checker must find nothing.
"""

import sys
from pathlib import Path

#: The journal of effects and the reading of histories are those of the integration tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
