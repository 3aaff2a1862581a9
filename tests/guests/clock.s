# RDTSC reads virtual time: the reference cycles of fixed counter 2 advance with it.
.include "runtime.inc"
    begin
    write FIXED_CTRL, 0x300
    mov $CTRL, %ecx
    xor %eax, %eax
    mov $4, %edx
    wrmsr
    rdtsc
    shl $32, %rdx
    lea (%rdx,%rax), %rbx
    mov $100000, %ecx
1:  nop
    nop
    loop 1b
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    sub %rbx, %rax
    keep 0
    mov $CTRL, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    keep_msr 1, FIXED0 + 2
    finish
