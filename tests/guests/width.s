# 32-bit writes are sign-extended, full-width writes are not and fault above the width.
.include "runtime.inc"
    begin
    gate 13, handler
    write PMC0, 0x89ABCDEF
    keep_msr 0, PMC0
    write FULL0, 0x123456789ABC
    keep_msr 1, PMC0
    keep_msr 2, FULL0
    mov $FULL0, %ecx
    xor %eax, %eax
    mov $0x10000, %edx                          # bit 48
    wrmsr
    keep 3, %r15
    write FIXED0, 0xBA9876543210
    keep_msr 4, FIXED0
    finish
handler:
    inc %r15
    addq $2, 8(%rsp)
    add $8, %rsp
    iretq
