/* SPDX-License-Identifier: Apache-2.0 */
#include "journal.h"

#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

static const char MAGIC[8] = "STELEgot";

static void read_boot(char boot[40])
{
    int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    memset(boot, 0, 40);
    ssize_t n = fd < 0 ? -1 : read(fd, boot, 36);
    if (n != 36)
        memset(boot, 0, 40);
    if (fd >= 0)
        close(fd);
}

static uint64_t check_of(const struct journal *j)
{
    return XXH3_64bits(j, offsetof(struct journal, check));
}

void journal_begin(struct journal *j, const struct image_digest *source)
{
    memset(j, 0, sizeof *j);
    memcpy(j->magic, MAGIC, sizeof j->magic);
    j->source = *source;
    read_boot(j->boot);
    SHA256_Init(&j->sha);
    j->sha_synced = j->sha;
}

bool journal_read(struct journal *out, int fd, const struct image_digest *source, bool *other)
{
    struct journal both[2];
    char boot[40];
    bool found = false;
    *other = false;
    for (size_t i = 0; i < 2; i++) {
        struct journal *j = &both[i];
        if (pread(fd, j, sizeof *j, (off_t)(i * IMAGE_PAGE)) != (ssize_t)sizeof *j ||
            memcmp(j->magic, MAGIC, sizeof j->magic) || j->check != check_of(j))
            continue;
        if (memcmp(&j->source, source, sizeof *source)) {
            *other = true;
            continue;
        }
        if (!found || j->turn > out->turn)
            *out = *j;
        found = true;
    }
    read_boot(boot);
    if (found && (!boot[0] || memcmp(boot, out->boot, sizeof boot))) {
        out->at = out->synced;
        out->sha = out->sha_synced;
        memcpy(out->boot, boot, sizeof boot);
    }
    return found;
}

bool journal_write(struct journal *j, int fd, bool sync)
{
    if (sync) {
        if (fdatasync(fd))
            return false;
        j->synced = j->at;
        j->sha_synced = j->sha;
    }
    j->turn++;
    j->check = check_of(j);
    return pwrite(fd, j, sizeof *j, (off_t)(j->turn % 2 * IMAGE_PAGE)) == (ssize_t)sizeof *j;
}
