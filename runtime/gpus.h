/* SPDX-License-Identifier: Apache-2.0 */
/* Where GPUs come from: libstele-cuda.so, opened at the first need. */
#ifndef RUNTIME_GPUS_H
#define RUNTIME_GPUS_H

#include "error.h"
#include "ops.h"

/* The back end that `device` (stele_options) names, and which of its devices. *may_be_cpu: "auto", a GPU was found, and
 * where it cannot be opened the CPU does. STELE_USAGE: no such name; STELE_SYSTEM: why there is no GPU. */
enum stele_status gpus_backend(const struct blas_backend **out, int *ordinal, bool *may_be_cpu, const char *device,
                               struct stele_error *err);

#endif
