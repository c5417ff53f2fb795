/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the back end share: the context of one GPU and its first error.
 *
 *     driver.c   the driver's library
 *     weights.c  where the weights are: kept in the device's memory, read over the bus, or brought through a ring
 *     ring.c     the file, read into pinned buffers
 *     launch.c   kernels, one by one or as graphs
 *     device.c   the back end: memory, steps; its ops are in files of their own (device.h)
 *     cuda_library.c  what libstele-cuda.so shows
 *
 * Calls go on after an error and do nothing; who waits (finish) says it. */
#ifndef CUDA_GPU_H
#define CUDA_GPU_H

#include "args.h"
#include "driver.h"
#include "ops.h"

struct gpu {
    const struct driver *driver;
    int device; /* the driver's handle */
    cu_context context;
    cu_stream compute, transfer;
    enum stele_status status; /* of the first call that failed */
    struct stele_error error;
};

/* True while all went well. `result` is that of a call just made, `what` what it was for: "copying weights". */
bool gpu_ok(struct gpu *gpu, cu_result result, const char *what);

#define GPU(gpu, call, what, ...) gpu_ok(gpu, (gpu)->status ? 0 : (gpu)->driver->call(__VA_ARGS__), what)

/* Memory of the device. An error says how much was wanted for what, and what is free. */
cu_pointer gpu_alloc(struct gpu *gpu, uint64_t bytes, const char *what);
void gpu_free(struct gpu *gpu, cu_pointer *pointer);

static inline void *gpu_address(cu_pointer pointer)
{
    return (void *)(uintptr_t)pointer;
}

extern const struct blas_backend cuda_backend; /* device.c */

/* ---- weights.c ---- */

enum reach { REACH_HOST, REACH_REGISTER, REACH_REMAP, REACH_RING, REACHES };

extern const char *const reach_names[REACHES]; /* as STELE_CUDA_MAP spells them */

/* Whether this GPU could reach the weights so; else *why is the end of a sentence. */
bool reach_possible(const struct gpu *gpu, enum reach reach, const struct blas_weights *weights, const char **why);

struct weights;

/* Chooses what is kept, in up to `limit` bytes of the `room` that is free, and begins to bring it. NULL: gpu->error;
 * *refused is then true where it was the way of reaching them that failed, so that another may be tried on a new
 * context. */
struct weights *weights_open(struct gpu *gpu, const struct blas_weights *weights, enum reach reach, uint64_t room,
                             uint64_t limit, bool *refused);
void weights_close(struct gpu *gpu, struct weights *weights);

/* The device's address of what lies at `host` in the mapping, for kernels launched from now on until weights_release.
 * What is not there yet comes now, and the compute stream waits for it. NULL stays NULL. */
const void *weights_at(struct gpu *gpu, struct weights *weights, const void *host);

/* The kernels that use what weights_at gave are launched. */
void weights_release(struct gpu *gpu, struct weights *weights);

/* To be called when the compute stream is idle: lets go of what only brought weights. */
void weights_settle(struct gpu *gpu, struct weights *weights);

/* All are where they stay: weights_at answers without a call. */
bool weights_settled(const struct weights *weights);
uint64_t weights_kept(const struct weights *weights);
double weights_upload(const struct weights *weights); /* seconds; 0: not all is there yet */

/* ---- ring.c ---- */

/* gpu->status says what went wrong; what there is is to be closed all the same. `file` stays the caller's. */
struct ring;
struct ring *ring_open(struct gpu *gpu, const struct blas_weights *file);
void ring_close(struct gpu *gpu, struct ring *ring); /* NULL is allowed */

/* Brings bytes [from, from + length) of the file to the device, on the transfer stream. `once`: nobody is likely to
 * need them in memory again. */
void ring_bring(struct gpu *gpu, struct ring *ring, uint64_t from, uint64_t length, cu_pointer to, bool once);

/* ---- launch.c ---- */

struct launcher;
struct launcher *launcher_open(struct gpu *gpu);
void launcher_close(struct gpu *gpu, struct launcher *launcher);

/* Launches `blocks` blocks, or, between launcher_record and launcher_flush, writes them down. */
void launch(struct gpu *gpu, struct launcher *launcher, enum cuda_kernel kernel, uint64_t blocks, const void *args);
void launcher_record(struct launcher *launcher);
bool launcher_recording(const struct launcher *launcher);

/* Runs what was written down: a list that was seen before as one graph. */
void launcher_flush(struct gpu *gpu, struct launcher *launcher);

#endif
