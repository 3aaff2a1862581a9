"""Machine guests: a small x86-64 machine around Unicorn, whose PMU is a vCPU of a host in the emulator.

`vpmu.machine.machine.Machine` is the guest, `vpmu.machine.command` what ``vpmu guest`` does. Unicorn and
Capstone come with the extra ``vpmu[machine]`` and are imported in this room only.
"""
