# Code at CPL 3: counters by level, SYSCALL and INT back to CPL 0, a page that is not the user's.
.include "runtime.inc"
.set USER_STACK, 0x240000
.set GDT, 0x250000
.set TSS, 0x251000
    begin
    # GDT: 0x08 code, 0x10 data, 0x18 user data, 0x20 user code, 0x28 TSS
    lea descriptors(%rip), %rsi
    mov $GDT, %edi
    mov $7, %ecx
    rep movsq
    sub $16, %rsp
    movw $0x37, (%rsp)
    movq $GDT, 2(%rsp)
    lgdt (%rsp)
    add $16, %rsp
    movq $STACK - 0x1000, TSS + 4               # RSP0
    mov $0x28, %eax
    ltr %ax
    # the first 4 MB are the user's, too
    orq $4, 0x2000
    orq $4, 0x3000
    orq $4, 0x4000
    orq $4, 0x4008
    mov %cr3, %rax
    mov %rax, %cr3
    gate 0x50, back, 3
    gate 14, fault
    mov $0xC0000080, %ecx                       # EFER.SCE
    rdmsr
    or $1, %eax
    wrmsr
    mov $0xC0000081, %ecx                       # STAR: SYSCALL to 0x08, SYSRET to 0x10 + 8 and + 16
    xor %eax, %eax
    mov $0x00100008, %edx
    wrmsr
    mov $0xC0000082, %ecx                       # LSTAR
    lea system_call(%rip), %rax
    mov %rax, %rdx
    shr $32, %rdx
    wrmsr
    mov $0xC0000084, %ecx                       # FMASK
    mov $0x200, %eax
    xor %edx, %edx
    wrmsr
    write EVENTSEL0, INSTRUCTIONS | USR | EN
    write EVENTSEL0 + 1, INSTRUCTIONS | OS | EN
    write EVENTSEL0 + 2, BRANCHES | USR | EN
    write CTRL, 7
    pushq $0x1B
    pushq $USER_STACK
    pushq $0x202
    pushq $0x23
    lea user(%rip), %rax
    push %rax
    iretq
user:
    mov $100, %ecx                              # 1
1:  nop
    loop 1b                                     # 200, 100 branches
    syscall                                     # 1, a branch
    mov %cs, %eax                               # 1
    mov %eax, RESULTS + 24                      # 1
    movabs $0x600000, %rbx                      # 1
    mov (%rbx), %rax                            # does not retire: the page is not the user's
    nop                                         # 1
    int $0x50                                   # 1, a branch
system_call:
    mov %rcx, RESULTS + 32
    mov %cs, %ebx
    mov %ebx, RESULTS + 40
    sysretq
fault:
    mov (%rsp), %rax
    keep 6                                      # error code: present, user
    mov %cr2, %rax
    keep 7
    addq $3, 8(%rsp)
    add $8, %rsp
    iretq
back:
    mov $CTRL, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    keep_msr 0, PMC0
    keep_msr 1, PMC0 + 1
    keep_msr 2, PMC0 + 2
    mov %rsp, %rax
    keep 8
    mov 24(%rsp), %rax
    keep 9
    finish
.balign 8
descriptors:
    .quad 0, 0x00AF9B000000FFFF
    .quad 0x00CF93000000FFFF, 0x00CFF3000000FFFF
    .quad 0x00AFFB000000FFFF, 0x0000890000000067 | (TSS & 0xFFFFFF) << 16
    .quad 0
