/*
 * ftest - a benchmark whose profile everybody can read: main() calls foo(), bar() and qux() in turn, and all
 * four lean on random().
 *
 *   foo   sums words from a random place of a table that fits the second-level cache, but not the first
 *   bar   takes branches that nobody can predict
 *   qux   mixes bits: nothing but arithmetic and one branch that is easy to predict
 *
 * The Makefile says how many steps each of them takes.
 *
 * usage: ftest [rounds]
 */
#include <stdio.h>
#include <stdlib.h>

#define TABLE_WORDS (1u << 14) /* 128 KiB of 8-byte words */
#define NOINLINE __attribute__((noinline))

static unsigned long table[TABLE_WORDS];

static NOINLINE unsigned long foo(void)
{
    unsigned long at = (unsigned long)random();
    unsigned long sum = 0;

    for (int i = 0; i < FOO_STEPS; i++)
        sum += table[(at + i) % TABLE_WORDS];
    return sum;
}

static NOINLINE unsigned long bar(void)
{
    unsigned long bits = (unsigned long)random();
    unsigned long odd = 0, even = 0;

    for (int i = 0; i < BAR_STEPS; i++) {
        if (bits & 1)
            odd += bits;
        else
            even ^= bits;
        bits >>= 1;
    }
    return odd ^ even;
}

static NOINLINE unsigned long qux(void)
{
    unsigned long mix = (unsigned long)random();

    for (int i = 0; i < QUX_STEPS; i++) {
        mix ^= mix << 13;
        mix ^= mix >> 7;
        mix ^= mix << 17;
    }
    return mix;
}

int main(int argc, char **argv)
{
    long rounds = argc > 1 ? atol(argv[1]) : 100000;
    unsigned long sum = 0;

    for (long i = 0; i < rounds; i++) {
        unsigned long first = (unsigned long)random();

        for (int j = 0; j < MAIN_STEPS; j++)
            sum += (first >> j) ^ sum << 3;
        sum += foo();
        sum += bar();
        sum += qux();
        table[first % TABLE_WORDS] = sum;
    }
    printf("%lu\n", sum);
    return 0;
}
