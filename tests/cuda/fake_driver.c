/* SPDX-License-Identifier: Apache-2.0 */
/* A stand-in for libcuda.so.1: a GPU whose memory is the host's and whose kernels are those of kernels.cu as host code.
 *
 * It is as lazy as a driver may be. What is put on a stream happens when somebody waits for it, and another stream's
 * work only where an event orders it: work that does not wait for what it needs reads memory that nobody wrote, which
 * is NaN. The device's memory cannot be touched but by kernels and copies. STELE_FAKE_CUDA says what machine it plays:
 *
 *     devices=N version=N memory=BYTES host=0|1 register=0|1   what there is (default 1, 13000, 1 GiB, 0, 0)
 *     init=N                                                    cuInit gives this error
 *     pin_fails=N  copy_fails=N  kernel_fails=N  alloc_fails=N  the N-th of them, from 1 on, fails
 *     eager=1                                                   copies of a stream without kernels happen at once
 *     sticky=1                                                  and so does all that follows in its context
 *     races=1  seed=N  without=FILE:LINE                        how kernels run (emulate.h)
 *     log=FILE                                                  copies and kernels as they are done, and kernels as they are put on
 *     report=FILE                                               at exit: what was not given back, and calls */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "args.h"
#include "driver.h"
#include "emulate.h"

enum {
    INVALID = 1,
    NO_MEMORY = 2,
    INVALID_CONTEXT = 201,
    REGISTERED_TWICE = 712,
    LAUNCH_FAILED = 719,
    NOT_PERMITTED = 800,
    NOT_SUPPORTED = 801,
    ALLOCATIONS = 256,
    PINNED = 1024,
};

/* ---- what machine this is, and what it holds ---- */

static struct {
    uint64_t devices, version, memory, host, registers, init, pin_fails, copy_fails, kernel_fails, alloc_fails, sticky, eager, races;
    char report[4096];
    FILE *logging;
} set = {.devices = 1, .version = 13000, .memory = 1ull << 30};

static struct {
    uint64_t contexts, modules, streams, events, graphs, execs, host_allocs; /* alive */
    uint64_t allocated;
    uint64_t pins, copies, kernels, allocs, graph_launches; /* calls */
    cu_result broken; /* of the context: a sticky error */
    uint8_t *arena;
    struct {
        uint64_t from, bytes; /* 0 bytes: none */
    } allocations[ALLOCATIONS];
    struct {
        uint8_t *at;
        size_t bytes;
    } pinned[PINNED];
} has;

static void read_setting(const char *key, const char *value)
{
    static const struct {
        const char *key;
        uint64_t *to;
    } numbers[] = {{"devices", &set.devices},     {"version", &set.version},       {"memory", &set.memory},
                   {"host", &set.host},           {"register", &set.registers},    {"init", &set.init},
                   {"pin_fails", &set.pin_fails}, {"copy_fails", &set.copy_fails}, {"kernel_fails", &set.kernel_fails},
                   {"sticky", &set.sticky},       {"eager", &set.eager},         {"races", &set.races},
                   {"seed", &emulation.seed},     {"alloc_fails", &set.alloc_fails}};
    if (!strcmp(key, "report")) {
        snprintf(set.report, sizeof set.report, "%s", value);
        return;
    }
    if (!strcmp(key, "log")) {
        set.logging = fopen(value, "w");
        return;
    }
    if (!strcmp(key, "without")) {
        snprintf(emulation.without, sizeof emulation.without, "%s", value);
        return;
    }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(key, numbers[i].key)) {
            *numbers[i].to = strtoull(value, NULL, 10);
            return;
        }
    fprintf(stderr, "STELE_FAKE_CUDA: what is %s?\n", key);
    abort();
}

