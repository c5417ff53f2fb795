/* SPDX-License-Identifier: Apache-2.0 */
#include "guard.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "stele.h"

static double start_seconds, start_cpu_seconds;

/* What the handler may read: set before it is installed. */
static struct {
    const struct stele_image *image;
    char damaged[512], unreadable[512];
} guarded;

static double clock_seconds(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double guard_now(void)
{
    return clock_seconds(CLOCK_MONOTONIC);
}

void guard_mark_start(void)
{
    start_cpu_seconds = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
    start_seconds = guard_now();
}

double guard_since_exec_ms(double moment)
{
    return 1e3 * (start_cpu_seconds + moment - start_seconds);
}

/* Async-signal-safe: fstat, write, _exit. */
static void on_sigbus(int signal_number, siginfo_t *info, void *context)
{
    (void)context;
    enum stele_status status = stele_image_fault(guarded.image, info->si_addr);
    if (status == STELE_OK) {
        signal(signal_number, SIG_DFL); /* not ours: die of it when the access is tried again */
        return;
    }
    const char *text = status == STELE_DAMAGED ? guarded.damaged : guarded.unreadable;
    ssize_t ignored = write(STDERR_FILENO, text, strlen(text));
    (void)ignored;
    _exit((int)status);
}

void guard_image(const struct stele_image *image, const char *verb)
{
    guarded.image = image;
    struct stele_error text; /* escapes the name */
    stele_fail(&text, STELE_DAMAGED, "%.300s", stele_image_name(image));
    snprintf(guarded.damaged, sizeof guarded.damaged,
             "stele %s: %.400s: the file was cut short while it was in use; the answer ends here\n", verb, text.text);
    snprintf(guarded.unreadable, sizeof guarded.unreadable,
             "stele %s: %.400s: a page of the file cannot be read: I/O error\n", verb, text.text);
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
}
