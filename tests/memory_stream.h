/* SPDX-License-Identifier: Apache-2.0 */
/* The bound of a decode step: reading memory and nothing else, as fast as one thread can. */
#ifndef TESTS_MEMORY_STREAM_H
#define TESTS_MEMORY_STREAM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Reads all of a buffer, a multiple of 128 bytes. */
#if defined(__x86_64__)
__attribute__((target("avx2"))) static void stream_read(const uint8_t *p, size_t bytes)
{
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (size_t i = 0; i < bytes; i += 128) {
        const __m256i *from = (const __m256i *)(const void *)(p + i);
        a = _mm256_or_si256(a, _mm256_load_si256(from));
        b = _mm256_or_si256(b, _mm256_load_si256(from + 1));
        c = _mm256_or_si256(c, _mm256_load_si256(from + 2));
        d = _mm256_or_si256(d, _mm256_load_si256(from + 3));
    }
    __asm__ volatile("" : : "x"(a), "x"(b), "x"(c), "x"(d));
}
#else
static void stream_read(const uint8_t *p, size_t bytes)
{
    uint64_t any[4] = {0}, word[4];
    for (size_t i = 0; i < bytes; i += sizeof word) {
        memcpy(word, p + i, sizeof word);
        for (size_t j = 0; j < 4; j++)
            any[j] |= word[j];
    }
    __asm__ volatile("" : : "r"(any[0] | any[1] | any[2] | any[3]));
}
#endif

#endif
