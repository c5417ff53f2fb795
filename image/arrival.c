/* SPDX-License-Identifier: Apache-2.0 */
#include "arrival.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "image.h"

enum word { BEGUN = 1, MORE, WHOLE, OVER };

/* Both are this program's: no version, and no byte order but the machine's. */
struct message {
    enum word word;
    struct stele_error err; /* OVER */
    uint64_t first;         /* BEGUN, and what follows */
    struct image_header header;
    struct image_section sections[IMAGE_SECTIONS_MAX];
};

struct arrival {
    int channel;
    pthread_mutex_t lock; /* of what follows */
    struct arrival_map map;
    uint64_t first;
    bool begun, whole, over;
    struct stele_error err; /* what it ended with */
};

/* Room for the two descriptors of BEGUN. */
union descriptors {
    struct cmsghdr head;
    char bytes[CMSG_SPACE(2 * sizeof(int))];
};

/* ---- the map ---- */

static bool map_memory(struct arrival_map *m, int protection)
{
    void *pieces = mmap(NULL, (m->count + 1) * sizeof *m->pieces, protection, MAP_SHARED, m->fd, 0);
    m->pieces = pieces == MAP_FAILED ? NULL : pieces;
    return m->pieces;
}

enum stele_status arrival_map_open(struct arrival_map *out, const uint64_t *at, size_t count, struct stele_error *err)
{
    *out = (struct arrival_map){.fd = memfd_create("stele-arrival", MFD_CLOEXEC), .count = count};
    if (out->fd < 0 || ftruncate(out->fd, (off_t)((count + 1) * sizeof *out->pieces)) ||
        !map_memory(out, PROT_READ | PROT_WRITE)) {
        if (out->fd >= 0)
            close(out->fd);
        return stele_fail(err, STELE_SYSTEM, "no memory to count %zu pieces: %s", count, strerror(errno));
    }
    for (size_t i = 0; i <= count; i++) {
        out->pieces[i].at = at[i];
        out->pieces[i].missing = i < count ? at[i + 1] - at[i] : 0;
    }
    return STELE_OK;
}

void arrival_map_close(struct arrival_map *m)
{
    if (!m->pieces)
        return;
    munmap(m->pieces, (m->count + 1) * sizeof *m->pieces);
    close(m->fd);
    *m = (struct arrival_map){0};
}

