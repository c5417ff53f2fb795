/* SPDX-License-Identifier: Apache-2.0 */
/* Finds barriers that are missing. Under emulation threads take turns, so a kernel that lacks one may still be right by
 * luck; here every touch of memory is looked at. The compiler calls these functions at each (-fsanitize=thread; nothing
 * of its library is linked). Two touches of a byte in one launch, one of them a write, are a race unless they are
 *
 *     of one thread
 *     of one warp, and the warp has met between them: sync_warp or sync_block, not a shuffle, which orders no memory
 *     of one block, and the block has met between them
 *
 * For each byte the last write is kept, and the widest company of readers since the block last met. That finds every
 * race of what was touched, whatever the order of turns. Bytes of shared memory are a block's own; one that is read
 * before the block wrote it is a fault too. */
#include "emulate.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PAGE = 4096 };

enum who { NOBODY, THREAD, WARP, BLOCK, GRID }; /* the company of a touch */

struct touch {
    uint32_t block, block_met, warp_met;
    uint16_t thread;
    uint8_t who;
};

struct page {
    uint64_t number; /* address / PAGE, + 1; 0: none */
    struct cell {
        struct touch write, read;
    } *cells; /* [PAGE] */
};

static struct {
    struct page *pages; /* [room], a hash table */
    size_t count, room;
    struct page *last;
} shadow;

extern const uint8_t __start_cuda_shared[], __stop_cuda_shared[];

static void *need(void *p)
{
    if (!p)
        abort();
    return p;
}

static struct page *place_of(uint64_t number)
{
    size_t i = number * 0x9e3779b97f4a7c15u >> 20 & (shadow.room - 1);
    while (shadow.pages[i].number && shadow.pages[i].number != number)
        i = (i + 1) & (shadow.room - 1);
    return &shadow.pages[i];
}

static void grow(void)
{
    struct page *old = shadow.pages;
    const size_t n = shadow.room;
    shadow.room = n ? 2 * n : 1024;
    shadow.pages = need(calloc(shadow.room, sizeof *shadow.pages));
    for (size_t i = 0; i < n; i++)
        if (old[i].number)
            *place_of(old[i].number) = old[i];
    free(old);
    shadow.last = NULL;
}

static struct cell *cell_of(uintptr_t at)
{
    const uint64_t number = at / PAGE + 1;
    if (!shadow.last || shadow.last->number != number) {
        if (2 * shadow.count >= shadow.room)
            grow();
        struct page *p = place_of(number);
        if (!p->number) {
            *p = (struct page){number, need(calloc(PAGE, sizeof *p->cells))};
            shadow.count++;
        }
        shadow.last = p;
    }
    return &shadow.last->cells[at % PAGE];
}

/* What a launch touched is before all that the next one does. */
void races_launch(void)
{
    for (size_t i = 0; i < shadow.room; i++)
        free(shadow.pages[i].cells);
    free(shadow.pages);
    memset(&shadow, 0, sizeof shadow);
}

/* The smallest company of a touch and the thread of now, where nothing orders them; NOBODY: they are ordered. */
static enum who unordered(const struct touch *t, const struct moment *now)
{
    if (t->who == NOBODY)
        return NOBODY;
    if (t->who == GRID || t->block != now->block)
        return GRID;
    if (t->block_met != now->block_met)
        return NOBODY;
    if (t->who == BLOCK || t->thread / 32 != now->thread / 32)
        return BLOCK;
    if (t->warp_met != now->warp_met)
        return NOBODY;
    return t->who == WARP || t->thread != now->thread ? WARP : NOBODY;
}

static __attribute__((noreturn)) void say(const char *what, const struct touch *other, const struct moment *now,
                                          const void *from)
{
    static const char *const of[] = {"", "", "of its warp", "of its block", "of another block"};
    Dl_info in = {0};
    dladdr(from, &in);
    fprintf(stderr, "race: block %u thread %u %s that %s %u %s touches with no barrier between; addr2line -e %s %#zx\n",
            now->block, now->thread, what, other->who == THREAD ? "thread" : "threads near", other->thread,
            of[unordered(other, now)], in.dli_fname ? in.dli_fname : "?",
            (size_t)((const uint8_t *)from - (const uint8_t *)in.dli_fbase) - 1);
    abort();
}

static void touch_byte(uintptr_t at, bool writes, const struct moment *now, const void *from)
{
    struct cell *c = cell_of(at);
    const bool shared = at >= (uintptr_t)__start_cuda_shared && at < (uintptr_t)__stop_cuda_shared;
    const struct touch this = {now->block, now->block_met, now->warp_met, (uint16_t)now->thread, THREAD};
    if (shared && (c->write.block != now->block || c->write.who == NOBODY)) { /* another block's: not this memory */
        *c = (struct cell){0};
        if (!writes) {
            fprintf(stderr, "race: block %u thread %u reads shared memory that its block never wrote\n", now->block,
                    now->thread);
            abort();
        }
    }
    if (unordered(&c->write, now))
        say(writes ? "writes what is written" : "reads what is written", &c->write, now, from);
    if (writes) {
        if (unordered(&c->read, now))
            say("writes what is read", &c->read, now, from);
        *c = (struct cell){.write = this};
        return;
    }
    const enum who before = unordered(&c->read, now);
    c->read = this;
    c->read.who = (uint8_t)(before > THREAD ? before : THREAD);
}

static void touch(const void *at, size_t bytes, bool writes, const void *from)
{
    const struct moment *now = emulation.races ? emulate_moment() : NULL;
    if (!now || emulate_own(at))
        return;
    for (size_t i = 0; i < bytes; i++)
        touch_byte((uintptr_t)at + i, writes, now, from);
}

void races_touch(const void *at, size_t bytes, bool writes)
{
    touch(at, bytes, writes, __builtin_return_address(0));
}

/* ---- what the compiler calls ---- */

#define RACES_TOUCH(bytes)                                           \
    void __tsan_read##bytes(const void *at);                         \
    void __tsan_read##bytes(const void *at)                          \
    {                                                                \
        touch(at, bytes, false, __builtin_return_address(0));        \
    }                                                                \
    void __tsan_write##bytes(const void *at);                        \
    void __tsan_write##bytes(const void *at)                         \
    {                                                                \
        touch(at, bytes, true, __builtin_return_address(0));         \
    }
RACES_TOUCH(1)
RACES_TOUCH(2)
RACES_TOUCH(4)
RACES_TOUCH(8)
RACES_TOUCH(16)

void __tsan_read_range(const void *at, size_t bytes);
void __tsan_read_range(const void *at, size_t bytes)
{
    touch(at, bytes, false, __builtin_return_address(0));
}

void __tsan_write_range(const void *at, size_t bytes);
void __tsan_write_range(const void *at, size_t bytes)
{
    touch(at, bytes, true, __builtin_return_address(0));
}

void __tsan_init(void);
void __tsan_init(void)
{
}

void __tsan_func_entry(void *from);
void __tsan_func_entry(void *from)
{
    (void)from;
}

void __tsan_func_exit(void);
void __tsan_func_exit(void)
{
}
