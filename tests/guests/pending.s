# A PMI by vector waits for STI, and for the instruction behind it; the priority can hold it back, too.
.include "runtime.inc"
    begin
    gate 0x40, handler
    lvtpc 0x40
    write EVENTSEL0, INSTRUCTIONS | OS | INT | EN
    write PMC0, 0xFFFFFF9C                      # -100
    write CTRL, 1
    mov $200, %ecx
1:  nop
    loop 1b
    write CTRL, 0
    mov RESULTS, %rax
    keep 1                                      # 0: interrupts are off
    mov $8, %eax
    mov %rax, %cr8                              # vectors below 0x90 wait
    sti
    nop
    nop
    cli
    mov RESULTS, %rax
    keep 2                                      # 0: the priority holds it back
    xor %eax, %eax
    mov %rax, %cr8
    sti
    mov RESULTS, %rbx                           # in the shadow of STI: 0
    mov RESULTS, %rax                           # 1
    cli
    keep 3, %rbx
    keep 4
    finish
handler:
    incq RESULTS
    pushfq
    popq RESULTS + 40                           # the gate has switched interrupts off
    apic 0xB0, $0
    iretq
