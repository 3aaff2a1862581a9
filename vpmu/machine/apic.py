"""The local APIC (SDM vol. 3, 10): registers, priorities, timer. Its LVT entry for the PMU is the host's.

xAPIC page and x2APIC MSRs are two ways to one set of registers, named by the offset in the page.
"""

from vpmu.machine.processor import GuestFault

ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT_TIMER, LVT_THERMAL, LVTPC, LVT_LINT0, LVT_LINT1, LVT_ERROR = 0x320, 0x330, 0x340, 0x350, 0x360, 0x370
INITIAL_COUNT, CURRENT_COUNT, DIVIDE, SELF_IPI = 0x380, 0x390, 0x3E0, 0x3F0

_PLAIN = {TPR: 0xFF, LDR: 0xFF000000, DFR: 0xF0000000, SVR: 0x1FF, LVT_THERMAL: 0x107FF, LVT_LINT0: 0x1A7FF,
          LVT_LINT1: 0x1A7FF, LVT_ERROR: 0x100FF, LVT_TIMER: 0x700FF, DIVIDE: 0xB,
          ICR_HIGH: 0xFF000000}  # fmt: skip
"""Registers that keep what is written, with the bits that can be written."""

_READ_ONLY = (ID, VERSION, PPR, CURRENT_COUNT)
_MASKED = 1 << 16
_PERIODIC = 1 << 17
_VERSION = 0x50014
_FIXED, _NMI = 0, 4
_SELF, _ALL_SELF = 1, 2
TIMER_KHZ = 1_000_000
"""The timer's clock before it is divided: 1 GHz, a count is a nanosecond."""

NEVER = 1 << 62


class Apic:
    """One processor's local APIC.

    It owns what waits for the processor: vectors requested and in service, and an NMI. Time is told to it.
    """

    def __init__(self, identity: int = 0) -> None:
        self.identity = identity
        self.x2apic = False
        self.nmi_pending = False
        self.requested = 0
        self.in_service = 0
        self.timer_at_ns = NEVER
        self._period_ns = 0
        self._initial = 0
        self.registers = dict.fromkeys(_PLAIN, 0)
        self.registers[SVR] = 0xFF
        self.registers[DFR] = 0xF0000000
        for register in (LVT_TIMER, LVT_THERMAL, LVT_LINT0, LVT_LINT1, LVT_ERROR):
            self.registers[register] = _MASKED

    # -- registers --

    def read(self, register: int, now_ns: int) -> int:
        """Return a register's value.

        Raises
        ------
        GuestFault
            In x2APIC mode, there is no such register.
        """
        if register in self.registers:
            return self.registers[register]
        if register == ID:
            return self.identity if self.x2apic else self.identity << 24
        if register == VERSION:
            return _VERSION
        if register == PPR:
            return self.priority
        for first, bits in ((ISR, self.in_service), (TMR, 0), (IRR, self.requested)):
            if first <= register < first + 0x80:
                return bits >> (register - first) // 0x10 * 32 & 0xFFFFFFFF
        if register == INITIAL_COUNT:
            return self._initial
        if register == CURRENT_COUNT:
            return self._current(now_ns)
        if register in (ESR, ICR):
            return 0
        return self._unknown(register)

    def write(self, register: int, value: int, now_ns: int) -> None:
        """Write a register; see `read`."""
        if register in _PLAIN:
            self.registers[register] = value & _PLAIN[register]
        elif register == EOI:
            self._end_of_interrupt()
        elif register == ICR:
            self._send(value)
        elif register == SELF_IPI and self.x2apic:
            self.request(value & 0xFF)
        elif register == INITIAL_COUNT:
            self._start_timer(value & 0xFFFFFFFF, now_ns)
        elif register not in (ESR, *_READ_ONLY):
            self._unknown(register)

    def _unknown(self, register: int) -> int:
        if self.x2apic:
            raise GuestFault(13, 0)
        return 0

    # -- what waits --

    @property
    def priority(self) -> int:
        """The processor's priority (PPR)."""
        serving = (self.in_service.bit_length() - 1 if self.in_service else 0) & 0xF0
        tpr = self.registers[TPR]
        return tpr if tpr & 0xF0 >= serving else serving

    @property
    def vector(self) -> int | None:
        """The vector that would be delivered now, None if there is none above the processor's priority."""
        if not self.requested:
            return None
        highest = self.requested.bit_length() - 1
        return highest if highest & 0xF0 > self.priority & 0xF0 else None

    def request(self, vector: int) -> None:
        """Request a fixed interrupt; vectors below 16 are not (SDM 10.5.2)."""
        if vector >= 16 and self.registers[SVR] & 0x100:
            self.requested |= 1 << vector

    def accept_local(self, lvt: int) -> None:
        """Take a local interrupt with the LVT word that it is delivered by."""
        mode = lvt >> 8 & 7
        if mode == _NMI:
            self.nmi_pending = True
        elif mode == _FIXED:
            self.request(lvt & 0xFF)

    def acknowledge(self, vector: int) -> None:
        """Book that the processor has taken a vector."""
        self.requested &= ~(1 << vector)
        self.in_service |= 1 << vector

    def _end_of_interrupt(self) -> None:
        if self.in_service:
            self.in_service &= ~(1 << self.in_service.bit_length() - 1)

    def _send(self, value: int) -> None:
        """Send an interrupt to oneself; nobody else is there to take another."""
        shorthand, mode = value >> 18 & 3, value >> 8 & 7
        destination = value >> 32 if self.x2apic else self.registers[ICR_HIGH] >> 24
        if shorthand in (_SELF, _ALL_SELF) or (
            shorthand == 0 and destination in (self.identity, 0xFF, 0xFFFFFFFF)
        ):
            self.accept_local(mode << 8 | value & 0xFF)

    # -- timer --

    @property
    def _divisor(self) -> int:
        code = self.registers[DIVIDE]
        power = (code >> 1 & 4) | code & 3
        return 1 if power == 7 else 2 << power

    def _start_timer(self, count: int, now_ns: int) -> None:
        self._initial = count
        self._period_ns = count * self._divisor
        self.timer_at_ns = now_ns + self._period_ns if count else NEVER

    def _current(self, now_ns: int) -> int:
        if self.timer_at_ns == NEVER:
            return 0
        return max(self.timer_at_ns - now_ns, 0) // self._divisor

    def advance(self, now_ns: int) -> None:
        """Let the timer request its interrupt if it has run down."""
        if now_ns < self.timer_at_ns:
            return
        lvt = self.registers[LVT_TIMER]
        if not lvt & _MASKED:
            self.request(lvt & 0xFF)
        if lvt & _PERIODIC and self._period_ns:
            missed = (now_ns - self.timer_at_ns) // self._period_ns
            self.timer_at_ns += (missed + 1) * self._period_ns
        else:
            self.timer_at_ns = NEVER
