/* SPDX-License-Identifier: Apache-2.0 */
#include "cpus.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CPUS_MAX = 8192 }; /* what Linux can be built for */

struct cpus {
    cpu_set_t sets[CPUS_MAX / CPU_SETSIZE];
};

/* ---- the quota ---- */

/* The text of a small file, cut off where it is longer; false where it cannot be read. */
static bool read_text(const char *path, char *text, size_t room)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, room - 1);
    if (fd >= 0)
        close(fd);
    text[n < 0 ? 0 : n] = 0;
    return n > 0;
}

/* A quota of one group in CPUs: "max 100000" or "150000 100000" of version 2; of version 1 -1 or a number in each of two
 * files. Infinity: none, or no such group. */
static double group_quota(const char *folder, bool second)
{
    char path[2 * PATH_MAX], text[64];
    double quota = 0, period = 0;
    snprintf(path, sizeof path, "%s/%s", folder, second ? "cpu.max" : "cpu.cfs_quota_us");
    if (!read_text(path, text, sizeof text))
        return INFINITY;
    if (second) {
        if (sscanf(text, "%lf %lf", &quota, &period) != 2)
            return INFINITY;
    } else {
        quota = strtod(text, NULL);
        snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
        if (!read_text(path, text, sizeof text))
            return INFINITY;
        period = strtod(text, NULL);
    }
    return quota > 0 && period > 0 ? quota / period : HUGE_VAL;
}

/* The smallest quota from `mount` + `group` up to `mount`. A container may see its own group as the mount itself while
 * /proc names it as the host does; then nothing is found below and the mount counts. */
static double smallest_quota(const char *root, const char *mount, const char *group, bool second)
{
    char folder[PATH_MAX + 256];
    int base = snprintf(folder, sizeof folder, "%s%s", root, mount);
    if (base < 0 || (size_t)base + strlen(group) >= sizeof folder)
        return INFINITY;
    strcpy(folder + base, strstr(group, "..") || !group[1] ? "" : group);
    double least = INFINITY;
    for (;;) {
        double quota = group_quota(folder, second);
        least = quota < least ? quota : least;
        char *slash = strrchr(folder + base, '/');
        if (!slash)
            return least;
        *slash = 0;
    }
}

/* Is "cpu" among names separated by commas? */
static bool names_cpu(const char *names)
{
    for (const char *at = names; *at; at += strcspn(at, ","), at += *at == ',')
        if (!strncmp(at, "cpu", 3) && (at[3] == ',' || !at[3]))
            return true;
    return false;
}

double cpus_quota(const char *root)
{
    char path[PATH_MAX], text[8192], *next;
    double least = INFINITY;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    if (!read_text(path, text, sizeof text))
        return least;
    for (char *line = text; *line; line = next) { /* "4:cpu,cpuacct:/group", or "0::/group" of version 2 */
        next = line + strcspn(line, "\n");
        if (*next)
            *next++ = 0;
        char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = 0;
        bool second = !names[1];
        if (!second && !names_cpu(names + 1))
            continue;
        double quota = smallest_quota(root, second ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu", group, second);
        least = quota < least ? quota : least;
    }
    return least;
}

/* ---- the mask ---- */

uint32_t cpus_threads(uint32_t most)
{
    struct cpus mask;
    int n = sched_getaffinity(0, sizeof mask, mask.sets) ? 1 : CPU_COUNT_S(sizeof mask, mask.sets);
    double quota = n > 1 ? ceil(cpus_quota("")) : HUGE_VAL, threads = n < 1 ? 1 : n;
    threads = quota < threads ? quota : threads;
    return threads < most ? (uint32_t)threads : most;
}

/* One part of a list, "3" or "3-5", into the set; NULL where there is none, else what follows it. */
static const char *read_range(const char *at, struct cpus *set)
{
    char *end;
    if (*at < '0' || *at > '9')
        return NULL;
    errno = 0;
    unsigned long first = strtoul(at, &end, 10), last = first;
    if (*end == '-') {
        if (end[1] < '0' || end[1] > '9')
            return NULL;
        last = strtoul(end + 1, &end, 10);
    }
    if (errno || last < first || last >= CPUS_MAX)
        return NULL;
    for (unsigned long i = first; i <= last; i++)
        CPU_SET_S(i, sizeof *set, set->sets);
    return end;
}

enum stele_status cpus_confine(const char *list, struct stele_error *err)
{
    struct cpus wanted = {0}, may;
    for (const char *at = list;; at++) {
        at = read_range(at, &wanted);
        if (!at || (*at && *at != ','))
            return stele_fail(err, STELE_USAGE, "--cpus takes numbers and ranges below %d, as \"0-3,8\", not \"%s\"", CPUS_MAX,
                              list);
        if (!*at)
            break;
    }
    if (sched_getaffinity(0, sizeof may, may.sets))
        return stele_fail(err, STELE_SYSTEM, "cannot read the CPUs of this process: %s", strerror(errno));
    for (int i = 0; i < CPUS_MAX; i++)
        if (CPU_ISSET_S(i, sizeof wanted, wanted.sets) && !CPU_ISSET_S(i, sizeof may, may.sets))
            return stele_fail(err, STELE_USAGE, "--cpus %s: this process may not use CPU %d", list, i);
    if (sched_setaffinity(0, sizeof wanted, wanted.sets))
        return stele_fail(err, STELE_SYSTEM, "--cpus %s: %s", list, strerror(errno));
    return STELE_OK;
}
