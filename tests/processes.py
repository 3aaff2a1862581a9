"""What tests need to start processes."""

import os


def untraced() -> dict[str, str]:
    """Return an environment without coverage, for a process that may have to compile the engine."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
