/* A remote guest of vpmu in C, against libzmq: all of docs/protocol.md's section on guests that it takes.
 * `guest ENDPOINT VM` programs counters, retires, takes a PMI, reads, halts, and prints each answer in hex;
 * `guest ENDPOINT VM N` reads a counter N times and prints nothing. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire is little-endian, and this sends structures as they lie in memory"
#endif

enum { HELLO = 1, START, REPORT, CPUID, WELCOME = 0x81, GRANT, CPUID_IS, END, REFUSED };
enum { ACCESS = 1, HALT = 3, OVERFLOW, LIMIT, DONE }; /* why a stretch ends */
enum { RDMSR = 1, WRMSR, RDPMC };                     /* what an access is */
enum { CYCLES, INSTRUCTIONS, BRANCHES, NR_KINDS };    /* what retires */
enum { KERNEL = 1, USER };                            /* where */
enum { FAULT = 2, PMI = 4 };                          /* what a grant brings */

typedef unsigned __int128 u128;
struct header { char magic[4]; uint16_t version, kind; uint64_t sequence; };
struct entry { uint32_t kind, levels; uint64_t count; };
struct grant {
    struct header head;
    uint64_t now, limit, value, cost;
    uint32_t given, lvtpc, nr_watched, zero;
    struct entry watched[64];
};
struct report {
    struct header head;
    uint64_t end, timer, value;
    uint32_t msr, reason, operation, level, nr_retired, zero;
    struct entry retired[2 * NR_KINDS];
};
struct welcome {
    struct header head;
    uint32_t vcpu, intercepts;
    uint64_t core_khz, tsc_khz;
    uint32_t version, nr_gp, gp_width, nr_fixed, fixed_width, zero, leaf_0a[4];
    uint64_t perf_capabilities, until;
};
_Static_assert(offsetof(struct grant, watched) == 64 && offsetof(struct report, retired) == 64, "bodies");
_Static_assert(sizeof(struct header) == 16 && sizeof(struct welcome) == 96, "header, welcome");

static void *dealer;
static int is_quiet, in_handler, pmi_pending;
static uint64_t sequence, nr_pmis, now, credit; /* credit: time that is no cycle yet, ns * kHz */
static uint64_t retired[NR_KINDS][USER + 1];    /* since the grant */
static struct grant grant;
static struct welcome cpu;

/* Send a frame, whose header this fills in, print the answer, and keep it if it is the kind that is due. */
static void ask(void *frame, size_t size, int kind, int due)
{
    static union { struct header head; struct grant grant; struct welcome welcome; char bytes[4096]; } answer;
    struct header head = {{'v', 'P', 'M', 'G'}, 1, kind, sequence++};
    memcpy(frame, &head, sizeof head);
    int got = zmq_send(dealer, frame, size, 0) < 0 ? -1 : zmq_recv(dealer, &answer, sizeof answer, 0);
    for (int i = 0; !is_quiet && i < got; i++)
        printf("%02x%s", (unsigned char)answer.bytes[i], i == got - 1 ? "\n" : "");
    if (got < (int)sizeof head || answer.head.kind != due) {
        if (got >= 20 && answer.head.kind == REFUSED)
            fprintf(stderr, "refused: %.*s\n", got - 20, answer.bytes + 20);
        exit(got >= (int)sizeof head && answer.head.kind == END ? 0 : 1);
    }
    if (due == WELCOME)
        cpu = answer.welcome;
    if (due == GRANT) {
        memcpy(&grant, &answer, sizeof grant);
        now = grant.now;
        pmi_pending |= grant.given & PMI;
    }
}

/* Say what retired since the grant and why the stretch ends. */
static void report(int reason, int operation, uint32_t msr, uint64_t value, uint64_t timer)
{
    struct report r = {.end = now, .timer = timer, .value = value, .msr = msr, .reason = reason,
                       .operation = operation, .level = operation ? KERNEL : 0};
    for (int kind = 0; kind < NR_KINDS; kind++)
        for (int level = KERNEL; level <= USER; level++)
            if (retired[kind][level])
                r.retired[r.nr_retired++] = (struct entry){kind, level, retired[kind][level]};
    memset(retired, 0, sizeof retired);
    ask(&r, 64 + r.nr_retired * sizeof(struct entry), REPORT, reason == DONE ? END : GRANT);
}

static void handle_pmi(void);

static void deliver(void) /* the interrupt that a grant brought, unless its handler runs */
{
    for (; pmi_pending && !in_handler; in_handler = 0) {
        pmi_pending = 0, in_handler = 1, nr_pmis++;
        handle_pmi();
    }
}

static void go_on(void) /* have time to: at the limit, ask for more */
{
    for (; now >= grant.limit; deliver())
        report(LIMIT, 0, 0, 0, INT64_MAX);
}

/* How much of a total the steps up to one retire; the step that retires the n-th. */
static uint64_t upto(uint64_t total, uint64_t step, uint64_t steps) { return (u128)total * step / steps; }
static uint64_t step_of(uint64_t n, uint64_t total, uint64_t of) { return ((u128)n * of + total - 1) / total; }

