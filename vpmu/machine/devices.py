"""What answers at the I/O ports: serial console, debug exit, firmware configuration, PICs."""

from collections.abc import Callable

SERIAL = 0x3F8
DEBUG_CONSOLE = 0xE9
EXIT = 0xF4
FW_CFG_SELECT, FW_CFG_DATA = 0x510, 0x511
PIC_MASKS = (0x21, 0xA1)

_LINE_CONTROL, _LINE_STATUS, _INTERRUPT_ID = 3, 5, 2
_DIVISOR_LATCH = 0x80
_EMPTY = 0x60
_NO_INTERRUPT = 1
_FW_SIGNATURE, _FW_RAM, _FW_CPUS, _FW_MAX_CPUS = 0x00, 0x03, 0x05, 0x0F


class Ports:
    """The I/O ports.

    Parameters
    ----------
    console
        Takes what the guest writes to its serial port.
    memory
        Bytes of RAM that the firmware configuration tells of.
    """

    def __init__(self, console: Callable[[bytes], None], memory: int) -> None:
        self.exit_value: int | None = None
        self._console = console
        self._serial = [0] * 8
        self._masks = dict.fromkeys(PIC_MASKS, 0xFF)
        self._item = b""
        self._items = {
            _FW_SIGNATURE: b"QEMU",
            _FW_RAM: memory.to_bytes(8, "little"),
            _FW_CPUS: b"\x01\x00",
            _FW_MAX_CPUS: b"\x01\x00",
        }

    def read(self, port: int, size: int) -> int:
        """Return what IN reads from a port, `size` bytes; where nothing answers, all ones."""
        if SERIAL <= port < SERIAL + 8:
            return self._read_serial(port - SERIAL)
        if port in self._masks:
            return self._masks[port]
        if port == FW_CFG_DATA:
            value, self._item = self._item[:1], self._item[1:]
            return value[0] if value else 0
        return (1 << 8 * size) - 1

    def write(self, port: int, size: int, value: int) -> None:
        """Take what OUT writes to a port; where nothing listens, it is lost."""
        if SERIAL <= port < SERIAL + 8:
            self._write_serial(port - SERIAL, value & 0xFF)
        elif port in self._masks:
            self._masks[port] = value & 0xFF
        elif port == FW_CFG_SELECT:
            self._item = self._items.get(value & 0xFFFF, b"")
        elif port == DEBUG_CONSOLE:
            self._console(bytes([value & 0xFF]))
        elif port == EXIT:
            self.exit_value = value

    def _read_serial(self, register: int) -> int:
        if register == _LINE_STATUS:
            return _EMPTY
        if register == _INTERRUPT_ID:
            return _NO_INTERRUPT
        if register == 0 and not self._serial[_LINE_CONTROL] & _DIVISOR_LATCH:
            return 0
        return self._serial[register]

    def _write_serial(self, register: int, value: int) -> None:
        if register == 0 and not self._serial[_LINE_CONTROL] & _DIVISOR_LATCH:
            self._console(bytes([value]))
        else:
            self._serial[register] = value
