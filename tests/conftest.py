"""Hypothesis profiles: `quick` repeats the same examples, `thorough` (`--hypothesis-profile`) seeks new ones."""

from hypothesis import HealthCheck, settings

# Examples write their files into the one folder of their test.
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

settings.register_profile(
    "quick", max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=SUPPRESSED
)
settings.register_profile("thorough", max_examples=2000, deadline=None, suppress_health_check=SUPPRESSED)
settings.load_profile("quick")
