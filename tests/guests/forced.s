# The forced-emulation prefix: the instruction behind it is the hypervisor's; it counts once, as it would otherwise.
.include "runtime.inc"
.macro forced
    ud2
    .ascii "kvm"
.endm
    begin
    gate 6, undefined
    write EVENTSEL0, INSTRUCTIONS | OS | EN
    write EVENTSEL0 + 1, BRANCHES | OS | EN
    write CTRL, 3
    xor %ebx, %ebx                              # 1
    forced
    inc %rbx                                    # 2
    forced
    jnz 1f                                      # 3, taken
    inc %rbx
1:  forced
    jz 2f                                       # 4, not taken
    inc %rbx                                    # 5
2:  mov $CTRL, %ecx                             # 6 to 8, and the first WRMSR
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    keep_msr 0, PMC0
    keep_msr 1, PMC0 + 1
    keep 2, %rbx
    ud2                                         # without the prefix's bytes: an exception
back:
    keep 3, %r15
    finish
undefined:
    inc %r15
    lea back(%rip), %rax
    mov %rax, (%rsp)
    iretq
