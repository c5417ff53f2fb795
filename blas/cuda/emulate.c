/* SPDX-License-Identifier: Apache-2.0 */
/* Fibers for emulate.h. Each has a stack of its own and runs kernel after kernel; a fiber gives way where its warp or
 * block meets, and the scheduler goes on when all are there:
 *
 *     emulate_launch -> run_block -> run_warp -> resume: a lane until it meets the others or is done
 *
 * A fiber begins by makecontext and is switched by _setjmp and _longjmp, which cost no system call. */
#include "emulate.h"

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>

enum { WARP = 32, THREADS_MAX = 1024, STACK_BYTES = 128 << 10, COPIES = 64 };

struct emulation emulation;

enum stop { STOP_DONE, STOP_WARP, STOP_BLOCK };

struct fiber {
    jmp_buf state;
    struct moment at;
    enum stop stop;
    int line;          /* of the source, where it stopped */
    uint32_t exchanges; /* in which it took part */
    bool made;
    struct {
        void *to;
        const void *from;
        uint32_t group;
    } copies[COPIES]; /* [begun % COPIES]: begun, and not done */
    uint32_t copies_begun, copies_done, groups;
};

static __thread struct {
    struct fiber *fibers;            /* [THREADS_MAX] */
    uint8_t *stacks;                 /* [THREADS_MAX][STACK_BYTES] */
    uint32_t (*words)[2][WARP][8];   /* [warps]: of two exchanges in turn */
    struct fiber *now;
    jmp_buf scheduler;
    ucontext_t beginning, back;
    void (*kernel)(const void *);
    const void *args;
    uint32_t block;
    uint64_t drawn; /* of the order of turns */
} emulator;

static void fail(const char *what, int line)
{
    fprintf(stderr, "emulated kernel, line %d, block %u: %s\n", line, emulator.block, what);
    abort();
}

const struct moment *emulate_moment(void)
{
    return emulator.now ? &emulator.now->at : NULL;
}

bool emulate_own(const void *at)
{
    return (size_t)((const uint8_t *)at - emulator.stacks) < THREADS_MAX * (size_t)STACK_BYTES;
}

uint32_t thread_index(void)
{
    return emulator.now->at.thread;
}

uint32_t block_index(void)
{
    return emulator.block;
}

/* Gives the scheduler its turn. */
static __attribute__((noinline)) void give_way(enum stop stop, int line)
{
    emulator.now->stop = stop;
    emulator.now->line = line;
    if (!_setjmp(emulator.now->state))
        _longjmp(emulator.scheduler, 1);
}

static bool left_out(const char *file, int line)
{
    char place[sizeof emulation.without];
    const char *slash = strrchr(file, '/');
    snprintf(place, sizeof place, "%s:%d", slash ? slash + 1 : file, line);
    return !strcmp(place, emulation.without);
}

void emulate_sync_block(const char *file, int line)
{
    if (*emulation.without && left_out(file, line))
        return;
    give_way(STOP_BLOCK, line);
    emulator.now->at.block_met++;
}

void emulate_sync_warp(const char *file, int line)
{
    if (*emulation.without && left_out(file, line))
        return;
    give_way(STOP_WARP, line);
    emulator.now->at.warp_met++;
}

/* Gives the warp this lane's words (at most 8) and returns those of all lanes, [32][8], when all have given theirs.
 * They stay until the warp's exchange after the next. */
static const uint32_t (*emulate_exchange(const uint32_t *words, size_t n, int line))[8]
{
    struct fiber *f = emulator.now;
    uint32_t(*all)[8] = emulator.words[f->at.thread / WARP][f->exchanges++ % 2];
    memcpy(all[f->at.thread % WARP], words, n * sizeof *words);
    give_way(STOP_WARP, line);
    return (const uint32_t(*)[8])all;
}

float emulate_xor_float(float value, uint32_t mask, int line)
{
    uint32_t bits = float_bits(value);
    return float_of_bits(emulate_exchange(&bits, 1, line)[thread_index() % 32 ^ mask][0]);
}

uint64_t emulate_xor_u64(uint64_t value, uint32_t mask, int line)
{
    uint32_t halves[2] = {(uint32_t)value, (uint32_t)(value >> 32)};
    const uint32_t *other = emulate_exchange(halves, 2, line)[thread_index() % 32 ^ mask];
    return other[0] | (uint64_t)other[1] << 32;
}

/* PTX ISA, "Matrix fragments for mma.m16n8k32", for 8-bit a and b, with group = lane / 4 and thread = lane % 4:
 *     a: register i, byte j: row group + 8 * (i % 2), column 4 * thread + j + 16 * (i / 2)
 *     b: register i, byte j: row 4 * thread + j + 16 * i, column group
 *     c: register i:         row group + 8 * (i / 2), column 2 * thread + i % 2 */
void emulate_mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2], const int32_t c[4], int line)
{
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const uint32_t(*all)[8] = emulate_exchange(mine, 6, line);
    const uint32_t group = thread_index() % 32 / 4, thread = thread_index() % 4;
    uint32_t words[4][8]; /* of this lane's two rows of a, then of its two columns of b, k upwards */
    int8_t bytes[4][32];
    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t w = 0; w < 8; w++) {
            words[i][w] = all[group * 4 + w % 4][i + 2 * (w / 4)];
            words[2 + i][w] = all[(2 * thread + i) * 4 + w % 4][4 + w / 4];
        }
    memcpy(bytes, words, sizeof bytes);
    for (uint32_t i = 0; i < 4; i++) {
        d[i] = c[i];
        for (uint32_t k = 0; k < 32; k++)
            d[i] += bytes[i / 2][k] * bytes[2 + i % 2][k];
    }
}

