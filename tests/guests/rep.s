# A string instruction counts once, however often it goes round, even if a PMI breaks it off.
.include "runtime.inc"
    begin
    gate 0x40, handler
    write EVENTSEL0, INSTRUCTIONS | OS | EN
    write CTRL, 1
    mov $0x300000, %edi                         # 1
    mov $5000, %ecx                             # 2
    rep stosb                                   # 3
    xor %ecx, %ecx                              # 4
    rep stosb                                   # 5: no round at all
    mov $CTRL, %ecx                             # 6 to 8, and the first WRMSR
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    keep_msr 0, PMC0
    write PMC0, 0
    lvtpc 0x40
    write FIXED0 + 1, -300 & 0xFFFFFFFFFFFF     # cycles: the PMI comes within the string
    write FIXED_CTRL, 0x90
    sti
    mov $CTRL, %ecx
    mov $1, %eax
    mov $2, %edx
    wrmsr
    mov $0x300000, %edi
    mov $50000, %ecx
    rep stosb
    mov $CTRL, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    cli
    keep_msr 1, PMC0                            # 3 + 3 + 1, and the handler's 6
    keep 2, %r15
    keep 3, %rdi
    keep 4, %r14
    finish
handler:                                        # 6 instructions
    inc %r15
    mov %rcx, %r14                              # what was left to go
    apic 0xB0, $0
    nop
    iretq
