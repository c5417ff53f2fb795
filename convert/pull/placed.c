/* SPDX-License-Identifier: Apache-2.0 */
#include "placed.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static enum stele_status failed(const struct placed *p, struct stele_error *err)
{
    return stele_fail(err, STELE_SYSTEM, "%s: cannot write it: %s", p->path, strerror(errno));
}

/* A file without a name in the folder of `path`, of which a kill leaves nothing; not every file system has them. */
static int open_beside(const char *path)
{
    char *copy = strdup(path);
    int fd = copy ? open(dirname(copy), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666) : -1;
    free(copy);
    return fd;
}

enum stele_status placed_open(struct placed *out, const char *path, bool replace, uint64_t expected,
                              struct stele_error *err)
{
    struct stat st;
    *out = (struct placed){.path = path, .replace = replace, .fd = -1};
    if (!lstat(path, &st)) {
        if (S_ISDIR(st.st_mode))
            return stele_fail(err, STELE_USAGE, "%s: is a directory; name a file", path);
        if (!replace)
            return stele_fail(err, STELE_USAGE, "%s: exists; -f replaces it", path);
    }
    if (asprintf(&out->temporary, "%s.%ld.part", path, (long)getpid()) < 0) {
        out->temporary = NULL;
        return stele_fail(err, STELE_SYSTEM, "%s: no memory", path);
    }
    out->fd = open_beside(path);
    if (out->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL)) {
        out->fd = open(out->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        out->named = out->fd >= 0;
    }
    if (out->fd < 0)
        return failed(out, err);
    if (expected && fallocate(out->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)expected) && errno != EOPNOTSUPP)
        return stele_fail(err, STELE_SYSTEM, "%s: cannot reserve its %" PRIu64 " bytes: %s", path, expected,
                          strerror(errno));
    return STELE_OK;
}

enum stele_status placed_write(const struct placed *p, const void *bytes, uint64_t length, uint64_t at,
                               struct stele_error *err)
{
    const uint8_t *from = bytes;
    while (length) {
        ssize_t n = pwrite(p->fd, from, length, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return failed(p, err);
        from += n;
        at += (uint64_t)n;
        length -= (uint64_t)n;
    }
    return STELE_OK;
}

enum stele_status placed_finish(struct placed *p, struct stele_error *err)
{
    if (fsync(p->fd))
        return failed(p, err);
    if (!p->named) {
        char from[64];
        snprintf(from, sizeof from, "/proc/self/fd/%d", p->fd);
        unlink(p->temporary); /* left by a process of this number that was killed between link and rename */
        if (linkat(AT_FDCWD, from, AT_FDCWD, p->temporary, AT_SYMLINK_FOLLOW))
            return failed(p, err);
        p->named = true;
    }
    if (renameat2(AT_FDCWD, p->temporary, AT_FDCWD, p->path, p->replace ? 0 : RENAME_NOREPLACE))
        return errno == EEXIST ? stele_fail(err, STELE_USAGE, "%s: exists; -f replaces it", p->path) : failed(p, err);
    free(p->temporary);
    p->temporary = NULL;
    return STELE_OK;
}

void placed_close(struct placed *p)
{
    if (p->temporary) {
        if (p->named)
            unlink(p->temporary);
        free(p->temporary);
        p->temporary = NULL;
        if (p->fd >= 0)
            close(p->fd);
        p->fd = -1;
    } else if (p->path && p->fd >= 0) {
        close(p->fd);
        p->fd = -1;
    }
}
