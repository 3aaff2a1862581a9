# Instructions and branches around a loop are exact: one of the two WRMSRs counts.
.include "runtime.inc"
    begin
    write EVENTSEL0, INSTRUCTIONS | OS | EN
    write EVENTSEL0 + 1, BRANCHES | OS | EN
    mov $CTRL, %ecx
    mov $3, %eax
    xor %edx, %edx
    wrmsr
    mov $1000, %ecx
1:  nop
    add %rcx, %rbx
    loop 1b
    mov $CTRL, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    keep_msr 0, PMC0
    keep_msr 1, PMC0 + 1
    finish