static __attribute__((constructor)) void read_settings(void)
{
    char text[8192], *save = NULL;
    const char *all = getenv("STELE_FAKE_CUDA");
    snprintf(text, sizeof text, "%s", all ? all : "");
    for (char *word = strtok_r(text, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
        char *equals = strchr(word, '=');
        if (!equals)
            abort();
        *equals = '\0';
        read_setting(word, equals + 1);
    }
    emulation.races = set.races;
}

static __attribute__((destructor)) void write_report(void)
{
    if (set.logging)
        fclose(set.logging);
    uint64_t allocations = 0, pinned = 0;
    FILE *f = set.report[0] ? fopen(set.report, "w") : NULL;
    if (!f)
        return;
    for (size_t i = 0; i < ALLOCATIONS; i++)
        allocations += has.allocations[i].bytes != 0;
    for (size_t i = 0; i < PINNED; i++)
        pinned += has.pinned[i].at != NULL;
    fprintf(f,
            "{\"alive\": {\"contexts\": %" PRIu64 ", \"modules\": %" PRIu64 ", \"streams\": %" PRIu64
            ", \"events\": %" PRIu64 ", \"graphs\": %" PRIu64 ", \"allocations\": %" PRIu64
            ", \"host_allocations\": %" PRIu64 ", \"pinned\": %" PRIu64 "}, \"pins\": %" PRIu64 ", \"copies\": %" PRIu64
            ", \"kernels\": %" PRIu64 ", \"graph_launches\": %" PRIu64 "}\n",
            has.contexts, has.modules, has.streams, has.events, has.graphs + has.execs, allocations, has.host_allocs,
            pinned, has.pins, has.copies, has.kernels, has.graph_launches);
    fclose(f);
}

/* The N-th call of a kind fails, and with sticky=1 the context with it. */
static cu_result count_call(uint64_t *calls, uint64_t fails, cu_result with)
{
    if (has.broken)
        return has.broken;
    if (++*calls != fails)
        return 0;
    if (set.sticky)
        has.broken = with;
    return with;
}

/* ---- streams: work is kept until somebody waits for it ---- */

struct cu_event {
    struct cu_stream *stream; /* of the last record; NULL: none */
    uint64_t ticket;
    double time; /* when it was reached */
};

enum work_kind { WORK_KERNEL, WORK_COPY, WORK_SET, WORK_RECORD, WORK_WAIT };

struct work {
    enum work_kind kind;
    enum cuda_kernel kernel;
    uint32_t blocks;
    uint8_t *args; /* owned */
    uint8_t *to;
    const uint8_t *from;
    size_t bytes;
    unsigned char byte;
    struct cu_stream *stream; /* whose work comes first, up to the ticket */
    uint64_t ticket;
    struct cu_event *event; /* that is recorded; it outlives its work, as the library has it */
};

struct cu_graph {
    struct work *works;
    size_t count, room;
};

struct cu_graph_exec {
    struct cu_graph list;
};

struct cu_stream {
    struct cu_graph queue; /* [done, count) is still to be done */
    size_t done;
    uint64_t tickets, reached; /* records put on, records done */
    struct cu_graph *capture;  /* NULL: none */
    bool kernels;              /* it had some */
};

#define FAKE_DECLARE(name, args, threads) void name##_emulated(const void *);
CUDA_KERNELS(FAKE_DECLARE)

static const struct {
    const char *name;
    void (*run)(const void *);
    size_t bytes;
    uint32_t threads;
} kernels[KERNELS] = {
#define FAKE_KERNEL(name, args, threads) {"stele_" #name, name##_emulated, sizeof(struct args_##args), threads},
    CUDA_KERNELS(FAKE_KERNEL)
};

static void add(struct cu_graph *list, struct work work)
{
    if (list->count == list->room) {
        list->room = 2 * list->room + 64;
        list->works = realloc(list->works, list->room * sizeof *list->works);
        if (!list->works)
            abort();
    }
    if (work.args) {
        uint8_t *args = malloc(kernels[work.kernel].bytes);
        if (!args)
            abort();
        memcpy(args, work.args, kernels[work.kernel].bytes);
        work.args = args;
    }
    list->works[list->count++] = work;
}

static void clear(struct cu_graph *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->works[i].args);
    free(list->works);
    *list = (struct cu_graph){0};
}

