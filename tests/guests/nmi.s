# A PMI as NMI comes with interrupts off; a second NMI waits for IRET.
.include "runtime.inc"
    begin
    gate 2, handler
    lvtpc 0x400
    write EVENTSEL0, INSTRUCTIONS | OS | INT | EN
    write PMC0, 0xFFFFFF9C                      # -100
    write CTRL, 1
    mov $200, %ecx
1:  nop
    loop 1b
    write CTRL, 0
    finish
handler:
    incq RESULTS
    cmpq $1, RESULTS
    jne 2f
    apic 0x300, $0x44400                 # an NMI to itself
    mov RESULTS, %rax
    keep 1                                      # still 1: blocked
2:  iretq
