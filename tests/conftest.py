"""Settings of the whole test suite: how Hypothesis runs."""

import os
import signal

from hypothesis import HealthCheck, settings

# The first call of a kernel compiles it, so no single example has a deadline, and a slow first draw says
# nothing. A failure prints the blob that repeats it; every run draws the same examples, but for the soak.
settings.register_profile(
    "test", deadline=None, print_blob=True, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("soak", parent=settings.get_profile("test"), derandomize=False, max_examples=2_000)

settings.load_profile("soak" if "VPMU_SOAK" in os.environ else "test")

# A shell's background job ignores Ctrl-C, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
