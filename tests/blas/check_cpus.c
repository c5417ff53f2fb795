/* SPDX-License-Identifier: Apache-2.0 */
/* Quotas of control groups, in trees of files as the kernel and containers show them. */
#include <limits.h>
#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cpus.h"
#include "../suite.h"

static char root[64];

static void make_root(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(root, sizeof root, "%.40s/cpus-XXXXXX", base ? base : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(root));
}

static void remove_root(void)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf '%s'", root);
    ck_assert_int_eq(system(command), 0);
}

/* Writes a file below the root, and its folders. */
static void put(const char *path, const char *text)
{
    char full[PATH_MAX];
    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *at = full + strlen(root) + 1; (at = strchr(at, '/')); *at++ = '/') {
        *at = 0;
        mkdir(full, 0755);
    }
    FILE *f = fopen(full, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}

START_TEST(without_control_groups_there_is_no_quota)
{
    ck_assert(isinf(cpus_quota(root)));
    put("/proc/self/cgroup", "");
    ck_assert(isinf(cpus_quota(root)));
    put("/proc/self/cgroup", "0::/\n");
    ck_assert(isinf(cpus_quota(root)));
}
END_TEST

START_TEST(version_2_takes_the_smallest_quota_up_to_the_mount)
{
    put("/proc/self/cgroup", "0::/user.slice/job\n");
    put("/sys/fs/cgroup/user.slice/job/cpu.max", "max 100000\n");
    ck_assert(isinf(cpus_quota(root)));
    put("/sys/fs/cgroup/user.slice/cpu.max", "150000 100000\n");
    ck_assert(cpus_quota(root) == 1.5);
    put("/sys/fs/cgroup/user.slice/job/cpu.max", "400000 100000\n");
    ck_assert(cpus_quota(root) == 1.5);
    put("/sys/fs/cgroup/user.slice/job/cpu.max", "50000 100000\n");
    ck_assert(cpus_quota(root) == 0.5);
}
END_TEST

START_TEST(version_1_has_its_quota_in_two_files)
{
    put("/proc/self/cgroup", "9:name=systemd:/\n4:memory:/a\n3:cpuset:/a\n1:cpu,cpuacct:/a\n0::/\n");
    put("/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
    ck_assert(isinf(cpus_quota(root)));
    put("/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "300000\n");
    ck_assert(cpus_quota(root) == 3);
}
END_TEST

START_TEST(a_container_that_sees_its_group_as_the_mount_has_its_quota)
{
    put("/proc/self/cgroup", "1:cpu:/docker/0123456789\n0::/../../outside\n");
    put("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n");
    put("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    ck_assert(cpus_quota(root) == 2);
    put("/sys/fs/cgroup/cpu.max", "100000 100000\n");
    ck_assert(cpus_quota(root) == 1);
}
END_TEST

START_TEST(nonsense_is_no_quota)
{
    static char longest[9000];
    memset(longest, '/', sizeof longest - 1);
    memcpy(longest, "0::", 3);
    static const char *const texts[] = {"0", "0:", "::", "0::\n\n0:cpu", "no colons at all\n", longest};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        put("/proc/self/cgroup", texts[i]);
        ck_assert_msg(isinf(cpus_quota(root)), "text %zu", i);
    }
    put("/proc/self/cgroup", "0::/\n");
    static const char *const quotas[] = {"", "max", "-5 100000", "100000 0", "nan nan", "0 0", "many 100000"};
    for (size_t i = 0; i < sizeof quotas / sizeof *quotas; i++) {
        put("/sys/fs/cgroup/cpu.max", quotas[i]);
        ck_assert_msg(isinf(cpus_quota(root)), "%s", quotas[i]);
    }
}
END_TEST

START_TEST(threads_are_from_1_to_the_most)
{
    ck_assert_uint_eq(cpus_threads(1), 1);
    ck_assert_uint_ge(cpus_threads(256), 1);
    cpu_set_t set;
    ck_assert_int_eq(sched_getaffinity(0, sizeof set, &set), 0);
    ck_assert_uint_le(cpus_threads(256), (unsigned)CPU_COUNT(&set));
}
END_TEST

START_TEST(lists_that_are_none_are_refused)
{
    static const char *const lists[] = {"", ",", "a", "1-", "-1", "3-1", "0,", "0,,0", "0 ", "0-0-0", "8192", "99999999999999999999",
                                        "0-99999999999999999999", "+0", "0x0"};
    struct stele_error err;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        ck_assert_msg(cpus_confine(lists[i], &err) == STELE_USAGE, "%s", lists[i]);
    ck_assert(cpus_confine("8191", &err) == STELE_USAGE);
    ck_assert_ptr_nonnull(strstr(err.text, "may not use CPU 8191"));
}
END_TEST

START_TEST(a_list_confines)
{
    cpu_set_t set;
    char list[64];
    struct stele_error err;
    ck_assert_int_eq(sched_getaffinity(0, sizeof set, &set), 0);
    int cpu = 0;
    while (!CPU_ISSET(cpu, &set))
        cpu++;
    snprintf(list, sizeof list, "%d,%d-%d", cpu, cpu, cpu);
    ck_assert(cpus_confine(list, &err) == STELE_OK);
    ck_assert_uint_eq(cpus_threads(256), 1);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("cpus");
    TCase *tc = tcase_create("cpus");
    tcase_add_checked_fixture(tc, make_root, remove_root);
    tcase_add_test(tc, without_control_groups_there_is_no_quota);
    tcase_add_test(tc, version_2_takes_the_smallest_quota_up_to_the_mount);
    tcase_add_test(tc, version_1_has_its_quota_in_two_files);
    tcase_add_test(tc, a_container_that_sees_its_group_as_the_mount_has_its_quota);
    tcase_add_test(tc, nonsense_is_no_quota);
    tcase_add_test(tc, threads_are_from_1_to_the_most);
    tcase_add_test(tc, lists_that_are_none_are_refused);
    tcase_add_test(tc, a_list_confines);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
