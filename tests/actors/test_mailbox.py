import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from vpmu.actors.mailbox import Mailboxes, UnknownAddress
from vpmu.actors.messages import ActorKind, Address, Message, host_perf, observer, physical_cpu, vcpu, vm


@given(st.sampled_from(ActorKind), st.integers(0, 2**28 - 1))
def test_an_address_comes_back_from_its_number(kind: ActorKind, index: int):
    address = Address(kind, index)
    assert Address.from_number(address.number) == address
    assert 0 < address.number < 2**32


@pytest.mark.parametrize("index", [-1, 2**28])
def test_an_index_that_does_not_fit_is_named(index: int):
    with pytest.raises(ValueError, match=f"actor index {index}"):
        vcpu(index)


def test_numbers_of_no_kind_are_no_addresses():
    with pytest.raises(ValueError, match="0 is not a valid ActorKind"):
        Address.from_number(5)


def test_the_kinds_have_their_names():
    names = [str(make(7)) for make in (host_perf, physical_cpu, vcpu, vm, observer)]
    assert names == ["host_perf 7", "physical_cpu 7", "vcpu 7", "vm 7", "observer 7"]


async def test_an_actor_reads_its_mailbox_until_it_is_closed(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
):
    mailboxes = Mailboxes()
    inbox = mailboxes.open(vcpu(1), 2)
    heard = []

    async def actor():
        async with inbox:
            heard.extend([message.at_ns async for message in inbox])

    with trio.fail_after(1):
        nursery.start_soon(actor)
        for at_ns in range(5):  # more than the mailbox holds: the sender waits
            await mailboxes.send(vcpu(1), Message(physical_cpu(0), at_ns))
        mailboxes.close(vcpu(1))
    await trio.testing.wait_all_tasks_blocked()
    assert heard == [0, 1, 2, 3, 4]
    assert not mailboxes.is_local(vcpu(1))


def test_a_full_mailbox_does_not_take_more():
    mailboxes = Mailboxes()
    inbox = mailboxes.open(vcpu(0), 1)
    mailboxes.send_nowait(vcpu(0), Message(vm(0), 1))
    with pytest.raises(trio.WouldBlock):
        mailboxes.send_nowait(vcpu(0), Message(vm(0), 2))
    assert inbox.receive_nowait().at_ns == 1
    with pytest.raises(trio.WouldBlock):
        inbox.receive_nowait()
    mailboxes.close_all()
    with pytest.raises(trio.EndOfChannel):
        inbox.receive_nowait()


async def test_what_is_not_here_goes_out_and_the_sender_cannot_tell(autojump_clock: trio.testing.MockClock):
    sent = []
    mailboxes = Mailboxes(lambda address, message: sent.append((address, message)))
    inbox = mailboxes.open(vcpu(0), 1)
    here, there = Message(vm(0), 1), Message(vm(0), 2)
    mailboxes.send_nowait(vcpu(0), here)
    mailboxes.send_nowait(vcpu(1), there)
    await mailboxes.send(host_perf(0), there)
    assert inbox.receive_nowait() is here
    assert sent == [(vcpu(1), there), (host_perf(0), there)]


async def test_nobody_is_named(autojump_clock: trio.testing.MockClock):
    mailboxes = Mailboxes()
    with pytest.raises(UnknownAddress, match="vcpu 3 has no mailbox"):
        mailboxes.send_nowait(vcpu(3), Message(vm(0), 0))
    with pytest.raises(UnknownAddress, match="vcpu 3 has no mailbox"):
        await mailboxes.send(vcpu(3), Message(vm(0), 0))
    with pytest.raises(UnknownAddress, match="vcpu 3 has no mailbox"):
        mailboxes.close(vcpu(3))
    mailboxes.open(vcpu(3), 1)
    with pytest.raises(ValueError, match="vcpu 3 has a mailbox already"):
        mailboxes.open(vcpu(3), 1)