/* The device's memory opens for kernels and copies only. */
static void open_memory(bool open)
{
    if (has.arena && mprotect(has.arena, set.memory, open ? PROT_READ | PROT_WRITE : PROT_NONE))
        abort();
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void drain(struct cu_stream *stream, uint64_t ticket);
static bool is_device(cu_pointer pointer, size_t bytes);

static void do_work(struct cu_stream *stream, const struct work *w)
{
    switch (w->kind) {
    case WORK_KERNEL:
        if (set.logging)
            fprintf(set.logging, "kernel %s\n", kernels[w->kernel].name);
        emulate_launch(kernels[w->kernel].run, w->args, w->blocks, kernels[w->kernel].threads);
        break;
    case WORK_COPY:
        if (set.logging)
            fprintf(set.logging, "copy %s %zu %zu\n", is_device((cu_pointer)(uintptr_t)w->to, 1) ? "in" : "out",
                    (size_t)(w->to - has.arena), w->bytes);
        memmove(w->to, w->from, w->bytes);
        break;
    case WORK_SET:
        memset(w->to, w->byte, w->bytes);
        break;
    case WORK_RECORD:
        stream->reached = w->ticket;
        if (w->event)
            w->event->time = now();
        break;
    case WORK_WAIT:
        drain(w->stream, w->ticket);
        break;
    }
}

/* Does a stream's work up to the record with that ticket. */
static void drain(struct cu_stream *stream, uint64_t ticket)
{
    while (stream->done < stream->queue.count && stream->reached < ticket) {
        struct work w = stream->queue.works[stream->done++];
        do_work(stream, &w);
    }
    if (stream->done == stream->queue.count) {
        clear(&stream->queue);
        stream->done = 0;
    }
}

static void finish_stream(struct cu_stream *stream, uint64_t ticket)
{
    if (stream->done == stream->queue.count)
        return;
    open_memory(true);
    drain(stream, ticket);
    open_memory(false);
}

static cu_result put(struct cu_stream *stream, struct work work)
{
    if (has.broken)
        return has.broken;
    add(stream->capture ? stream->capture : &stream->queue, work);
    stream->kernels = stream->kernels || work.kind == WORK_KERNEL;
    if (set.eager && !stream->kernels && work.kind == WORK_COPY)
        finish_stream(stream, UINT64_MAX);
    return 0;
}

/* ---- the device ---- */

#define FAKE __attribute__((visibility("default")))
#define FAKE_PROTOTYPE(name, symbol, arguments) FAKE cu_result symbol arguments;
CUDA_DRIVER(FAKE_PROTOTYPE)

cu_result cuInit(unsigned flags)
{
    (void)flags;
    return (cu_result)set.init;
}

cu_result cuDriverGetVersion(int *version)
{
    *version = (int)set.version;
    return 0;
}

cu_result cuGetErrorName(cu_result result, const char **name)
{
    static const struct {
        cu_result result;
        const char *name;
    } names[] = {{INVALID, "CUDA_ERROR_INVALID_VALUE"},       {NO_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
                 {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"}, {NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED"},
                 {100, "CUDA_ERROR_NO_DEVICE"},               {999, "CUDA_ERROR_UNKNOWN"}};
    *name = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].result == result)
            *name = names[i].name;
    return *name ? 0 : INVALID;
}

cu_result cuDeviceGetCount(int *count)
{
    *count = (int)set.devices;
    return 0;
}

cu_result cuDeviceGet(int *device, int ordinal)
{
    *device = ordinal;
    return (uint64_t)ordinal < set.devices ? 0 : 101;
}

cu_result cuDeviceGetName(char *name, int bytes, int device)
{
    snprintf(name, (size_t)bytes, "emulated GPU %d", device);
    return 0;
}

cu_result cuDeviceTotalMem_v2(size_t *bytes, int device)
{
    (void)device;
    *bytes = set.memory;
    return 0;
}

cu_result cuDeviceGetAttribute(int *value, int attribute, int device)
{
    (void)device;
    *value = attribute == CU_HOST_PAGE_TABLES     ? (int)set.host
             : attribute == CU_READ_ONLY_REGISTER ? (int)set.registers
             : attribute == CU_PROCESSORS         ? 4
             : attribute == CU_MAJOR              ? 9
                                                  : 0;
    return 0;
}

