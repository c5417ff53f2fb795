/* SPDX-License-Identifier: Apache-2.0 */
#include "gpus.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda_library.h"
#include "stele.h"

/* Beside the program, else in ../libexec/stele from there; never where LD_LIBRARY_PATH points. Stays open: it may have
 * threads. */
static void *open_library(void)
{
    static const char *const folders[] = {"", "/../libexec/stele"};
    char self[PATH_MAX], path[2 * PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    for (size_t i = 0; slash && i < sizeof folders / sizeof *folders; i++) {
        snprintf(path, sizeof path, "%.*s%s/libstele-cuda.so", (int)(slash - self), self, folders[i]);
        if (!access(path, R_OK))
            return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    }
    return NULL;
}

static enum stele_status load(const struct cuda_library **out, struct stele_error *err)
{
    void *library = open_library();
    if (!library) {
        const char *why = dlerror();
        return stele_fail(err, STELE_SYSTEM, "no GPU: %s",
                          why ? why : "libstele-cuda.so is not beside the program, nor in ../libexec/stele from there; "
                                      "`make cuda` builds it");
    }
    *out = dlsym(library, CUDA_LIBRARY_SYMBOL);
    if (!*out || strcmp((*out)->version, STELE_VERSION))
        return stele_fail(err, STELE_SYSTEM, "no GPU: libstele-cuda.so is another version's, %s instead of %s",
                          *out ? (*out)->version : "none", STELE_VERSION);
    return STELE_OK;
}

enum stele_status stele_gpus(uint32_t *count, struct stele_error *err)
{
    const struct cuda_library *library;
    int n = 0;
    enum stele_status status = load(&library, err);
    if (status == STELE_OK)
        status = library->count(&n, err);
    *count = status == STELE_OK ? (uint32_t)n : 0;
    return status;
}

enum stele_status stele_gpu_look(struct stele_gpu *out, uint32_t index, struct stele_error *err)
{
    const struct cuda_library *library;
    struct cuda_found found;
    memset(out, 0, sizeof *out);
    enum stele_status status = load(&library, err);
    if (status == STELE_OK)
        status = library->look(&found, (int)index, err);
    if (status != STELE_OK)
        return status;
    *out = (struct stele_gpu){.bytes = found.bytes,
                              .free_bytes = found.free_bytes,
                              .major = (uint32_t)found.major,
                              .minor = (uint32_t)found.minor,
                              .bus = found.bus,
                              .memory = found.memory,
                              .products = found.products,
                              .products_scaled = found.products_scaled,
                              .map = found.reach};
    snprintf(out->name, sizeof out->name, "%s", found.name);
    snprintf(out->why, sizeof out->why, "%s", found.why);
    return STELE_OK;
}

/* The number behind "cuda:"; -1: it is none. */
static int parse_ordinal(const char *text)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);
    return *text >= '0' && *text <= '9' && !*end && n < 1024 ? (int)n : -1;
}

enum stele_status gpus_backend(const struct blas_backend **out, int *ordinal, bool *may_be_cpu, const char *device,
                               struct stele_error *err)
{
    const struct cuda_library *library;
    uint32_t count;
    *out = &blas_cpu;
    *ordinal = 0;
    *may_be_cpu = device && !strcmp(device, "auto");
    if (!device || !*device || !strcmp(device, "cpu"))
        return STELE_OK;
    if (!strncmp(device, "cuda:", 5))
        *ordinal = parse_ordinal(device + 5);
    if ((!*may_be_cpu && strcmp(device, "cuda") && strncmp(device, "cuda:", 5)) || *ordinal < 0)
        return stele_fail(err, STELE_USAGE, "no device \"%s\": it is cpu, cuda, cuda:N or auto", device);
    if (*may_be_cpu && stele_gpus(&count, NULL) != STELE_OK)
        return STELE_OK;
    enum stele_status status = load(&library, err);
    if (status == STELE_OK)
        *out = library->backend;
    return status;
}
