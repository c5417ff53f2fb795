/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels of a module, and steps as graphs. A step is a list of launches; what varies between steps of one shape lies
 * in memory, so their lists are equal byte for byte. A list is launched one by one when it is new, becomes a graph when
 * it is seen the second time, and is one call from then on.
 *
 *     launcher_record -> launch … -> launcher_flush -> find: new | seen once | graph */
#include <stdlib.h>
#include <string.h>

#include "gpu.h"

enum { LISTS = 8 };

/* A launch in a list: this, then the kernel's struct, to a multiple of 8 bytes. */
struct entry {
    uint32_t kernel, blocks;
};

struct list {
    uint8_t *bytes;
    size_t length, room;
    cu_graph_exec graph; /* NULL: not made yet */
    uint64_t used;       /* when: the one that was used longest ago makes room */
};

struct launcher {
    cu_module module;
    cu_function functions[KERNELS];
    bool recording;
    struct list now, lists[LISTS];
    uint64_t clock;
};

static const struct {
    const char *symbol;
    uint32_t bytes, threads;
} kernels[KERNELS] = {
#define CUDA_KERNEL(name, args, threads) {"stele_" #name, sizeof(struct args_##args), threads},
    CUDA_KERNELS(CUDA_KERNEL)
#undef CUDA_KERNEL
};

/* What nvcc made of kernels.cu. */
extern const uint8_t cuda_module[];

struct launcher *launcher_open(struct gpu *gpu)
{
    struct launcher *l = calloc(1, sizeof *l);
    if (!l) {
        gpu->status = stele_fail(&gpu->error, STELE_SYSTEM, "no memory for the GPU's kernels");
        return NULL;
    }
    cu_result result = gpu->driver->module_load(&l->module, cuda_module);
    if (result == CU_NO_BINARY || result == CU_UNSUPPORTED_PTX)
        gpu->status = stele_fail(&gpu->error, STELE_SYSTEM, "the kernels of this stele do not run on the GPU: %s",
                                 driver_says(gpu->driver, result));
    else
        gpu_ok(gpu, result, "loading the kernels");
    for (size_t i = 0; i < KERNELS; i++)
        GPU(gpu, module_function, "finding a kernel", &l->functions[i], l->module, kernels[i].symbol);
    if (gpu->status == STELE_OK)
        return l;
    launcher_close(gpu, l);
    return NULL;
}

static void drop(struct gpu *gpu, struct list *list)
{
    if (list->graph)
        gpu->driver->graph_exec_destroy(list->graph);
    free(list->bytes);
    *list = (struct list){0};
}

void launcher_close(struct gpu *gpu, struct launcher *l)
{
    if (!l)
        return;
    drop(gpu, &l->now);
    for (size_t i = 0; i < LISTS; i++)
        drop(gpu, &l->lists[i]);
    if (l->module)
        gpu->driver->module_unload(l->module);
    free(l);
}

static void launch_now(struct gpu *gpu, struct launcher *l, enum cuda_kernel kernel, uint32_t blocks, const void *args)
{
    void *arguments[] = {(void *)(uintptr_t)args};
    GPU(gpu, launch, "starting a kernel", l->functions[kernel], blocks, 1, 1, kernels[kernel].threads, 1, 1, 0,
        gpu->compute, arguments, NULL);
}

static void write_down(struct gpu *gpu, struct list *list, enum cuda_kernel kernel, uint32_t blocks, const void *args)
{
    const size_t bytes = sizeof(struct entry) + round_up(kernels[kernel].bytes, 8);
    if (list->length + bytes > list->room) {
        uint8_t *more = realloc(list->bytes, 2 * list->room + 65536);
        if (!more) {
            gpu->status = stele_fail(&gpu->error, STELE_SYSTEM, "no memory for a step of the GPU");
            return;
        }
        list->bytes = more;
        list->room = 2 * list->room + 65536;
    }
    struct entry entry = {kernel, blocks};
    memset(list->bytes + list->length, 0, bytes);
    memcpy(list->bytes + list->length, &entry, sizeof entry);
    memcpy(list->bytes + list->length + sizeof entry, args, kernels[kernel].bytes);
    list->length += bytes;
}

void launch(struct gpu *gpu, struct launcher *l, enum cuda_kernel kernel, uint64_t blocks, const void *args)
{
    if (gpu->status != STELE_OK || !blocks)
        return;
    if (blocks > INT32_MAX)
        gpu->status =
            stele_fail(&gpu->error, STELE_SYSTEM, "a step is too large for a GPU; a smaller --chunk makes it smaller");
    else if (l->recording)
        write_down(gpu, &l->now, kernel, (uint32_t)blocks, args);
    else
        launch_now(gpu, l, kernel, (uint32_t)blocks, args);
}

void launcher_record(struct launcher *l)
{
    l->recording = true;
    l->now.length = 0;
}

bool launcher_recording(const struct launcher *l)
{
    return l->recording;
}

static void run(struct gpu *gpu, struct launcher *l, const struct list *list)
{
    for (size_t at = 0; at < list->length;) {
        struct entry entry;
        memcpy(&entry, list->bytes + at, sizeof entry);
        launch_now(gpu, l, (enum cuda_kernel)entry.kernel, entry.blocks, list->bytes + at + sizeof entry);
        at += sizeof entry + round_up(kernels[entry.kernel].bytes, 8);
    }
}

/* A graph of the list. While it is captured nothing runs. */
static void capture(struct gpu *gpu, struct launcher *l, struct list *list)
{
    cu_graph graph = NULL;
    if (!GPU(gpu, stream_capture, "beginning a graph", gpu->compute, CU_CAPTURE_RELAXED))
        return;
    run(gpu, l, list);
    gpu_ok(gpu, gpu->driver->stream_captured(gpu->compute, &graph),
           "ending a graph"); /* whatever failed: it was begun */
    GPU(gpu, graph_make, "making a graph", &list->graph, graph, 0);
    if (graph)
        gpu->driver->graph_destroy(graph);
}

/* The list that equals the one written down; NULL: none. */
static struct list *find(struct launcher *l)
{
    for (size_t i = 0; i < LISTS; i++)
        if (l->lists[i].bytes && l->lists[i].length == l->now.length &&
            !memcmp(l->lists[i].bytes, l->now.bytes, l->now.length))
            return &l->lists[i];
    return NULL;
}

/* Keeps the list that was written down, in the place of the one used longest ago. */
static void keep(struct gpu *gpu, struct launcher *l)
{
    struct list *oldest = &l->lists[0];
    for (size_t i = 1; i < LISTS; i++)
        oldest = l->lists[i].used < oldest->used ? &l->lists[i] : oldest;
    drop(gpu, oldest);
    *oldest = l->now;
    oldest->used = ++l->clock;
    l->now = (struct list){0};
}

void launcher_flush(struct gpu *gpu, struct launcher *l)
{
    if (!l->recording)
        return;
    l->recording = false;
    struct list *known = l->now.length ? find(l) : NULL;
    if (!known) {
        run(gpu, l, &l->now);
        if (l->now.length)
            keep(gpu, l);
        return;
    }
    known->used = ++l->clock;
    if (!known->graph)
        capture(gpu, l, known);
    GPU(gpu, graph_launch, "starting a step", known->graph, gpu->compute);
}
