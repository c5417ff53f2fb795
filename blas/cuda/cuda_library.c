/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_library.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "gpu.h"

#ifndef CUDA_PEAK_BYTES
#define CUDA_PEAK_BYTES (1 << 30) /* read of the device's memory: far more than its caches hold */
#define CUDA_PEAK_PRODUCTS 4096   /* rounds of the products' loop */
#endif

enum {
    BUS_BYTES = 64 << 20,
    BUS_ROUNDS = 5,
    PEAK_BYTES = CUDA_PEAK_BYTES,
    PEAK_PRODUCTS = CUDA_PEAK_PRODUCTS,
    PEAK_ROUNDS = 5
};

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

/* Seconds of a kernel, the best of a few rounds. */
static double time_kernel(struct gpu *gpu, struct launcher *l, enum cuda_kernel kernel, const struct args_peak *args)
{
    cu_event begin = NULL, end = NULL;
    double best = 0;
    GPU(gpu, event_create, "making an event", &begin, CU_EVENT_TIMING);
    GPU(gpu, event_create, "making an event", &end, CU_EVENT_TIMING);
    for (int i = 0; i < PEAK_ROUNDS && gpu->status == STELE_OK; i++) {
        float ms = 0;
        GPU(gpu, event_record, "measuring", begin, gpu->compute);
        launch(gpu, l, kernel, args->blocks, args);
        GPU(gpu, event_record, "measuring", end, gpu->compute);
        GPU(gpu, event_wait, "measuring", end);
        GPU(gpu, event_elapsed, "measuring", &ms, begin, end);
        best = best == 0 || 1e-3 * (double)ms < best ? 1e-3 * (double)ms : best;
    }
    if (begin)
        gpu->driver->event_destroy(begin);
    if (end)
        gpu->driver->event_destroy(end);
    return best;
}

static void measure_kernels(struct gpu *gpu, struct cuda_found *out)
{
    int processors = 1;
    GPU(gpu, device_attribute, "asking what it can do", &processors, CU_PROCESSORS, gpu->device);
    struct launcher *l = gpu->status == STELE_OK ? launcher_open(gpu) : NULL;
    cu_pointer memory = gpu_alloc(gpu, PEAK_BYTES, "measuring memory");
    GPU(gpu, set, "measuring", memory, 0, PEAK_BYTES, gpu->compute);
    if (gpu->status == STELE_OK) {
        struct args_peak a = {
            .words = gpu_address(memory), .count = PEAK_BYTES / 16, .out = gpu_address(memory), .never = 1};
        a.blocks = 8 * (uint32_t)processors;
        out->memory = PEAK_BYTES / time_kernel(gpu, l, KERNEL_peak_read, &a);
        a.blocks = 4 * (uint32_t)processors;
        a.count = PEAK_PRODUCTS;
        const double products = (double)a.blocks * 4 * PEAK_PRODUCTS * 8 * (16 * 8 * 32);
        out->products = products / time_kernel(gpu, l, KERNEL_peak_mma, &a);
        out->products_scaled = products / time_kernel(gpu, l, KERNEL_peak_scaled, &a);
    }
    gpu_free(gpu, &memory);
    launcher_close(gpu, l);
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
    GPU(&gpu, stream_create, "making a stream", &gpu.compute, CU_STREAM_NON_BLOCKING);
    GPU(&gpu, stream_create, "making a stream", &gpu.transfer, CU_STREAM_NON_BLOCKING);
    GPU(&gpu, memory_info, "asking for its memory", &free_bytes, &total);
    out->bytes = total;
    out->free_bytes = free_bytes;
    out->bus = measure_bus(&gpu);
    measure_kernels(&gpu, out);
    choose_reach(out, &gpu);
    if (gpu.compute)
        gpu.driver->stream_destroy(gpu.compute);
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
