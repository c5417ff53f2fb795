/* SPDX-License-Identifier: Apache-2.0 */
/* Chooses the kernels: once at start, by what the CPU can do or by STELE_KERNELS. */
#include "kernels.h"

#include <string.h>

/* Fastest first. Two tables that are one source have one name: the first that is usable is taken. */
static const struct blas_kernels *const tables[] = {
#if defined(__x86_64__)
    &blas_avx512,
    &blas_avx2,
    &blas_generic_fma,
#elif defined(__aarch64__)
    &blas_neon_i8mm,
    &blas_neon,
#endif
    &blas_generic,
};

const struct blas_kernels *blas_table(size_t i)
{
    return i < sizeof tables / sizeof *tables ? tables[i] : NULL;
}

const struct blas_kernels *blas_choose(const char *forced)
{
    bool any = !forced || !*forced;
    for (size_t i = 0; blas_table(i); i++)
        if ((any || !strcmp(forced, tables[i]->name)) && tables[i]->usable())
            return tables[i];
    return NULL;
}
