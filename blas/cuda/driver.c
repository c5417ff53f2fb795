/* SPDX-License-Identifier: Apache-2.0 */
#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

#ifndef CUDA_DRIVER_LEAST
#define CUDA_DRIVER_LEAST 12000 /* of the driver, as cuDriverGetVersion gives it; the Makefile knows nvcc's */
#endif

static struct driver loaded;
static struct stele_error why;
static pthread_once_t once = PTHREAD_ONCE_INIT;

const char *driver_says(const struct driver *driver, cu_result result)
{
    const char *name;
    return driver->error_name(result, &name) || !name ? "an unknown error" : name;
}

/* The symbols of the library; one that is missing is that of a later driver. */
static const char *load_symbols(void *library)
{
#define CUDA_DRIVER_LOAD(name, symbol, arguments)             \
    *(void **)(void *)&loaded.name = dlsym(library, #symbol); \
    if (!loaded.name)                                         \
        return #symbol;
    CUDA_DRIVER(CUDA_DRIVER_LOAD)
#undef CUDA_DRIVER_LOAD
    return NULL;
}

static void load(void)
{
    int version = 0, count = 0;
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        stele_fail(&why, STELE_SYSTEM, "no GPU: the NVIDIA driver is not installed (%s)", dlerror());
        return;
    }
    const char *missing = load_symbols(library);
    if (missing) {
        stele_fail(&why, STELE_SYSTEM,
                   "no GPU: the NVIDIA driver is too old, it lacks %s; CUDA %d.%d or later is needed", missing,
                   CUDA_DRIVER_LEAST / 1000, CUDA_DRIVER_LEAST % 1000 / 10);
        return;
    }
    cu_result result = loaded.init(0);
    if (!result)
        result = loaded.version(&version);
    if (!result && version < CUDA_DRIVER_LEAST)
        stele_fail(&why, STELE_SYSTEM,
                   "no GPU: the NVIDIA driver is too old, it is CUDA %d.%d's; %d.%d or later is needed", version / 1000,
                   version % 1000 / 10, CUDA_DRIVER_LEAST / 1000, CUDA_DRIVER_LEAST % 1000 / 10);
    else if (result || (result = loaded.device_count(&count)))
        stele_fail(&why, STELE_SYSTEM, "no GPU: the NVIDIA driver does not start: %s", driver_says(&loaded, result));
    else if (!count)
        stele_fail(&why, STELE_SYSTEM, "no GPU: the NVIDIA driver finds none");
}

enum stele_status driver_open(const struct driver **out, struct stele_error *err)
{
    pthread_once(&once, load);
    *out = why.status == STELE_OK ? &loaded : NULL;
    return why.status == STELE_OK ? STELE_OK : stele_fail(err, why.status, "%s", why.text);
}
