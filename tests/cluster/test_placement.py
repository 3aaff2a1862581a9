from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vpmu.actors.messages import ActorKind, host_perf, physical_cpu, vcpu
from vpmu.cluster.placement import HostActors, place


@st.composite
def host_lists(draw: st.DrawFn):
    hosts, next_cpu, next_vcpu = [], 0, 0
    for host in range(draw(st.integers(1, 5))):
        cpus = range(next_cpu, next_cpu + draw(st.integers(1, 9)))
        vcpus = range(next_vcpu, next_vcpu + draw(st.integers(0, 12)))
        pinned = {guest: draw(st.sampled_from(cpus)) for guest in vcpus if draw(st.booleans())}
        hosts.append(HostActors(host, cpus, vcpus, pinned, str(host)))
        next_cpu, next_vcpu = cpus.stop, vcpus.stop
    return hosts


def addresses(hosts: list[HostActors]):
    for host in hosts:
        yield host_perf(host.host)
        yield from map(physical_cpu, host.physical_cpus)
        yield from map(vcpu, host.vcpus)


@given(host_lists(), st.integers(1, 12), st.sampled_from(["packed", "spread", "split:2", "random:7"]))
def test_every_actor_is_placed_once_and_always_alike(hosts: list[HostActors], nr_workers: int, policy: str):
    assume(policy != "split:2" or len(hosts) > 2)
    placement = place(nr_workers, policy, hosts)

    assert set(placement.rank_of) == set(addresses(hosts))
    assert set(placement.rank_of.values()) <= set(range(nr_workers))
    by_rank = [address for rank in range(nr_workers) for address in placement.actors_of(rank)]
    assert sorted(by_rank) == sorted(placement.rank_of)
    assert place(nr_workers, policy, hosts) == placement


@given(host_lists(), st.integers(1, 12))
def test_packed_keeps_hosts_whole_and_pinned_vcpus_beside_their_cpu(hosts: list[HostActors], nr_workers: int):
    rank_of = place(nr_workers, "packed", hosts).rank_of
    for host in hosts:
        ranks = {rank_of[address] for address in addresses([host])}
        if nr_workers <= len(hosts):
            assert len(ranks) == 1
        for guest, cpu in host.pinned.items():
            assert rank_of[vcpu(guest)] == rank_of[physical_cpu(cpu)]
    if nr_workers <= len(hosts):
        assert set(rank_of.values()) == set(range(nr_workers))


@given(st.integers(1, 20), st.integers(1, 8))
def test_packed_splits_one_host_evenly(nr_cpus: int, nr_workers: int):
    rank_of = place(nr_workers, "packed", [HostActors(0, range(nr_cpus))]).rank_of
    loads = Counter(rank for address, rank in rank_of.items() if address.kind == ActorKind.PHYSICAL_CPU)
    per_rank = [loads[rank] for rank in range(nr_workers)]
    assert max(per_rank) - min(per_rank) <= 1


@given(host_lists(), st.integers(3, 12))
def test_spread_keeps_the_roles_apart(hosts: list[HostActors], nr_workers: int):
    placement = place(nr_workers, "spread", hosts)
    for rank in range(nr_workers):
        assert len({address.kind for address in placement.actors_of(rank)}) <= 1


def test_split_divides_one_host_over_all_and_leaves_the_others_whole():
    hosts = [HostActors(host, range(4 * host, 4 * host + 4), name=f"h{host}") for host in range(3)]
    rank_of = place(2, "split:h1", hosts).rank_of
    ranks = [[rank_of[physical_cpu(cpu)] for cpu in host.physical_cpus] for host in hosts]
    assert ranks == [[0] * 4, [0, 0, 1, 1], [1] * 4]


@given(host_lists(), st.integers(1, 12), st.integers(0, 2**64 - 1))
def test_random_keeps_pinned_vcpus_beside_their_cpu_and_perf_beside_some_cpu(
    hosts: list[HostActors], nr_workers: int, seed: int
):
    rank_of = place(nr_workers, f"random:{seed}", hosts).rank_of
    for host in hosts:
        assert rank_of[host_perf(host.host)] in {rank_of[physical_cpu(cpu)] for cpu in host.physical_cpus}
        for guest, cpu in host.pinned.items():
            assert rank_of[vcpu(guest)] == rank_of[physical_cpu(cpu)]


def test_random_draws_differ_by_seed_and_scatter_about_half_of_the_hosts():
    hosts = [HostActors(host, range(8 * host, 8 * host + 8)) for host in range(100)]
    first, second = (place(4, f"random:{seed}", hosts).rank_of for seed in (1, 2))
    assert first != second
    scattered = sum(len({first[physical_cpu(cpu)] for cpu in host.physical_cpus}) > 1 for host in hosts)
    # 100 draws of a half: 50, standard deviation 5.
    assert 30 <= scattered <= 70


def test_spread_over_fewer_workers_than_roles_goes_round_robin():
    rank_of = place(2, "spread", [HostActors(0, [0, 1], [0, 1, 2])]).rank_of
    assert {rank_of[physical_cpu(0)], rank_of[vcpu(2)]} == {0}
    assert rank_of[host_perf(0)] == 1


def test_spread_over_more_workers_divides_cpus_and_vcpus():
    # Six ranks: three for the physical CPUs, one for host perf, two for the vCPUs.
    rank_of = place(6, "spread", [HostActors(0, range(6), range(4))]).rank_of
    assert [rank_of[physical_cpu(cpu)] for cpu in range(6)] == [0, 0, 1, 1, 2, 2]
    assert rank_of[host_perf(0)] == 3
    assert [rank_of[vcpu(guest)] for guest in range(4)] == [4, 4, 5, 5]


@pytest.mark.parametrize(
    ("nr_workers", "policy", "hosts", "message"),
    [
        (0, "packed", [HostActors(0, [0])], "nr_workers is 0"),
        (1, "scattered", [HostActors(0, [0])], "expected one of packed, spread"),
        (1, "random:x", [HostActors(0, [0])], "not a whole number"),
        (1, "split:b", [HostActors(0, [0], name="a")], "unknown host"),
        (1, "packed", [HostActors(0, [0]), HostActors(1, [0])], "physical_cpu 0 appears twice"),
        (1, "packed", [HostActors(0, [0], [0], {0: 7})], "pinned to physical_cpu 7"),
    ],
)
def test_nonsense_is_named(nr_workers: int, policy: str, hosts: list[HostActors], message: str):
    with pytest.raises(ValueError, match=message):
        place(nr_workers, policy, hosts)
