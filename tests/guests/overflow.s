# A counter overflows: status bit, one PMI by the LVTPC's vector, which is masked until it is written again.
.include "runtime.inc"
    begin
    gate 0x40, handler
    lvtpc 0x40
    write EVENTSEL0, INSTRUCTIONS | OS | INT | EN
    write PMC0, 0xFFFFFE0C                      # -500
    sti
    write CTRL, 1
    mov $1000, %ecx
1:  nop
    loop 1b
    write CTRL, 0
    keep_msr 1, PMC0
    keep_msr 2, STATUS
    write OVF_CTRL, 1
    keep_msr 3, STATUS
    write PMC0, 0xFFFFFE0C                      # again, with the LVTPC still masked
    write CTRL, 1
    mov $1000, %ecx
1:  nop
    loop 1b
    write CTRL, 0
    keep_msr 4, STATUS
    mov $APIC, %r11d
    mov 0x340(%r11), %eax
    keep 5
    finish
handler:
    push %rax
    incq RESULTS
    mov 8(%rsp), %rax                           # where the loop was
    keep 6
    apic 0xB0, $0
    pop %rax
    iretq