/* Execute code that retires its totals evenly: in each of its steps each kind gets one event at most. */
static void execute(const uint64_t total[NR_KINDS], int level)
{
    uint64_t steps = 0, done = 0;
    for (int kind = 0; kind < NR_KINDS; kind++)
        steps = total[kind] > steps ? total[kind] : steps;
    while (done < steps) {
        go_on();
        uint64_t ns = grant.limit - now, step = steps, overflow = UINT64_MAX;
        if (total[CYCLES]) { /* how far the time reaches: to before the first cycle that is too many */
            uint64_t most = upto(total[CYCLES], done, steps) + (credit + ns * cpu.core_khz) / 1000000;
            step = most < total[CYCLES] ? step_of(most + 1, total[CYCLES], steps) - 1 : steps;
        }
        for (uint32_t i = 0; i < grant.nr_watched; i++) { /* where the first counter overflows */
            uint32_t kind = grant.watched[i].kind, levels = grant.watched[i].levels;
            if (!grant.watched[i].count || !(levels & level) || kind >= NR_KINDS)
                continue;
            uint64_t since = (levels & 1 ? retired[kind][1] : 0) + (levels & 2 ? retired[kind][2] : 0);
            uint64_t wanted = upto(total[kind], done, steps) + grant.watched[i].count - since;
            if (wanted <= total[kind] && step_of(wanted, total[kind], steps) < overflow)
                overflow = step_of(wanted, total[kind], steps);
        }
        step = overflow < step ? overflow : step;
        uint64_t due = (upto(total[CYCLES], step, steps) - upto(total[CYCLES], done, steps)) * 1000000;
        if (step == overflow || step == steps)
            ns = due > credit ? (due - credit + cpu.core_khz - 1) / cpu.core_khz : 0;
        credit += ns * cpu.core_khz - due;
        now += ns;
        for (int kind = 0; kind < NR_KINDS; kind++)
            retired[kind][level] += upto(total[kind], step, steps) - upto(total[kind], done, steps);
        done = step;
        if (step == overflow) {
            report(OVERFLOW, 0, 0, 0, INT64_MAX);
            deliver();
        }
    }
}

static uint64_t access_to(int operation, uint32_t msr, uint64_t value)
{
    go_on();
    report(ACCESS, operation, msr, value, INT64_MAX);
    value = grant.value;
    if (!cpu.intercepts && !(grant.given & FAULT)) /* on bare hardware the instruction retires now */
        execute((const uint64_t[NR_KINDS]){[INSTRUCTIONS] = 1}, KERNEL);
    deliver();
    return value;
}

static void handle_pmi(void)
{
    access_to(WRMSR, 0x390, access_to(RDMSR, 0x38E, 0)); /* GLOBAL_STATUS to GLOBAL_OVF_CTRL */
    access_to(RDPMC, 1 << 30, 0);
    access_to(WRMSR, 0x834, 0x400); /* LVTPC: NMI, not masked */
}

int main(int argc, char **argv)
{
    struct { struct header head; uint32_t vcpu, length, zero; char name[255]; } hello = {0};
    struct { struct header head; uint32_t leaf, subleaf; } cpuid = {.leaf = 0xA};
    if (argc < 3 || (hello.length = strlen(argv[2])) > sizeof hello.name)
        return fprintf(stderr, "usage: guest ENDPOINT VM [N]\n"), 2;
    memcpy(hello.name, argv[2], hello.length);
    dealer = zmq_socket(zmq_ctx_new(), ZMQ_DEALER);
    if (!dealer || zmq_connect(dealer, argv[1]))
        return perror(argv[1]), 1;
    is_quiet = argc > 3;
    ask(&hello, 28 + hello.length, HELLO, WELCOME);
    ask(&hello, sizeof hello.head, START, GRANT);
    deliver();
    ask(&cpuid, sizeof cpuid, CPUID, CPUID_IS);
    for (long n = is_quiet ? atol(argv[3]) : 0; n > 0; n--)
        access_to(RDPMC, 0, 0);
    if (!is_quiet) {
        access_to(WRMSR, 0x834, 0x400);
        access_to(WRMSR, 0x309, (1ull << 48) - 1000000); /* fixed counter 0: a million instructions to go */
        access_to(WRMSR, 0x38D, 0xB);                    /* it counts at each CPL, with an interrupt */
        access_to(WRMSR, 0x186, 0x4100C4);               /* counter 0: branches at CPL > 0 */
        access_to(WRMSR, 0x38F, 1ull << 32 | 1);
        execute((const uint64_t[]){1500000, 2400000, 310001}, USER);
        access_to(RDPMC, 1 << 30, 0);
        access_to(RDPMC, 0, 0);
        access_to(RDPMC, 9, 0); /* #GP */
        uint64_t until = now + 1000000, taken = nr_pmis;
        for (go_on(); now < until && nr_pmis == taken; deliver(), go_on())
            report(HALT, 0, 0, 0, until);
    }
    go_on();
    report(DONE, 0, 0, 0, INT64_MAX);
    return 0;
}