/* The piece that a byte is in; count: it is none's. */
static size_t piece_of(const struct arrival_map *m, uint64_t at)
{
    size_t low = 0, high = m->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (m->pieces[middle + 1].at <= at)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void arrival_laid(const struct arrival_map *m, uint64_t at, uint64_t bytes)
{
    for (size_t i = m->pieces ? piece_of(m, at) : m->count; i < m->count && bytes; i++) {
        uint64_t room = m->pieces[i + 1].at - at, n = bytes < room ? bytes : room, before;
        before = atomic_fetch_sub(&m->pieces[i].missing, n);
        assert(before >= n);
        at += n;
        bytes -= n;
    }
}

/* ---- what a writer says ---- */

static void say(int channel, const struct message *message, const int *files, int flags)
{
    union descriptors room = {.head = {.cmsg_len = CMSG_LEN(2 * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec part = {.iov_base = (void *)(uintptr_t)message, .iov_len = sizeof *message};
    struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1};
    if (files) {
        memcpy(CMSG_DATA(&room.head), files, 2 * sizeof(int));
        packet.msg_control = &room;
        packet.msg_controllen = sizeof room;
    }
    while (channel >= 0 && sendmsg(channel, &packet, flags | MSG_NOSIGNAL) < 0 && errno == EINTR)
        ;
}

void arrival_begun(int channel, int file, const struct arrival_map *map, uint64_t first,
                   const struct image_header *header, const struct image_section *sections)
{
    struct message m = {.word = BEGUN, .first = first, .header = *header};
    char path[32];
    if (channel < 0)
        return;
    memcpy(m.sections, sections, header->sections * sizeof *sections);
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    int files[2] = {open(path, O_RDONLY | O_CLOEXEC), map->fd};
    say(channel, &m, files, 0);
    if (files[0] >= 0)
        close(files[0]);
}

/* Where the reader has not heard what was said before, it will look anyway. */
void arrival_more(int channel)
{
    say(channel, &(struct message){.word = MORE}, NULL, MSG_DONTWAIT);
}

void arrival_whole(int channel)
{
    say(channel, &(struct message){.word = WHOLE}, NULL, 0);
}

void arrival_over(int channel, const struct stele_error *err)
{
    say(channel, &(struct message){.word = OVER, .err = *err}, NULL, 0);
}

/* ---- what a reader asks ---- */

static bool ended(const struct arrival *a)
{
    return a->over || a->err.status != STELE_OK;
}

/* Waits for the next word. The descriptors of BEGUN go to files[2]. */
static void hear(struct arrival *a, struct message *m, int *files, const char *name)
{
    union descriptors room;
    struct iovec part = {.iov_base = m, .iov_len = sizeof *m};
    struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &room, .msg_controllen = sizeof room};
    ssize_t n;
    while ((n = recvmsg(a->channel, &packet, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR)
        ;
    if (n != (ssize_t)sizeof *m) {
        stele_fail(&a->err, STELE_SYSTEM,
                   "%s: what fetches it was ended; what came is kept, and the same command goes on with it", name);
        return;
    }
    const struct cmsghdr *c = CMSG_FIRSTHDR(&packet);
    if (c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(2 * sizeof(int)))
        memcpy(files, CMSG_DATA(c), 2 * sizeof(int));
    a->begun = a->begun || m->word == BEGUN;
    a->whole = a->whole || m->word == WHOLE;
    a->over = a->over || m->word == OVER;
    if (m->word == OVER)
        a->err = m->err;
}

static enum stele_status ended_with(const struct arrival *a, struct stele_error *err)
{
    if (a->err.status != STELE_OK && err)
        *err = a->err;
    return a->err.status;
}

/* Waits until all pieces of a part are laid, if `part`, or until *said. */
static enum stele_status wait_for(const struct image *image, bool part, uint64_t from, uint64_t to, const bool *said,
                                  struct stele_error *err)
{
    struct arrival *a = image->arrival;
    struct message m;
    int none[2];
    pthread_mutex_lock(&a->lock);
    const struct arrival_piece *pieces = a->map.pieces;
    size_t i = part ? piece_of(&a->map, from - a->first) : 0;
    while (!ended(a) && !*said) {
        while (part && i < a->map.count && pieces[i].at < to - a->first && !pieces[i].missing)
            i++;
        if (part && (i == a->map.count || pieces[i].at >= to - a->first))
            break;
        hear(a, &m, none, image->name);
    }
    enum stele_status status = ended_with(a, err);
    pthread_mutex_unlock(&a->lock);
    return status;
}

enum stele_status image_await(const struct image *image, const void *from, uint64_t bytes, struct stele_error *err)
{
    if (!image->arrival || !bytes)
        return STELE_OK;
    uint64_t at = (uint64_t)((const uint8_t *)from - image->bytes);
    return wait_for(image, true, at, at + bytes, &image->arrival->whole, err);
}

enum stele_status image_await_whole(const struct image *image, struct stele_error *err)
{
    return image->arrival ? wait_for(image, false, 0, 0, &image->arrival->whole, err) : STELE_OK;
}

enum stele_status image_await_over(const struct image *image, struct stele_error *err)
{
    return image->arrival ? wait_for(image, false, 0, 0, &image->arrival->over, err) : STELE_OK;
}

/* Maps what the writer has begun. */
static enum stele_status take(struct image **out, const char *name, struct arrival *a, const struct message *m, int *files,
                              struct stele_error *err)
{
    a->map = (struct arrival_map){.fd = files[1]};
    off_t bytes = lseek(files[1], 0, SEEK_END);
    if (bytes >= (off_t)sizeof *a->map.pieces)
        a->map.count = (size_t)bytes / sizeof *a->map.pieces - 1;
    if (files[0] < 0 || files[1] < 0 || !map_memory(&a->map, PROT_READ)) {
        for (size_t i = 0; i < 2; i++)
            if (files[i] >= 0)
                close(files[i]);
        return stele_fail(err, STELE_SYSTEM, "%s: cannot map it while it arrives: %s", name, strerror(errno));
    }
    a->first = m->first;
    return image_adopt(out, name, files[0], &m->header, m->sections, err);
}

enum stele_status image_arrive(struct image **out, const char *name, int channel, struct stele_error *err)
{
    struct arrival *a = calloc(1, sizeof *a);
    struct message m;
    int files[2] = {-1, -1};
    *out = NULL;
    if (!a) {
        close(channel);
        return stele_fail(err, STELE_SYSTEM, "%s: no memory to open it", name);
    }
    a->channel = channel;
    pthread_mutex_init(&a->lock, NULL);
    while (!a->begun && !ended(a))
        hear(a, &m, files, name);
    enum stele_status status = ended_with(a, err);
    if (status == STELE_OK && a->begun)
        status = take(out, name, a, &m, files, err);
    if (*out)
        (*out)->arrival = a;
    else
        arrival_close(a);
    return status;
}

void arrival_close(struct arrival *a)
{
    if (!a)
        return;
    close(a->channel);
    arrival_map_close(&a->map);
    pthread_mutex_destroy(&a->lock);
    free(a);
}
