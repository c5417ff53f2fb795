/* SPDX-License-Identifier: Apache-2.0 */
/* An image that the store lacks: stele-pull fetches it, as a process of its own, and this one computes from what is there. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cmd_session.h"

/* The child. It ends with its parent (until all is there: stele-pull.c), and keeps off standard input and output. */
static _Noreturn void pull(pid_t parent, int channel, const char *reference)
{
    char verb[] = "pull", arrival[] = "--arrival", threads[] = "--threads", end[] = "--", number[16], count[32];
    char *argv[8] = {verb, arrival, number};
    size_t n = 3;
    snprintf(number, sizeof number, "%d", channel);
    snprintf(count, sizeof count, "%" PRIu64, cmd_session.threads);
    if (cmd_session.threads) {
        argv[n++] = threads;
        argv[n++] = count;
    }
    argv[n++] = end;
    argv[n] = (char *)(uintptr_t)reference;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(STELE_SYSTEM);
    int nothing = open("/dev/null", O_RDWR);
    dup2(nothing, STDIN_FILENO);
    dup2(nothing, STDOUT_FILENO);
    fcntl(channel, F_SETFD, 0);
    cmd_become("pull", argv);
    _exit(STELE_SYSTEM);
}

enum stele_status cmd_fetch(struct stele_image **out, const char *reference, struct stele_error *err)
{
    int ends[2];
    *out = NULL;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
        return stele_fail(err, STELE_SYSTEM, "%s: cannot fetch it: %s", reference, strerror(errno));
    pid_t parent = getpid(), child = fork();
    if (!child)
        pull(parent, ends[1], reference);
    close(ends[1]);
    if (child < 0) {
        close(ends[0]);
        return stele_fail(err, STELE_SYSTEM, "%s: cannot fetch it: %s", reference, strerror(errno));
    }
    enum stele_status status = stele_image_arrive(out, reference, ends[0], err);
    if (status != STELE_OK || !cmd_session.verify)
        return status;
    status = stele_image_unchanged(*out, err);
    stele_image_close(*out);
    *out = NULL;
    return status == STELE_OK ? stele_image_open(out, reference, err) : status;
}
