# HLT: woken by the APIC's timer; a PMI that is pending wakes it at once.
.include "runtime.inc"
    begin
    gate 0x30, timer
    gate 0x40, pmi
    apic 0x3E0, $0xB                     # divide by 1
    apic 0x320, $0x30
    apic 0x380, $1000000                 # 1 ms
    rdtsc
    shl $32, %rdx
    lea (%rdx,%rax), %rbx
    sti
    hlt
    cli
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    sub %rbx, %rax
    keep 2
    lvtpc 0x40
    write EVENTSEL0, INSTRUCTIONS | OS | INT | EN
    write PMC0, 0xFFFFFFF6                      # -10
    write CTRL, 1
    mov $20, %ecx
1:  nop
    loop 1b
    write CTRL, 0
    sti
    hlt
    finish
timer:
    incq RESULTS
    apic 0xB0, $0
    iretq
pmi:
    incq RESULTS + 8
    apic 0xB0, $0
    iretq