/* ---- contexts and modules; one context at a time ---- */

cu_result cuCtxCreate_v2(cu_context *context, unsigned flags, int device)
{
    (void)flags, (void)device;
    has.arena = mmap(NULL, set.memory, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (has.arena == MAP_FAILED || has.contexts)
        abort();
    has.contexts++;
    *context = (cu_context)&has;
    return 0;
}

/* What is in the context goes with it, pinned slices too; but a caller that leaves them is not tidy: the report
 * counts. */
cu_result cuCtxDestroy_v2(cu_context context)
{
    (void)context;
    munmap(has.arena, set.memory);
    has.arena = NULL;
    has.contexts--;
    has.broken = 0;
    return 0;
}

cu_result cuCtxSetCurrent(cu_context context)
{
    return context ? has.broken : INVALID_CONTEXT;
}

cu_result cuCtxSynchronize(void)
{
    return has.broken;
}

cu_result cuModuleLoadData(cu_module *module, const void *image)
{
    if (memcmp(image, "emulated", 8))
        return CU_NO_BINARY;
    has.modules++;
    *module = (cu_module)&has;
    return has.broken;
}

cu_result cuModuleUnload(cu_module module)
{
    (void)module;
    has.modules--;
    return has.broken;
}

cu_result cuModuleGetFunction(cu_function *function, cu_module module, const char *name)
{
    (void)module;
    for (size_t i = 0; i < KERNELS; i++)
        if (!strcmp(name, kernels[i].name)) {
            *function = (cu_function)(uintptr_t)(i + 1);
            return 0;
        }
    return 500;
}

/* ---- memory ---- */

cu_result cuMemGetInfo_v2(size_t *free_bytes, size_t *total)
{
    *total = set.memory;
    *free_bytes = set.memory - has.allocated;
    return has.broken;
}

/* The first gap that is large enough, whose memory is all NaN. */
cu_result cuMemAlloc_v2(cu_pointer *pointer, size_t bytes)
{
    uint64_t at = 0;
    size_t place = 0;
    if (has.broken || ++has.allocs == set.alloc_fails)
        return has.broken ? has.broken : NO_MEMORY;
    bytes = round_up(bytes, 256);
    for (bool moved = true; moved;) {
        moved = false;
        for (size_t i = 0; i < ALLOCATIONS; i++) {
            const uint64_t from = has.allocations[i].from, end = from + has.allocations[i].bytes;
            if (end > from && at < end && from < at + bytes) {
                at = end;
                moved = true;
            }
        }
    }
    while (place < ALLOCATIONS && has.allocations[place].bytes)
        place++;
    if (!bytes || place == ALLOCATIONS || at + bytes > set.memory)
        return bytes ? NO_MEMORY : INVALID;
    has.allocations[place].from = at;
    has.allocations[place].bytes = bytes;
    has.allocated += bytes;
    open_memory(true);
    memset(has.arena + at, 0xff, bytes);
    open_memory(false);
    *pointer = (cu_pointer)(uintptr_t)(has.arena + at);
    return 0;
}

cu_result cuMemFree_v2(cu_pointer pointer)
{
    for (size_t i = 0; i < ALLOCATIONS; i++)
        if (has.allocations[i].bytes && (cu_pointer)(uintptr_t)(has.arena + has.allocations[i].from) == pointer) {
            has.allocated -= has.allocations[i].bytes;
            has.allocations[i].bytes = 0;
            return has.broken;
        }
    return INVALID;
}

/* Within one allocation? */
static bool is_device(cu_pointer pointer, size_t bytes)
{
    const uint64_t at = pointer - (cu_pointer)(uintptr_t)has.arena;
    for (size_t i = 0; i < ALLOCATIONS; i++)
        if (at >= has.allocations[i].from && at - has.allocations[i].from < has.allocations[i].bytes &&
            bytes <= has.allocations[i].bytes - (at - has.allocations[i].from))
            return true;
    return false;
}

cu_result cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags)
{
    (void)flags;
    if (has.broken)
        return has.broken;
    *pointer = aligned_alloc(4096, round_up(bytes, 4096)); /* whole pages, as the driver gives them */
    if (!*pointer)
        return NO_MEMORY;
    memset(*pointer, 0xff, bytes);
    has.host_allocs++;
    return 0;
}

