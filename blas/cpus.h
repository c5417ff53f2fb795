/* SPDX-License-Identifier: Apache-2.0 */
/* How many CPUs this process may use, and which. */
#ifndef BLAS_CPUS_H
#define BLAS_CPUS_H

#include "error.h"
#include "types.h"

/* The threads of a run that asks for no number: the CPUs of the affinity mask, but no more than the quota of the control
 * groups gives, rounded up (a thread more than the quota uses its last part; a thread for each core of the host would only be
 * stopped). From 1 to `most`. */
uint32_t cpus_threads(uint32_t most);

/* The smallest quota of the process's control group and those above it, in CPUs, version 2 (cpu.max) and 1
 * (cpu.cfs_quota_us); infinity where there is none. Files are sought below `root`, which is "" but in tests. */
double cpus_quota(const char *root);

/* Confines the process, and threads that start later, to the CPUs of a list as "0-3,8". STELE_USAGE: no list, or a CPU that
 * this process may not use. */
enum stele_status cpus_confine(const char *list, struct stele_error *err);

#endif
