"""Machine guests: a small x86-64 machine around Unicorn, whose PMU is a vCPU of a host in the emulator.

`vpmu.machine.machine.Machine` is the guest, `vpmu.machine.command` what ``vpmu guest`` does. Unicorn and
Capstone come with the extra ``vpmu[machine]`` and are imported in this room only.
"""

from vpmu.errors import UserError


def require_extra() -> None:
    """Raise UserError if a package is missing that machine guests need."""
    try:
        import capstone  # noqa: F401
        import unicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"a machine guest needs {error.name}: pip install 'vpmu[machine]'") from None
