"""What every test may use. Hypothesis prints the blob that repeats a failure, and never fails for a slow machine."""

from hypothesis import HealthCheck, settings

settings.register_profile("splitwatt", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("splitwatt")
