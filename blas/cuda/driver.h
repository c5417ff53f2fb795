/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA driver's library, opened at run time. Debian has no header of it, so what is used of it is declared here. */
#ifndef CUDA_DRIVER_H
#define CUDA_DRIVER_H

#include "error.h"
#include "types.h"

typedef int cu_result; /* 0: done */
typedef uint64_t cu_pointer;
typedef struct cu_context *cu_context;
typedef struct cu_module *cu_module;
typedef struct cu_function *cu_function;
typedef struct cu_stream *cu_stream;
typedef struct cu_event *cu_event;
typedef struct cu_graph *cu_graph;
typedef struct cu_graph_exec *cu_graph_exec;

enum {
    CU_OUT_OF_MEMORY = 2,
    CU_NO_BINARY = 209,
    CU_UNSUPPORTED_PTX = 222,

    CU_PROCESSORS = 16, /* attributes of a device */
    CU_INTEGRATED = 18,
    CU_MAJOR = 75,
    CU_MINOR = 76,
    CU_HOST_PAGE_TABLES = 100,
    CU_READ_ONLY_REGISTER = 113,

    CU_REGISTER_DEVICEMAP = 2, /* flags */
    CU_REGISTER_READ_ONLY = 8,
    CU_STREAM_NON_BLOCKING = 1,
    CU_EVENT_TIMING = 0,
    CU_EVENT_NO_TIMING = 2,
    CU_CAPTURE_RELAXED = 2,
};

/* Name in struct driver, symbol in the library, arguments. */
#define CUDA_DRIVER(X)                                                                                                 \
    X(init, cuInit, (unsigned flags))                                                                                  \
    X(version, cuDriverGetVersion, (int *version))                                                                     \
    X(error_name, cuGetErrorName, (cu_result result, const char **name))                                               \
    X(device_count, cuDeviceGetCount, (int *count))                                                                    \
    X(device_get, cuDeviceGet, (int *device, int ordinal))                                                             \
    X(device_name, cuDeviceGetName, (char *name, int bytes, int device))                                               \
    X(device_memory, cuDeviceTotalMem_v2, (size_t * bytes, int device))                                                \
    X(device_attribute, cuDeviceGetAttribute, (int *value, int attribute, int device))                                 \
    X(context_create, cuCtxCreate_v2, (cu_context * context, unsigned flags, int device))                              \
    X(context_destroy, cuCtxDestroy_v2, (cu_context context))                                                          \
    X(context_set, cuCtxSetCurrent, (cu_context context))                                                              \
    X(context_wait, cuCtxSynchronize, (void))                                                                          \
    X(module_load, cuModuleLoadData, (cu_module * module, const void *image))                                          \
    X(module_unload, cuModuleUnload, (cu_module module))                                                               \
    X(module_function, cuModuleGetFunction, (cu_function * function, cu_module module, const char *name))              \
    X(memory_info, cuMemGetInfo_v2, (size_t * free, size_t *total))                                                    \
    X(memory_alloc, cuMemAlloc_v2, (cu_pointer * pointer, size_t bytes))                                               \
    X(memory_free, cuMemFree_v2, (cu_pointer pointer))                                                                 \
    X(host_alloc, cuMemHostAlloc, (void **pointer, size_t bytes, unsigned flags))                                      \
    X(host_free, cuMemFreeHost, (void *pointer))                                                                       \
    X(host_register, cuMemHostRegister_v2, (void *pointer, size_t bytes, unsigned flags))                              \
    X(host_unregister, cuMemHostUnregister, (void *pointer))                                                           \
    X(host_pointer, cuMemHostGetDevicePointer_v2, (cu_pointer * out, void *pointer, unsigned flags))                   \
    X(copy_in, cuMemcpyHtoDAsync_v2, (cu_pointer to, const void *from, size_t bytes, cu_stream stream))                \
    X(copy_out, cuMemcpyDtoHAsync_v2, (void *to, cu_pointer from, size_t bytes, cu_stream stream))                     \
    X(copy, cuMemcpyDtoDAsync_v2, (cu_pointer to, cu_pointer from, size_t bytes, cu_stream stream))                    \
    X(set, cuMemsetD8Async, (cu_pointer to, unsigned char byte, size_t bytes, cu_stream stream))                       \
    X(stream_create, cuStreamCreate, (cu_stream * stream, unsigned flags))                                             \
    X(stream_destroy, cuStreamDestroy_v2, (cu_stream stream))                                                          \
    X(stream_wait, cuStreamSynchronize, (cu_stream stream))                                                            \
    X(stream_wait_event, cuStreamWaitEvent, (cu_stream stream, cu_event event, unsigned flags))                        \
    X(stream_capture, cuStreamBeginCapture_v2, (cu_stream stream, int mode))                                           \
    X(stream_captured, cuStreamEndCapture, (cu_stream stream, cu_graph * graph))                                       \
    X(event_create, cuEventCreate, (cu_event * event, unsigned flags))                                                 \
    X(event_destroy, cuEventDestroy_v2, (cu_event event))                                                              \
    X(event_record, cuEventRecord, (cu_event event, cu_stream stream))                                                 \
    X(event_wait, cuEventSynchronize, (cu_event event))                                                                \
    X(event_elapsed, cuEventElapsedTime, (float *ms, cu_event begin, cu_event end))                                    \
    X(graph_make, cuGraphInstantiateWithFlags, (cu_graph_exec * exec, cu_graph graph, unsigned long long flags))       \
    X(graph_destroy, cuGraphDestroy, (cu_graph graph))                                                                 \
    X(graph_exec_destroy, cuGraphExecDestroy, (cu_graph_exec exec))                                                    \
    X(graph_launch, cuGraphLaunch, (cu_graph_exec exec, cu_stream stream))                                             \
    X(launch, cuLaunchKernel,                                                                                          \
      (cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,    \
       unsigned block_z, unsigned shared_bytes, cu_stream stream, void **arguments, void **extra))

struct driver {
#define CUDA_DRIVER_FIELD(name, symbol, arguments) cu_result(*name) arguments;
    CUDA_DRIVER(CUDA_DRIVER_FIELD)
#undef CUDA_DRIVER_FIELD
};

/* The driver, opened once for the process and never closed: other threads may be in it at exit. STELE_SYSTEM says in
 * one sentence why there is no GPU to compute on. */
enum stele_status driver_open(const struct driver **out, struct stele_error *err);

/* As the driver spells a result: "CUDA_ERROR_OUT_OF_MEMORY". */
const char *driver_says(const struct driver *driver, cu_result result);

#endif
