/* SPDX-License-Identifier: Apache-2.0 */
/* What libstele-cuda.so shows to the library that opens it: one symbol, `stele_cuda`. */
#ifndef CUDA_LIBRARY_H
#define CUDA_LIBRARY_H

#include "ops.h"

/* A GPU as `stele devices` lists it. */
struct cuda_found {
    char name[256];
    uint64_t bytes, free_bytes;
    int major, minor; /* compute capability */
    double bus;       /* bytes a second from pinned memory, measured */
    double memory;    /* bytes a second that a kernel reads of the device's memory, measured */
    double products;  /* int8 multiply-adds a second by mma alone, measured; and with the scales of q8 */
    double products_scaled;
    const char
        *reach; /* the way of reaching an image on a disk's file system that works here: host, register or ring */
    char why[512];     /* why not the ones before it, by attributes; "" where it is the first */
};

struct cuda_library {
    const char *version; /* of stele: another one's is refused */
    const struct blas_backend *backend;

    /* How many GPUs there are. STELE_SYSTEM: why none. */
    enum stele_status (*count)(int *count, struct stele_error *err);

    /* Looks at one of them, which takes a context and a fraction of a second. */
    enum stele_status (*look)(struct cuda_found *out, int ordinal, struct stele_error *err);
};

#define CUDA_LIBRARY_SYMBOL "stele_cuda"

#endif
