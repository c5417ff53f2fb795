/* SPDX-License-Identifier: Apache-2.0 */
/* libstele-cuda.so in the place of another, REAL, whose back end it shows without the op that LACKS names. Opening that
 * back end ends the program: a plan with such an op must not come so far. */
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_library.h"

extern struct cuda_library stele_cuda;
struct cuda_library stele_cuda;
static struct blas_backend lacking;

static enum stele_status never(struct blas_device **out, const struct blas_setup *setup, struct stele_error *err)
{
    (void)out, (void)setup, (void)err;
    abort();
}

static __attribute__((constructor)) void make(void)
{
    void *real = dlopen(REAL, RTLD_NOW);
    const char *lacks = getenv("LACKS");
    const struct cuda_library *found = real ? dlsym(real, CUDA_LIBRARY_SYMBOL) : NULL;
    if (!found || !lacks)
        abort();
    stele_cuda = *found;
    lacking = *found->backend;
    lacking.open = never;
    stele_cuda.backend = &lacking;
#define LACK(op) \
    if (!strcmp(lacks, #op)) \
        lacking.op = NULL;
    LACK(embed) LACK(norm) LACK(linear) LACK(rope_kv) LACK(attention) LACK(router) LACK(experts) LACK(gate) LACK(logits)
}
