"""Cost profiles: what each basic operation of one measured machine costs, and where the figure is from.

Only basic operations have costs.  Latencies of guest actions, call counts, overhead and samples come out of a
run and are never in a profile.  A value chosen to meet a published row names that row (`calibration`); any
other states its `source`.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final

from msgspec import Struct, field
from msgspec.structs import replace

from vpmu.errors import UserError
from vpmu.schema import convert, join, read_toml
from vpmu.units import Rate, format_ns

PROFILE_DIRECTORY: Final = Path(__file__).parent / "profiles"
PROFILE_VERSION: Final = 1
PER_POSSIBLE_CPU: Final = ("pmu_reserve", "pmu_release")
LARGEST_COST_NS: Final = 2**32 - 1
LARGEST_SIGMA: Final = 2


class Cost(Struct, frozen=True, forbid_unknown_fields=True):
    """Duration of one basic operation: `ns` plus a log-normal part of median `median_ns`.

    `sigma` is the standard deviation of the log-normal part's logarithm; it may have an origin of its own.
    """

    ns: int | None = None
    median_ns: int | None = None
    sigma: Fraction = Fraction(0)
    source: str = ""
    calibration: str = ""
    sigma_source: str = ""
    sigma_calibration: str = ""

    @property
    def centre_ns(self) -> int:
        """The duration's median, ns."""
        return (self.ns or 0) + (self.median_ns or 0)

    def figures(self) -> tuple[int, int, int]:
        """Constant part (ns), median (ns) and sigma (1/65536): a row of `vpmu.kernels.costs.encode_costs`."""
        return self.ns or 0, self.median_ns or 0, round(self.sigma * 65536)

    def scaled(self, factor: Fraction) -> Cost:
        """Return the cost with both durations multiplied by `factor`, each rounded to a nanosecond."""
        return replace(
            self,
            ns=None if self.ns is None else round(self.ns * factor),
            median_ns=None if self.median_ns is None else round(self.median_ns * factor),
        )


class Cpu(Struct, frozen=True, forbid_unknown_fields=True):
    """The physical CPU: identity, size, clocks and counters."""

    model: str
    family: int
    model_number: int
    sockets: int
    cores: int
    possible_cpus: int
    tsc_khz: int
    core_khz: int
    gp_counters_ht: int
    gp_counters: int
    fixed_counters: int
    counter_width: int
    source: str


class HostDefaults(Struct, frozen=True, forbid_unknown_fields=True):
    """What a scenario's host has unless it says otherwise."""

    hz: int


class GuestDefaults(Struct, frozen=True, forbid_unknown_fields=True):
    """What a scenario's guests have unless it says otherwise."""

    hz: int


class Interrupts(Struct, frozen=True, forbid_unknown_fields=True):
    """The noise model: interrupts other than the host's tick, on every physical CPU, memoryless.

    Their duration is the cost `host_irq`, as the tick's is.
    """

    rate: Rate
    source: str = ""
    calibration: str = ""


class Profile(Struct, frozen=True, forbid_unknown_fields=True):
    """One measured machine."""

    version: int
    name: str
    description: str
    cpu: Cpu
    host: HostDefaults
    guest: GuestDefaults
    interrupts: Interrupts
    costs: dict[str, Cost] = field(name="cost")

    @property
    def calibrated(self) -> dict[str, str]:
        """Every value chosen to meet a published row: key path to row, in name order."""
        rows = {f"cost.{name}": cost.calibration for name, cost in self.costs.items() if cost.calibration}
        for name, cost in self.costs.items():
            if cost.sigma_calibration:
                rows[f"cost.{name}.sigma"] = cost.sigma_calibration
        if self.interrupts.calibration:
            rows["interrupts"] = self.interrupts.calibration
        return dict(sorted(rows.items()))

    def cost_figures(self, possible_cpus: int) -> dict[str, tuple[int, int, int]]:
        """Figures of every cost on a host with `possible_cpus`, for `vpmu.kernels.costs.encode_costs`.

        Reserving and releasing the PMU loops over all possible CPUs (`reserve_ds_buffers` of Linux 5.0), so
        these two grow in proportion to their number.
        """
        factor = Fraction(possible_cpus, self.cpu.possible_cpus)
        return {
            name: (cost.scaled(factor) if name in PER_POSSIBLE_CPU else cost).figures()
            for name, cost in self.costs.items()
        }

    def cost_rows(self) -> Iterator[tuple[str, str, str]]:
        """Yield name, duration and origin of every cost, for people to read."""
        for name, cost in self.costs.items():
            parts = [format_ns(cost.ns)] if cost.ns is not None else []
            if cost.median_ns is not None:
                parts.append(f"{format_ns(cost.median_ns)} (log-normal, sigma {float(cost.sigma):g})")
            origin = _origin(cost.source, cost.calibration)
            if cost.sigma_source or cost.sigma_calibration:
                origin += f"; sigma: {_origin(cost.sigma_source, cost.sigma_calibration)}"
            yield name, " + ".join(parts), origin