cu_result cuMemFreeHost(void *pointer)
{
    free(pointer);
    has.host_allocs--;
    return has.broken;
}

/* May the process write to the page? */
static bool is_writable(const void *at)
{
    char line[512], mode[8];
    bool writable = false;
    FILE *f = fopen("/proc/self/maps", "r");
    while (f && fgets(line, sizeof line, f)) {
        uintptr_t from, to;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %7s", &from, &to, mode) == 3 && (uintptr_t)at >= from &&
            (uintptr_t)at < to)
            writable = mode[1] == 'w';
    }
    if (f)
        fclose(f);
    return writable;
}

/* A driver refuses to pin pages that cannot be written, but read-only where it can do that. */
cu_result cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned flags)
{
    uint8_t *at = pointer;
    size_t place = PINNED;
    cu_result result = count_call(&has.pins, set.pin_fails, LAUNCH_FAILED);
    if (result)
        return result;
    if ((flags & CU_REGISTER_READ_ONLY) && !set.registers)
        return NOT_SUPPORTED;
    if (!(flags & CU_REGISTER_READ_ONLY) && !is_writable(pointer))
        return NOT_PERMITTED;
    for (size_t i = 0; i < PINNED; i++) {
        if (has.pinned[i].at && at < has.pinned[i].at + has.pinned[i].bytes && has.pinned[i].at < at + bytes)
            return REGISTERED_TWICE;
        place = has.pinned[i].at ? place : i;
    }
    if (place == PINNED)
        return NO_MEMORY;
    has.pinned[place].at = at;
    has.pinned[place].bytes = bytes;
    return 0;
}

cu_result cuMemHostUnregister(void *pointer)
{
    for (size_t i = 0; i < PINNED; i++)
        if (has.pinned[i].at == pointer) {
            has.pinned[i].at = NULL;
            return has.broken;
        }
    return INVALID;
}

cu_result cuMemHostGetDevicePointer_v2(cu_pointer *out, void *pointer, unsigned flags)
{
    (void)flags;
    uint8_t *at = pointer;
    for (size_t i = 0; i < PINNED; i++)
        if (has.pinned[i].at && at >= has.pinned[i].at && at < has.pinned[i].at + has.pinned[i].bytes) {
            *out = (cu_pointer)(uintptr_t)pointer;
            return has.broken;
        }
    return INVALID;
}

static cu_result put_copy(cu_stream stream, void *to, const void *from, size_t bytes)
{
    cu_result result = count_call(&has.copies, set.copy_fails, LAUNCH_FAILED);
    return result ? result : put(stream, (struct work){.kind = WORK_COPY, .to = to, .from = from, .bytes = bytes});
}

cu_result cuMemcpyHtoDAsync_v2(cu_pointer to, const void *from, size_t bytes, cu_stream stream)
{
    return is_device(to, bytes) ? put_copy(stream, (void *)(uintptr_t)to, from, bytes) : INVALID;
}

cu_result cuMemcpyDtoHAsync_v2(void *to, cu_pointer from, size_t bytes, cu_stream stream)
{
    return is_device(from, bytes) ? put_copy(stream, to, (const void *)(uintptr_t)from, bytes) : INVALID;
}

