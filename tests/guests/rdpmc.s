# RDPMC by general-purpose and fixed index; an index that is not there, and bit 31, fault.
.include "runtime.inc"
    begin
    gate 13, handler
    write PMC0 + 1, 0x12345678
    write FIXED0, 0x9ABC
    mov $1, %ecx
    call rdpmc
    keep 0
    mov $0x40000000, %ecx
    call rdpmc
    keep 1
    mov $64, %ecx
    call rdpmc
    keep 2
    mov $0x80000001, %ecx
    call rdpmc
    keep 3
    keep 4, %r15
    finish
rdpmc:
    xor %eax, %eax
    xor %edx, %edx
fault:
    rdpmc
    shl $32, %rdx
    or %rdx, %rax
    ret
handler:
    inc %r15
    lea fault(%rip), %rax
    cmp %rax, 8(%rsp)                           # RIP stands at the instruction
    jne 1f
    cmpq $0, (%rsp)                             # the error code is 0
    jne 1f
    mov $0xFA17, %eax
    addq $2, 8(%rsp)
    add $8, %rsp
    iretq
1:  finish 2