def _origin(source: str, calibration: str) -> str:
    return f"calibration: RFC {calibration}" if calibration else source


def list_profiles() -> list[str]:
    """Names of the profiles that come with the package, sorted."""
    return sorted(path.name.removesuffix(".toml") for path in PROFILE_DIRECTORY.glob("*.toml"))


def load_profile(name: str) -> Profile:
    """Load a profile by its name, or a file of the user's by its path (with a ``/`` or ending in ``.toml``).

    Raises
    ------
    UserError
        For an unknown name, or at the first mistake in the file, by its key.
    """
    if "/" in name or name.endswith(".toml"):
        path = Path(name)
    elif name in list_profiles():
        path = PROFILE_DIRECTORY / f"{name}.toml"
    else:
        raise UserError("unknown profile", found=name, allowed=list_profiles())
    return parse_profile(path)


def parse_profile(path: Path) -> Profile:
    """Read and check a profile file."""
    file = str(path)
    profile = convert(read_toml(path), Profile, file)
    if profile.version != PROFILE_VERSION:
        problem = f"profile version {profile.version} is not supported (known: {PROFILE_VERSION})"
        raise UserError(problem, file=file, key="version")
    _check_cpu(profile.cpu, file)
    for key, hz in (("host.hz", profile.host.hz), ("guest.hz", profile.guest.hz)):
        _check_range(hz, 1, 10_000, key, file)
    _check_origin(profile.interrupts, "interrupts", file)
    _check_costs(profile.costs, file)
    return profile


def _check_cpu(cpu: Cpu, file: str) -> None:
    for name in cpu.__struct_fields__[1:-1]:
        _check_range(getattr(cpu, name), 0 if name == "model_number" else 1, 2**32, f"cpu.{name}", file)
    _check_range(cpu.gp_counters, 1, 8, "cpu.gp_counters", file)
    _check_range(cpu.gp_counters_ht, 1, cpu.gp_counters, "cpu.gp_counters_ht", file)
    _check_range(cpu.fixed_counters, 1, 3, "cpu.fixed_counters", file)
    _check_range(cpu.counter_width, 32, 48, "cpu.counter_width", file)


def _check_costs(costs: dict[str, Cost], file: str) -> None:
    from vpmu.kernels.costs import COST_NAMES

    for name, cost in costs.items():
        key = join("cost", name)
        if name not in COST_NAMES:
            raise UserError("unknown cost", file=file, key=key, found=name, allowed=sorted(COST_NAMES))
        _check_cost(cost, key, file)
    for name in COST_NAMES:
        if name not in costs:
            raise UserError("missing", file=file, key=join("cost", name))


def _check_cost(cost: Cost, key: str, file: str) -> None:
    if cost.ns is None and cost.median_ns is None:
        raise UserError('needs "ns", "median_ns" or both', file=file, key=key)
    if cost.median_ns is None and cost.sigma:
        raise UserError('only a cost with "median_ns" has a spread', file=file, key=f"{key}.sigma")
    _check_range(cost.ns or 0, 0, LARGEST_COST_NS, f"{key}.ns", file)
    _check_range(cost.median_ns or 0, 0, LARGEST_COST_NS, f"{key}.median_ns", file)
    if not 0 <= cost.sigma <= LARGEST_SIGMA:
        raise UserError(f"must be from 0 to {LARGEST_SIGMA}", file=file, key=f"{key}.sigma")
    _check_origin(cost, key, file)
    if cost.sigma_source and cost.sigma_calibration:
        problem = 'has at most one of "sigma_source" and "sigma_calibration"'
        raise UserError(problem, file=file, key=key)


def _check_origin(value: Cost | Interrupts, key: str, file: str) -> None:
    if bool(value.source) == bool(value.calibration):
        raise UserError('needs exactly one of "source" and "calibration"', file=file, key=key)


def _check_range(value: int, low: int, high: int, key: str, file: str) -> None:
    if value < 0 == low:
        raise UserError(f"must not be negative, found {value}", file=file, key=key)
    if not low <= value <= high:
        raise UserError(f"must be from {low} to {high}, found {value}", file=file, key=key)
