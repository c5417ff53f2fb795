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
#define SHARED static __thread
#define UNROLL
#define INFINITE INFINITY

struct words4 {
    uint32_t w[4];
} __attribute__((aligned(16)));

/* Runs `kernel` on blocks x of `threads` threads each. */
void emulate_launch(void (*kernel)(const void *args), const void *args, uint32_t blocks, uint32_t threads);

uint32_t thread_index(void);
uint32_t block_index(void);
void emulate_sync_block(int line);
void emulate_sync_warp(int line);
#define sync_block() emulate_sync_block(__LINE__)
#define sync_warp() emulate_sync_warp(__LINE__)

/* Gives the warp this lane's words (at most 8) and returns those of all lanes, [32][8], when all have given theirs.
 * They stay until the warp's exchange after the next. */
const uint32_t (*emulate_exchange(const uint32_t *words, size_t n, int line))[8];

static inline float emulate_xor_float(float value, uint32_t mask, int line)
{
    uint32_t bits = float_bits(value);
    return float_of_bits(emulate_exchange(&bits, 1, line)[thread_index() % 32 ^ mask][0]);
}

static inline uint64_t emulate_xor_u64(uint64_t value, uint32_t mask, int line)
{
    uint32_t halves[2] = {(uint32_t)value, (uint32_t)(value >> 32)};
    const uint32_t *other = emulate_exchange(halves, 2, line)[thread_index() % 32 ^ mask];
    return other[0] | (uint64_t)other[1] << 32;
}
#define xor_float(value, mask) emulate_xor_float(value, mask, __LINE__)
#define xor_u64(value, mask) emulate_xor_u64(value, mask, __LINE__)

static inline float widen_f16(uint16_t h)
{
    return float_of_f16(h);
}

static inline int32_t emulate_byte(uint32_t word, uint32_t i)
{
    return (int8_t)(word >> 8 * i);
}

static inline int32_t dot4(uint32_t a, uint32_t b, int32_t acc)
{
    for (uint32_t i = 0; i < 4; i++)
        acc += emulate_byte(a, i) * emulate_byte(b, i);
    return acc;
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

/* PTX ISA, "Matrix fragments for mma.m16n8k32", for 8-bit a and b, with group = lane / 4 and thread = lane % 4:
 *     a: register i, byte j: row group + 8 * (i % 2), column 4 * thread + j + 16 * (i / 2)
 *     b: register i, byte j: row 4 * thread + j + 16 * i, column group
 *     c: register i:         row group + 8 * (i / 2), column 2 * thread + i % 2 */
static inline void emulate_mma_s8(int32_t c[4], const uint32_t a[4], const uint32_t b[2], int line)
{
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const uint32_t(*all)[8] = emulate_exchange(mine, 6, line);
    uint32_t lane = thread_index() % 32;
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        for (uint32_t k = 0; k < 32; k++) {
            int32_t x = emulate_byte(all[row % 8 * 4 + k % 16 / 4][row / 8 + 2 * (k / 16)], k % 4);
            int32_t y = emulate_byte(all[column * 4 + k % 16 / 4][4 + k / 16], k % 4);
            c[i] += x * y;
        }
    }
}
#define mma_s8(c, a, b) emulate_mma_s8(c, a, b, __LINE__)

/* Blocks run one at a time in a process's thread: nobody comes between. */
static inline void atomic_least(uint64_t *at, uint64_t value)
{
    *at = value < *at ? value : *at;
}

#endif
