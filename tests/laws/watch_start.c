/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a program and counts what it asks of the kernel: tests/end_to_end/test_laws.py.
 *
 *     watch_start REPORT PROGRAM ARGUMENTS...
 *
 * REPORT gets a line `NUMBER COUNT` for each system call that any of its threads made after exec, and `rss KIB` and `mode
 * r--s` for the mappings of files named *.stele, as they were when the process began to unmap or to end (the most of what
 * was seen). Its exit code is the program's, 128 + N where signal N ended it. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CALLS_MAX = 512 };

static unsigned long counts[CALLS_MAX];
static unsigned long rss_kib_most;
static char mode[8] = "none";

/* Adds up Rss of the image's mappings. */
static void look_at_mappings(pid_t pid)
{
    char path[64], line[4096], permissions[8];
    snprintf(path, sizeof path, "/proc/%d/smaps", (int)pid);
    FILE *f = fopen(path, "re");
    unsigned long kib, sum = 0;
    int inside = 0;
    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "%*[0-9a-f]-%*[0-9a-f] %7s", permissions) == 1) {
            inside = strstr(line, ".stele\n") != NULL;
            if (inside)
                snprintf(mode, sizeof mode, "%s", permissions);
        } else if (inside && sscanf(line, "Rss: %lu", &kib) == 1)
            sum += kib;
    }
    if (f)
        fclose(f);
    rss_kib_most = sum > rss_kib_most ? sum : rss_kib_most;
}

static void on_stop(pid_t pid)
{
    struct __ptrace_syscall_info info;
    if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof info, &info) <= 0 || info.op != PTRACE_SYSCALL_INFO_ENTRY)
        return;
    if (info.entry.nr < CALLS_MAX)
        counts[info.entry.nr]++;
    if (info.entry.nr == SYS_munmap || info.entry.nr == SYS_exit_group)
        look_at_mappings(pid);
}

static int report(const char *path, int code)
{
    FILE *f = fopen(path, "we");
    if (!f) {
        perror(path);
        return 125;
    }
    for (int i = 0; i < CALLS_MAX; i++)
        if (counts[i])
            fprintf(f, "%d %lu\n", i, counts[i]);
    fprintf(f, "rss %lu\nmode %s\n", rss_kib_most, mode);
    return fclose(f) ? 125 : code;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 125;
    pid_t child = fork();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        execv(argv[2], argv + 2);
        _exit(127);
    }
    int status, code = 125;
    if (child < 0 || waitpid(child, &status, 0) != child || !WIFSTOPPED(status)) /* at exec */
        return 125;
    long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL;
    if (ptrace(PTRACE_SETOPTIONS, child, NULL, (void *)options) || ptrace(PTRACE_SYSCALL, child, NULL, NULL)) {
        perror("ptrace");
        kill(child, SIGKILL);
        return 126;
    }
    for (pid_t pid; (pid = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR;) {
        if (pid <= 0)
            continue;
        if (!WIFSTOPPED(status)) {
            if (pid == child)
                code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            continue;
        }
        int by = WSTOPSIG(status);
        if (by == (SIGTRAP | 0x80))
            on_stop(pid);
        int own = by == (SIGTRAP | 0x80) || by == SIGTRAP || by == SIGSTOP; /* not the program's */
        ptrace(PTRACE_SYSCALL, pid, NULL, own ? NULL : (void *)(long)by);
    }
    return report(argv[1], code);
}
