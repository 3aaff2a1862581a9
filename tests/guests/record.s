# A bare-metal `perf record`: a sample each 1,009 instructions, by NMI; RIP of the frame goes to a buffer, then to a histogram.
.include "runtime.inc"
.set BUFFER, 0x300000
.set PERIOD, 1009
    begin
    gate 2, handler
    mov $BUFFER, %r15d
    write FIXED_CTRL, 0x9
    write FIXED0, -PERIOD & 0xFFFFFFFFFFFF
    lvtpc 0x400
    mov $CTRL, %ecx
    xor %eax, %eax
    mov $1, %edx
    wrmsr
    mov $100, %r14d
1:  call heavy
    call light
    dec %r14d
    jnz 1b
    mov $CTRL, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    # the histogram: heavy, light, elsewhere
    xor %r8d, %r8d
    xor %r9d, %r9d
    xor %r10d, %r10d
    mov $BUFFER, %esi
    lea heavy(%rip), %rbx
    lea light(%rip), %rbp
    lea after(%rip), %rdi
1:  cmp %r15, %rsi
    jae 5f
    lodsq
    cmp %rdi, %rax
    jae 4f
    cmp %rbp, %rax
    jae 3f
    cmp %rbx, %rax
    jae 2f
4:  inc %r10
    jmp 1b
3:  inc %r9
    jmp 1b
2:  inc %r8
    jmp 1b
5:  keep 0, %r8
    keep 1, %r9
    keep 2, %r10
    lea heavy_name(%rip), %rsi
    call print
    mov %r8, %rax
    call print_number
    lea light_name(%rip), %rsi
    call print
    mov %r9, %rax
    call print_number
    lea other_name(%rip), %rsi
    call print
    mov %r10, %rax
    call print_number
    lea end_of_line(%rip), %rsi
    call print
    finish
heavy:
    mov $900, %ecx
1:  add %rcx, %rax
    xor %rax, %rbx
    loop 1b
    ret
light:
    mov $300, %ecx
1:  add %rcx, %rax
    xor %rax, %rbx
    loop 1b
    ret
after:
handler:
    push %rax
    push %rcx
    push %rdx
    write CTRL, 0
    mov 24(%rsp), %rax
    mov %rax, (%r15)
    add $8, %r15
    write OVF_CTRL, 1 << 32
    write FIXED0, -PERIOD & 0xFFFFFFFFFFFF
    lvtpc 0x400
    mov $CTRL, %ecx
    xor %eax, %eax
    mov $1, %edx
    wrmsr
    pop %rdx
    pop %rcx
    pop %rax
    iretq
.include "print.inc"
heavy_name: .asciz "heavy"
light_name: .asciz ", light"
other_name: .asciz ", elsewhere"
end_of_line: .asciz "\n"
