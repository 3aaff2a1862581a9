"""Settings of the whole test suite: how Hypothesis runs."""

import os

from hypothesis import settings

# The first call of a kernel compiles it, so no single example has a deadline. A failure prints the blob that
# repeats it; CI draws the same examples every time.
settings.register_profile("local", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True)
settings.register_profile("soak", parent=settings.get_profile("local"), max_examples=2_000)

if "VPMU_SOAK" in os.environ:
    settings.load_profile("soak")
else:
    settings.load_profile("ci" if os.environ.get("CI") else "local")