/* What copies write is theirs from the beginning on, and nobody's to read before they are done. */
void copy_async(void *to, const void *from)
{
    struct fiber *f = emulator.now;
    if (f->copies_begun - f->copies_done == COPIES || (uintptr_t)to % 16 || (uintptr_t)from % 16)
        fail("a copy that is one too many, or not aligned", 0);
    races_touch(to, 16, true);
    memset(to, 0xff, 16);
    f->copies[f->copies_begun % COPIES].to = to;
    f->copies[f->copies_begun % COPIES].from = from;
    f->copies[f->copies_begun++ % COPIES].group = f->groups;
}

void copy_commit(void)
{
    emulator.now->groups++;
}

void copy_wait(uint32_t n)
{
    struct fiber *f = emulator.now;
    for (; f->copies_done != f->copies_begun; f->copies_done++) {
        const uint32_t i = f->copies_done % COPIES;
        if (f->groups - f->copies[i].group <= n)
            return;
        races_touch(f->copies[i].from, 16, false);
        races_touch(f->copies[i].to, 16, true);
        memcpy(f->copies[i].to, f->copies[i].from, 16);
    }
}

/* Blocks run one at a time in a process's thread: nobody comes between. */
void atomic_least(uint64_t *at, uint64_t value)
{
    *at = value < *at ? value : *at;
}

static void live(void)
{
    if (!_setjmp(emulator.now->state))
        swapcontext(&emulator.beginning, &emulator.back);
    for (;;) {
        emulator.kernel(emulator.args);
        if (emulator.now->copies_done != emulator.now->copies_begun)
            fail("a copy that nobody waited for", 0);
        give_way(STOP_DONE, 0);
    }
}

static void make(struct fiber *f)
{
    f->made = true;
    emulator.now = f;
    getcontext(&emulator.beginning);
    emulator.beginning.uc_stack.ss_sp = emulator.stacks + f->at.thread * (size_t)STACK_BYTES;
    emulator.beginning.uc_stack.ss_size = STACK_BYTES;
    emulator.beginning.uc_link = NULL;
    makecontext(&emulator.beginning, live, 0);
    swapcontext(&emulator.back, &emulator.beginning);
}

static __attribute__((noinline)) void resume(struct fiber *f)
{
    emulator.now = f;
    if (!_setjmp(emulator.scheduler))
        _longjmp(f->state, 1);
}

/* The next of the orders of n turns: which is the i-th? */
static uint64_t draw(void)
{
    emulator.drawn = emulator.drawn * 6364136223846793005u + 1442695040888963407u;
    return emulation.seed ? emulator.drawn >> 33 : 0;
}

static uint32_t turn(uint64_t order, uint32_t i, uint32_t n)
{
    return (uint32_t)((order & 1 ? n - 1 - i : i) + (order >> 1)) % n;
}

/* Runs a warp until all its lanes are done or wait for the block. */
static void run_warp(uint32_t first)
{
    struct fiber *lanes = emulator.fibers + first;
    do {
        const uint64_t order = draw();
        for (uint32_t i = 0; i < WARP; i++)
            resume(&lanes[turn(order, i, WARP)]);
        for (uint32_t i = 1; i < WARP; i++)
            if (lanes[i].stop != lanes[0].stop || lanes[i].line != lanes[0].line)
                fail("the lanes of a warp meet at different places", lanes[i].line);
    } while (lanes[0].stop == STOP_WARP);
}

static void run_block(uint32_t threads)
{
    for (uint32_t i = 0; i < threads; i++)
        emulator.fibers[i].at =
            (struct moment){.block = emulator.block, .thread = emulator.fibers[i].at.thread};
    for (bool waiting = true; waiting;) {
        const uint64_t order = draw();
        for (uint32_t i = 0; i < threads / WARP; i++)
            run_warp(turn(order, i, threads / WARP) * WARP);
        for (uint32_t first = 0; first < threads; first += WARP)
            if (emulator.fibers[first].stop != emulator.fibers[0].stop ||
                emulator.fibers[first].line != emulator.fibers[0].line)
                fail("a barrier that other warps do not reach", emulator.fibers[first].line);
        waiting = emulator.fibers[0].stop == STOP_BLOCK;
    }
}

void emulate_launch(void (*kernel)(const void *args), const void *args, uint32_t blocks, uint32_t threads)
{
    if (threads > THREADS_MAX || threads % WARP)
        fail("a block of no whole warps, or too large", 0);
    if (!emulator.fibers) {
        emulator.fibers = calloc(THREADS_MAX, sizeof *emulator.fibers);
        emulator.words = calloc(THREADS_MAX / WARP, sizeof *emulator.words);
        emulator.stacks = mmap(NULL, THREADS_MAX * (size_t)STACK_BYTES, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (!emulator.fibers || !emulator.words || emulator.stacks == MAP_FAILED)
            fail("no memory", 0);
    }
    for (uint32_t i = 0; i < threads; i++) {
        emulator.fibers[i].at.thread = i;
        if (!emulator.fibers[i].made)
            make(&emulator.fibers[i]);
    }
    emulator.kernel = kernel;
    emulator.args = args;
    emulator.drawn += emulation.seed;
    races_launch();
    const uint64_t order = draw();
    for (uint32_t i = 0; i < blocks; i++) {
        emulator.block = turn(order, i, blocks);
        run_block(threads);
    }
    emulator.now = NULL;
}
