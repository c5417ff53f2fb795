/* SPDX-License-Identifier: Apache-2.0 */
/* The words in which the kernels are written: what C has, and the few things below. nvcc makes instructions of them;
 * any other compiler takes emulate.h, where a block's threads are fibers and the rest is plain C. The kernels are in
 * what C and C++ have in common. */
#ifndef CUDA_WORDS_H
#define CUDA_WORDS_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__

/* panel.h and numbers.h are for both sides: their inline functions become the device's too. */
#define inline inline __host__ __device__
#include "numbers.h"
#undef inline

#define KERNEL(name, args, threads, blocks)                                                                            \
    extern "C" __global__ void __launch_bounds__(threads, blocks) stele_##name(const args a)
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
#define UNROLL _Pragma("unroll")
#define INFINITE __int_as_float(0x7f800000)

/* The word stays in a register; the compiler does not work it out anew. */
#define KEEP(word) asm volatile("" : "+r"(word))

struct __align__(16) words4 {
    uint32_t w[4];
};

DEVICE uint32_t thread_index(void)
{
    return threadIdx.x;
}

DEVICE uint32_t block_index(void)
{
    return blockIdx.x;
}

/* All threads of the block, of the warp: none goes on before all are here, and each sees what the others wrote. */
#define sync_block() __syncthreads()
#define sync_warp() __syncwarp()

/* The value of the lane whose number is this lane's with the bits of `mask` flipped. */
#define xor_float(value, mask) __shfl_xor_sync(0xffffffffu, value, mask)
#define xor_u64(value, mask) __shfl_xor_sync(0xffffffffu, (unsigned long long)(value), mask)

DEVICE float widen_f16(uint16_t h)
{
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
}

/* Four of the eight bytes of (high, low), chosen by the first three of each four bits of the low half of
 * `which`; the fourth must be 0. */
DEVICE uint32_t pick_bytes(uint32_t low, uint32_t high, uint32_t which)
{
    return __byte_perm(low, high, which);
}

/* 16 bytes that are read once: they do not push others out of the first cache. */
DEVICE struct words4 load_once(const void *at)
{
    struct words4 v;
    asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
        : "l"(at));
    return v;
}

/* d[16][8] = c + a[16][32] times b[32][8], of signed bytes, over a warp; PTX ISA, "mma.m16n8k32": fragments. */
DEVICE void mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2], const int32_t c[4])
{
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

/* Begins to copy 16 bytes to shared memory. What was begun since the last copy_commit is a group; copy_wait(n) waits
 * for this thread's groups but the last n. Others see them when the block has met. */
DEVICE void copy_async(void *to, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from)
                 : "memory");
}
#define copy_commit() asm volatile("cp.async.commit_group;" ::: "memory")
#define copy_wait(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")

DEVICE void atomic_least(uint64_t *at, uint64_t value)
{
    atomicMin((unsigned long long *)at, (unsigned long long)value);
}

#else
#include "emulate.h"
#endif

#endif
