/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels as host code: words.h for a compiler that is not nvcc. Blocks run one after another, the threads of a
 * block are fibers, and warp and block meet as on the device; what the device leaves undefined (lanes of a warp that
 * meet at different places, a barrier that some threads never reach) ends the program with a sentence. */
#ifndef CUDA_EMULATE_H
#define CUDA_EMULATE_H

#include "numbers.h"

#define KERNEL(name, args, threads, blocks) \
    void name##_emulated(const void *a_);   \
    static void name##_body(const args a);  \
    void name##_emulated(const void *a_)    \
    {                                       \
        name##_body(*(const args *)a_);     \
    }                                       \
    static void name##_body(const args a)
#define DEVICE static inline
#define SHARED static __attribute__((section("cuda_shared")))
#define UNROLL
#define INFINITE INFINITY
#define KEEP(word) ((void)(word))

struct words4 {
    uint32_t w[4];
} __attribute__((aligned(16)));

/* How launches run; set before them. */
struct emulation {
    bool races;    /* each touch of memory is checked (races.c) */
    uint64_t seed; /* not 0: blocks, warps and lanes take their turns in an order drawn from it */
    char without[64]; /* "dot.cuh:12": the barrier there is left out, to see that it is missed */
};
extern struct emulation emulation;

/* Runs `kernel` on blocks x of `threads` threads each. One launch at a time in a process: memory shared by a block is
 * the process's. */
void emulate_launch(void (*kernel)(const void *args), const void *args, uint32_t blocks, uint32_t threads);

/* Who touches memory, and how often its block and its warp have met. NULL outside of kernels. */
struct moment {
    uint32_t block, thread, block_met, warp_met;
};
const struct moment *emulate_moment(void);

/* Whether the address is on a thread's own stack. */
bool emulate_own(const void *at);

/* races.c: a launch begins; the thread of now touches memory. */
void races_launch(void);
void races_touch(const void *at, size_t bytes, bool writes);

uint32_t thread_index(void);
uint32_t block_index(void);
void emulate_sync_block(const char *file, int line);
void emulate_sync_warp(const char *file, int line);
#define sync_block() emulate_sync_block(__FILE__, __LINE__)
#define sync_warp() emulate_sync_warp(__FILE__, __LINE__)

float emulate_xor_float(float value, uint32_t mask, int line);
uint64_t emulate_xor_u64(uint64_t value, uint32_t mask, int line);
#define xor_float(value, mask) emulate_xor_float(value, mask, __LINE__)
#define xor_u64(value, mask) emulate_xor_u64(value, mask, __LINE__)

static inline float widen_f16(uint16_t h)
{
    return float_of_f16(h);
}

static inline uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t which)
{
    uint64_t all = low | (uint64_t)high << 32;
    uint32_t out = 0;
    for (uint32_t i = 0; i < 4; i++)
        out |= (uint32_t)(all >> 8 * (which >> 4 * i & 7) & 0xff) << 8 * i;
    return out;
}

static inline struct words4 load_once(const void *at)
{
    return *(const struct words4 *)at;
}

void emulate_mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2], const int32_t c[4], int line);
#define mma_s8(d, a, b, c) emulate_mma_s8(d, a, b, c, __LINE__)

/* A copy is made when it is waited for: its bytes are not there before. */
void copy_async(void *to, const void *from);
void copy_commit(void);
void copy_wait(uint32_t n);


void atomic_least(uint64_t *at, uint64_t value);

#endif
