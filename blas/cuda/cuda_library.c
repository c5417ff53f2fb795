/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_library.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "gpu.h"

enum { BUS_BYTES = 64 << 20, BUS_ROUNDS = 5 };

static enum stele_status count_gpus(int *count, struct stele_error *err)
{
    const struct driver *driver;
    enum stele_status status = driver_open(&driver, err);
    if (status != STELE_OK)
        return status;
    cu_result result = driver->device_count(count);
    return result ? stele_fail(err, STELE_SYSTEM, "no GPU: %s", driver_says(driver, result)) : STELE_OK;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Copies from pinned memory, the best of a few rounds. */
static double measure_bus(struct gpu *gpu)
{
    void *host = NULL;
    double best = 0;
    cu_pointer device = gpu_alloc(gpu, BUS_BYTES, "measuring the bus");
    GPU(gpu, host_alloc, "reserving pinned memory", &host, BUS_BYTES, 0);
    for (int i = 0; i < BUS_ROUNDS && gpu->status == STELE_OK; i++) {
        double begin = now();
        GPU(gpu, copy_in, "measuring the bus", device, host, BUS_BYTES, gpu->transfer);
        GPU(gpu, stream_wait, "measuring the bus", gpu->transfer);
        double rate = BUS_BYTES / (now() - begin);
        best = rate > best ? rate : best;
    }
    if (host)
        gpu->driver->host_free(host);
    gpu_free(gpu, &device);
    return best;
}

/* Of an image on a disk: whether remap does depends on the file. */
static void choose_reach(struct cuda_found *out, const struct gpu *gpu)
{
    const enum reach ways[] = {REACH_HOST, REACH_REGISTER, REACH_RING};
    size_t n = 0;
    out->why[0] = '\0';
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        const char *why;
        out->reach = reach_names[ways[i]];
        if (reach_possible(gpu, ways[i], NULL, &why))
            return;
        n += (size_t)snprintf(out->why + n, sizeof out->why - n, "%s%s", n ? "; " : "", why);
    }
}

static enum stele_status look(struct cuda_found *out, int ordinal, struct stele_error *err)
{
    struct gpu gpu = {0};
    size_t free_bytes = 0, total = 0;
    memset(out, 0, sizeof *out);
    enum stele_status status = driver_open(&gpu.driver, err);
    if (status != STELE_OK)
        return status;
    GPU(&gpu, device_get, "finding it", &gpu.device, ordinal);
    GPU(&gpu, device_name, "asking its name", out->name, (int)sizeof out->name, gpu.device);
    GPU(&gpu, device_attribute, "asking what it can do", &out->major, CU_MAJOR, gpu.device);
    GPU(&gpu, device_attribute, "asking what it can do", &out->minor, CU_MINOR, gpu.device);
    GPU(&gpu, context_create, "opening it", &gpu.context, 0, gpu.device);
    GPU(&gpu, stream_create, "making a stream", &gpu.transfer, CU_STREAM_NON_BLOCKING);
    GPU(&gpu, memory_info, "asking for its memory", &free_bytes, &total);
    out->bytes = total;
    out->free_bytes = free_bytes;
    out->bus = measure_bus(&gpu);
    choose_reach(out, &gpu);
    if (gpu.transfer)
        gpu.driver->stream_destroy(gpu.transfer);
    if (gpu.context)
        gpu.driver->context_destroy(gpu.context);
    return gpu.status == STELE_OK ? STELE_OK : stele_fail(err, gpu.status, "cuda:%d: %s", ordinal, gpu.error.text);
}

extern const struct cuda_library stele_cuda;
__attribute__((visibility("default"))) const struct cuda_library stele_cuda = {
    .version = STELE_VERSION,
    .backend = &cuda_backend,
    .count = count_gpus,
    .look = look,
};