cu_result cuMemcpyDtoDAsync_v2(cu_pointer to, cu_pointer from, size_t bytes, cu_stream stream)
{
    if (!is_device(to, bytes) || !is_device(from, bytes))
        return INVALID;
    return put_copy(stream, (void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes);
}

cu_result cuMemsetD8Async(cu_pointer to, unsigned char byte, size_t bytes, cu_stream stream)
{
    if (!is_device(to, bytes))
        return INVALID;
    return put(stream, (struct work){.kind = WORK_SET, .to = (uint8_t *)(uintptr_t)to, .byte = byte, .bytes = bytes});
}

/* ---- streams, events, graphs ---- */

cu_result cuStreamCreate(cu_stream *stream, unsigned flags)
{
    (void)flags;
    *stream = calloc(1, sizeof **stream);
    has.streams++;
    return *stream ? has.broken : NO_MEMORY;
}

cu_result cuStreamDestroy_v2(cu_stream stream)
{
    clear(&stream->queue);
    free(stream);
    has.streams--;
    return has.broken;
}

cu_result cuStreamSynchronize(cu_stream stream)
{
    if (!has.broken)
        finish_stream(stream, UINT64_MAX);
    return has.broken;
}

cu_result cuStreamWaitEvent(cu_stream stream, cu_event event, unsigned flags)
{
    (void)flags;
    if (!event->stream)
        return has.broken;
    return put(stream, (struct work){.kind = WORK_WAIT, .stream = event->stream, .ticket = event->ticket});
}

cu_result cuEventCreate(cu_event *event, unsigned flags)
{
    (void)flags;
    *event = calloc(1, sizeof **event);
    has.events++;
    return *event ? has.broken : NO_MEMORY;
}

cu_result cuEventDestroy_v2(cu_event event)
{
    free(event);
    has.events--;
    return has.broken;
}

cu_result cuEventRecord(cu_event event, cu_stream stream)
{
    event->stream = stream;
    event->ticket = ++stream->tickets;
    return put(stream, (struct work){.kind = WORK_RECORD, .ticket = event->ticket, .event = event});
}

cu_result cuEventSynchronize(cu_event event)
{
    if (!has.broken && event->stream)
        finish_stream(event->stream, event->ticket);
    return has.broken;
}

/* Of events of a stream that was waited for. */
cu_result cuEventElapsedTime(float *ms, cu_event begin, cu_event end)
{
    *ms = (float)(1e3 * (end->time - begin->time));
    return has.broken;
}

cu_result cuStreamBeginCapture_v2(cu_stream stream, int mode)
{
    (void)mode;
    stream->capture = calloc(1, sizeof *stream->capture);
    has.graphs++;
    return stream->capture ? has.broken : NO_MEMORY;
}

cu_result cuStreamEndCapture(cu_stream stream, cu_graph *graph)
{
    *graph = stream->capture;
    stream->capture = NULL;
    return has.broken;
}

cu_result cuGraphInstantiateWithFlags(cu_graph_exec *exec, cu_graph graph, unsigned long long flags)
{
    (void)flags;
    *exec = calloc(1, sizeof **exec);
    if (!*exec)
        return NO_MEMORY;
    has.execs++;
    for (size_t i = 0; i < graph->count; i++)
        add(&(*exec)->list, graph->works[i]);
    return has.broken;
}

cu_result cuGraphDestroy(cu_graph graph)
{
    clear(graph);
    free(graph);
    has.graphs--;
    return has.broken;
}

cu_result cuGraphExecDestroy(cu_graph_exec exec)
{
    clear(&exec->list);
    free(exec);
    has.execs--;
    return has.broken;
}

cu_result cuGraphLaunch(cu_graph_exec exec, cu_stream stream)
{
    has.graph_launches++;
    for (size_t i = 0; i < exec->list.count && !has.broken; i++)
        put(stream, exec->list.works[i]);
    return has.broken;
}

cu_result cuLaunchKernel(cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                         unsigned block_y, unsigned block_z, unsigned shared_bytes, cu_stream stream, void **arguments,
                         void **extra)
{
    const enum cuda_kernel kernel = (enum cuda_kernel)((uintptr_t)function - 1);
    cu_result result = count_call(&has.kernels, set.kernel_fails, LAUNCH_FAILED);
    if (result)
        return result;
    if (!grid_x || grid_x > INT32_MAX || grid_y != 1 || grid_z != 1 || block_x != kernels[kernel].threads ||
        block_y != 1 || block_z != 1 || shared_bytes || extra)
        return INVALID;
    if (set.logging)
        fprintf(set.logging, "put %s\n", kernels[kernel].name);
    return put(stream, (struct work){.kind = WORK_KERNEL, .kernel = kernel, .blocks = grid_x, .args = arguments[0]});
}
