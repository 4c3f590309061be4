"""How Hypothesis runs here: the same examples every time; HYPOTHESIS_PROFILE=explore looks for new ones.

A failure prints the smallest example that fails, its seed among it, and a blob for `@reproduce_failure`.
"""

import os

from hypothesis import HealthCheck, settings

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "fixed", derandomize=True, database=None, print_blob=True, deadline=None, suppress_health_check=_SLOW
)
settings.register_profile(
    "explore", max_examples=5000, database=None, print_blob=True, deadline=None, suppress_health_check=_SLOW
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
