# A bare-metal `perf stat`: two functions are measured, and what they took is printed.
.include "runtime.inc"
.macro measure name, function
    write FIXED0, 0
    write FIXED0 + 1, 0
    write PMC0, 0
    mov $CTRL, %ecx
    mov $1, %eax
    mov $3, %edx
    wrmsr
    call \function
    mov $CTRL, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    lea \name(%rip), %rsi
    call print
    read FIXED0
    call print_number
    lea instructions(%rip), %rsi
    call print
    read PMC0
    call print_number
    lea branches(%rip), %rsi
    call print
    read FIXED0 + 1
    call print_number
    lea cycles(%rip), %rsi
    call print
.endm
    begin
    write EVENTSEL0, BRANCHES | OS | EN
    write FIXED_CTRL, 0x11
    measure sum_name, sum
    measure walk_name, walk
    finish
sum:
    mov $20000, %ecx
1:  add %rcx, %rax
    xor %rax, %rbx
    loop 1b
    ret
walk:
    mov $5000, %ecx
    mov $0x300000, %esi
1:  mov (%rsi), %rax
    add $64, %rsi
    test $1, %cl
    jz 2f
    nop
2:  loop 1b
    ret
.include "print.inc"
sum_name: .asciz "sum:"
walk_name: .asciz "walk:"
instructions: .asciz " instructions,"
branches: .asciz " branches,"
cycles: .asciz " cycles\n"
