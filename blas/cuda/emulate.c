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

enum { WARP = 32, THREADS_MAX = 1024, STACK_BYTES = 128 << 10 };

enum stop { STOP_DONE, STOP_WARP, STOP_BLOCK };

struct fiber {
    jmp_buf state;
    uint32_t thread;
    enum stop stop;
    int line;          /* of the source, where it stopped */
    uint32_t exchanges; /* in which it took part */
    bool made;
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
} emulator;

static void fail(const char *what, int line)
{
    fprintf(stderr, "emulated kernel, line %d, block %u: %s\n", line, emulator.block, what);
    abort();
}

uint32_t thread_index(void)
{
    return emulator.now->thread;
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

void emulate_sync_block(int line)
{
    give_way(STOP_BLOCK, line);
}

void emulate_sync_warp(int line)
{
    give_way(STOP_WARP, line);
}

const uint32_t (*emulate_exchange(const uint32_t *words, size_t n, int line))[8]
{
    struct fiber *f = emulator.now;
    uint32_t(*all)[8] = emulator.words[f->thread / WARP][f->exchanges++ % 2];
    memcpy(all[f->thread % WARP], words, n * sizeof *words);
    give_way(STOP_WARP, line);
    return (const uint32_t(*)[8])all;
}

static void live(void)
{
    if (!_setjmp(emulator.now->state))
        swapcontext(&emulator.beginning, &emulator.back);
    for (;;) {
        emulator.kernel(emulator.args);
        give_way(STOP_DONE, 0);
    }
}

static void make(struct fiber *f)
{
    f->made = true;
    emulator.now = f;
    getcontext(&emulator.beginning);
    emulator.beginning.uc_stack.ss_sp = emulator.stacks + f->thread * (size_t)STACK_BYTES;
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

/* Runs a warp until all its lanes are done or wait for the block. */
static void run_warp(uint32_t first, uint32_t threads)
{
    struct fiber *lanes = emulator.fibers + first;
    uint32_t n = threads - first < WARP ? threads - first : WARP;
    do {
        for (uint32_t i = 0; i < n; i++) {
            resume(&lanes[i]);
            if (lanes[i].stop != lanes[0].stop || lanes[i].line != lanes[0].line)
                fail("the lanes of a warp meet at different places", lanes[i].line);
        }
    } while (lanes[0].stop == STOP_WARP);
}

static void run_block(uint32_t threads)
{
    for (bool waiting = true; waiting;) {
        for (uint32_t first = 0; first < threads; first += WARP) {
            run_warp(first, threads);
            if (emulator.fibers[first].stop != emulator.fibers[0].stop ||
                emulator.fibers[first].line != emulator.fibers[0].line)
                fail("a barrier that other warps do not reach", emulator.fibers[first].line);
        }
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
        emulator.fibers[i].thread = i;
        if (!emulator.fibers[i].made)
            make(&emulator.fibers[i]);
    }
    emulator.kernel = kernel;
    emulator.args = args;
    for (emulator.block = 0; emulator.block < blocks; emulator.block++)
        run_block(threads);
}
