"""Cost profiles: the one that comes with the package, and what is said of mistakes in a user's own."""

from fractions import Fraction
from pathlib import Path

import pytest

from vpmu.errors import UserError
from vpmu.kernels.costs import COST_NAMES, encode_costs
from vpmu.profile import PROFILE_DIRECTORY, list_profiles, load_profile

E5 = "e5-2699v4-linux-5.0"
E5_TEXT = (PROFILE_DIRECTORY / f"{E5}.toml").read_text()


@pytest.mark.parametrize("name", list_profiles())
def test_each_profile_that_comes_along_is_valid_and_complete(name: str):
    profile = load_profile(name)
    assert profile.name == name
    assert set(profile.costs) == set(COST_NAMES)
    for cost in profile.costs.values():
        assert bool(cost.source) != bool(cost.calibration)


def test_costs_encode_as_the_kernels_take_them():
    profile = load_profile(E5)
    table = encode_costs(profile.cost_figures(profile.cpu.possible_cpus))
    assert table[COST_NAMES.index("exit")].tolist() == [400, 0, 0]
    # sigma 0.29 in 1/65536: 19005.44
    assert table[COST_NAMES.index("pmu_reserve")].tolist() == [0, 16_900_000, 19_005]


def test_reservation_grows_with_the_possible_cpus_and_nothing_else_does():
    profile = load_profile(E5)
    whole, half = profile.cost_figures(88), profile.cost_figures(44)
    assert {name for name in whole if whole[name] != half[name]} == {"pmu_reserve", "pmu_release"}
    assert half["pmu_reserve"] == (0, 8_450_000, 19_005)
    assert half["pmu_release"] == (985_000, 0, 0)


def test_basic_operations_add_up_to_what_the_rfc_measured():
    costs = load_profile(E5).costs

    def total(*names: str):
        return sum(costs[name].centre_ns for name in names)

    # RFC table 1: kvm_pmu_rdpmc and the gp and fixed rows.
    assert total("rdpmc_intercept", "perf_event_read", "hw_rdpmc") == 200
    assert 0.9 * 25_000 < total("perf_event_create") < 25_000
    assert 0.9 * 30_000 < total("perf_event_release") < 30_000
    assert 0.99 * 2_000_000 < total("pmu_release", "perf_event_release") < 2_010_000


def test_calibration_is_a_declared_list():
    calibrated = load_profile(E5).calibrated
    assert {"cost.pmu_reserve", "cost.pmu_reserve.sigma"} <= set(calibrated)
    assert "cost.guest_switch" not in calibrated
    assert all("table" in row for row in calibrated.values())


def test_a_users_file_is_loaded_by_its_path(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(E5_TEXT.replace(f'name = "{E5}"', 'name = "mine"'))
    profile = load_profile(str(path))
    assert (profile.name, profile.costs["host_irq"].sigma) == ("mine", Fraction(1, 5))


def test_an_unknown_profile_is_named_with_the_nearest():
    with pytest.raises(UserError) as caught:
        load_profile("e5-2699v4-linux-5.1")
    expected = f'unknown profile "e5-2699v4-linux-5.1"; did you mean "{E5}"? (known: {E5})'
    assert str(caught.value) == expected


EXIT = "[cost.exit]\nns = 400\n"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("ns = 400\n", "ns = -1\n", "key cost.exit.ns: must not be negative, found -1"),
        ("median_ns = 11_000", "median_ns = -5",
         "key cost.host_irq.median_ns: must not be negative, found -5"),
        ("ns = 400\n", "ns = 4294967296\n",
         "key cost.exit.ns: must be from 0 to 4294967295, found 4294967296"),
        ("ns = 400\n", "ns = 0.5\n", "key cost.exit.ns: expected an integer, found 0.5"),
        ("ns = 400\n", "", 'key cost.exit: needs "ns", "median_ns" or both'),
        ("ns = 400\n", "ns = 400\nsigma = 0.1\n",
         'key cost.exit.sigma: only a cost with "median_ns" has a spread'),
        ("sigma = 0.2\n", "sigma = -0.2\n", "key cost.host_irq.sigma: must be from 0 to 2"),
        ("ns = 400\n", "nss = 400\n", 'key cost.exit.nss: unknown key "nss"; did you mean "ns"?'
         " (known: ns, median_ns, sigma, source, calibration, sigma_source, sigma_calibration)"),
        ("ns = 400\n", 'ns = 400\ncalibration = "x"\n', 'key cost.exit: needs exactly one of "source" and'
         ' "calibration"'),
        ('sigma_source = "', 'sigma_calibration = "x"\nsigma_source = "', 'key cost.host_irq: has at most one'
         ' of "sigma_source" and "sigma_calibration"'),
        ("[cost.exit]", "[cost.exits]", 'key cost.exits: unknown cost "exits"; did you mean "exit"?'
         " (known: entry, exit, guest_irq_entry, guest_pmi, guest_switch, guest_tick, guest_wakeup,"
         " halt_wake, host_irq, hw_lvt, hw_rdmsr, hw_rdpmc, and 15 more)"),
        ("[cost.inject]", "[cost.inject2]", 'key cost.inject2: unknown cost "inject2"; did you mean "inject"?'
         " (known: entry, exit, guest_irq_entry, guest_pmi, guest_switch, guest_tick, guest_wakeup,"
         " halt_wake, host_irq, hw_lvt, hw_rdmsr, hw_rdpmc, and 15 more)"),
        ("version = 1", "version = 9", "key version: profile version 9 is not supported (known: 1)"),
        ("tsc_khz = 2_200_000", "tsc_khz = 0", "key cpu.tsc_khz: must be from 1 to 4294967296, found 0"),
        ("gp_counters_ht = 4", "gp_counters_ht = 9", "key cpu.gp_counters_ht: must be from 1 to 8, found 9"),
        ('rate = "10/s"', 'rate = "10"', 'key interrupts.rate: no unit in rate "10" (units: /s, /min)'),
        ("[host]\nhz = 1000\n", "", "key host: missing"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_profile_is_one_line_with_its_key(tmp_path: Path, old: str, new: str, line: str):
    assert old in E5_TEXT
    path = tmp_path / "bad.toml"
    path.write_text(E5_TEXT.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_profile(str(path))
    assert str(caught.value) == f"{path}: {line}"


def test_a_missing_cost_is_named(tmp_path: Path):
    path = tmp_path / "bad.toml"
    start = E5_TEXT.index("[cost.halt_wake]")
    path.write_text(E5_TEXT[:start] + E5_TEXT[E5_TEXT.index("# Hardware accesses") :])
    with pytest.raises(UserError) as caught:
        load_profile(str(path))
    assert str(caught.value) == f"{path}: key cost.halt_wake: missing"
