"""vpmu: an emulator of PMU virtualization, in virtual time, MSR access by MSR access.

What a user touches: the command line, scenarios, cost profiles, results and reports. ``import vpmu`` is the
public face and loads nothing until a name is used::

    import trio
    import vpmu

    result = trio.run(vpmu.run, vpmu.load_scenario("stat.toml"))
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vpmu.execution import run
    from vpmu.results import RunResult
    from vpmu.scenario import Scenario, load_scenario

__version__ = "0.1.0"

_EXPORTS: dict[str, str] = {
    "run": "vpmu.execution",
    "RunResult": "vpmu.results",
    "Scenario": "vpmu.scenario",
    "load_scenario": "vpmu.scenario",
}
"""Public name -> the module that defines it; the module is loaded when the name is first used."""

__all__ = ["RunResult", "Scenario", "__version__", "load_scenario", "run"]


def __getattr__(name: str) -> object:
    """Load a public name's module on first use.

    Parameters
    ----------
    name
        A name of this package.

    Returns
    -------
    object
        What the name stands for; kept, so that the next use costs a dictionary look-up.

    Raises
    ------
    AttributeError
        The name is not a public one.
    """
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name what is public, loaded or not."""
    return sorted({*globals(), *_EXPORTS})
