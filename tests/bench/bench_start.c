/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a program and says, in milliseconds from the moment before exec, when its first byte of
 * standard output came and when it was gone. The program's standard error is passed on.
 *
 *   bench_start PROGRAM ARGUMENT...
 *
 * Prints {"first_byte_ms": …, "gone_ms": …, "minor_faults": …, "code": …} as the last line of its
 * standard output. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

int main(int argc, char **argv)
{
    int out[2];
    if (argc < 2 || pipe2(out, O_CLOEXEC)) {
        fputs("usage: bench_start PROGRAM ARGUMENT...\n", stderr);
        return 2;
    }
    volatile double begin = 0; /* set by the child, which shares memory until it runs the program */
    pid_t child = vfork();
    if (child == 0) {
        dup2(out[1], STDOUT_FILENO);
        begin = now_ms();
        execv(argv[1], argv + 1);
        _exit(127);
    }
    close(out[1]);
    char bytes[4096];
    double first = 0;
    for (ssize_t n; (n = read(out[0], bytes, sizeof bytes)) > 0;)
        first = first > 0 ? first : now_ms();
    struct rusage usage;
    int status = 0;
    if (child < 0 || wait4(child, &status, 0, &usage) < 0)
        return 1;
    double gone = now_ms();
    printf("{\"first_byte_ms\": %.3f, \"gone_ms\": %.3f, \"minor_faults\": %ld, \"code\": %d}\n",
           first > 0 ? first - begin : 0.0, gone - begin, usage.ru_minflt,
           WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
    return 0;
}
