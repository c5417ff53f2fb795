/* SPDX-License-Identifier: Apache-2.0 */
#include "shelf.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "store.h"

static const char ls_usage[] =
    "usage: stele ls [--json]\n"
    "\n"
    "Lists what the store ($STELE_HOME, else $XDG_DATA_HOME/stele or ~/.local/share/stele) has: size, type of\n"
    "weights, how much of it is in memory now, identity, revision and reference. `stele run` takes the reference.\n"
    "\n"
    "options:\n"
    "  --json                  an object a line\n"
    "\n"
    "exit codes: 0 done, 1 system, 2 usage\n";

static const char rm_usage[] =
    "usage: stele rm REF|IDENTITY...\n"
    "\n"
    "Removes references from the store, and the images that no other reference names. REF without #WEIGHTS stands\n"
    "for all types of weights; IDENTITY, or its first 6 digits or more, for all references to an image. Who has\n"
    "an image mapped keeps it.\n"
    "\n"
    "exit codes: 0 done, 1 system, 2 usage, such as what the store does not have\n";

static const char gc_usage[] =
    "usage: stele gc [-n]\n"
    "\n"
    "Removes from the store the images that no reference names, and what pulls that were cut off have left. Pulls\n"
    "under way are left alone.\n"
    "\n"
    "options:\n"
    "  -n                      only say what would be removed\n"
    "\n"
    "exit codes: 0 done, 1 system, 2 usage\n";

static int fail(const char *verb, const struct stele_error *err)
{
    fprintf(stderr, "stele %s: %s\n", verb, err->text);
    return (int)err->status;
}

/* Help, or a word that is no option of the verb; -1: neither. */
static int common(const char *verb, const char *usage, const char *word, struct stele_error *err)
{
    if (!strcmp(word, "--help") || !strcmp(word, "-h")) {
        fputs(usage, stdout);
        return fflush(stdout) ? STELE_SYSTEM : STELE_OK;
    }
    if (word[0] != '-')
        return -1;
    stele_fail(err, STELE_USAGE, "unknown option %s; `stele help %s` lists them", word, verb);
    return fail(verb, err);
}

/* ---- ls ---- */

static uint64_t bytes_in_memory(int fd, uint64_t length)
{
    static unsigned char pages[1 << 16];
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), piece = sizeof pages * page;
    uint64_t found = 0;
    for (uint64_t at = 0; at < length; at += piece) {
        uint64_t n = length - at < piece ? length - at : piece;
        void *bytes = mmap(NULL, n, PROT_READ, MAP_SHARED, fd, (off_t)at);
        if (bytes == MAP_FAILED)
            break;
        if (!mincore(bytes, n, pages))
            for (uint64_t i = 0; i * page < n; i++)
                found += pages[i] & 1 ? page : 0;
        munmap(bytes, n);
    }
    return found < length ? found : length;
}

struct listing {
    bool json;
};

static char *path_of(const char *identity)
{
    char file[64];
    snprintf(file, sizeof file, "%s.stele", identity);
    return store_path("images", file);
}

static bool list(void *context, const struct store_entry *e)
{
    const struct listing *l = context;
    char *path = path_of(e->identity);
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    struct stat st = {0};
    bool there = fd >= 0 && !fstat(fd, &st) && S_ISREG(st.st_mode);
    uint64_t bytes = there ? (uint64_t)st.st_size : 0, memory = there ? bytes_in_memory(fd, bytes) : 0;
    if (l->json) {
        json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:s, s:b}", "reference", e->name, "weights",
                              e->weights, "identity", e->identity, "revision", e->revision, "converter", e->converter,
                              "bytes", (json_int_t)bytes, "bytes_in_memory", (json_int_t)memory, "path",
                              path ? path : "", "there", there);
        char *text = o ? json_dumps(o, JSON_COMPACT) : NULL;
        puts(text ? text : "{}");
        free(text);
        json_decref(o);
    } else if (there) {
        printf("%9.1f MB  %-6s  %3.0f %%  %.12s  %-12.12s  %s\n", (double)bytes / 1e6, e->weights,
               bytes ? 100.0 * (double)memory / (double)bytes : 0, e->identity, e->revision[0] ? e->revision : "-",
               e->name);
    } else
        printf("  missing     %-6s       %.12s  %-12.12s  %s\n", e->weights, e->identity,
               e->revision[0] ? e->revision : "-", e->name);
    if (fd >= 0)
        close(fd);
    free(path);
    return true;
}

int shelf_ls(int argc, char **argv)
{
    struct stele_error err;
    struct listing l = {0};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--json")) {
            l.json = true;
            continue;
        }
        int code = common("ls", ls_usage, argv[i], &err);
        if (code < 0) {
            stele_fail(&err, STELE_USAGE, "no operand is taken, and there is %s", argv[i]);
            code = fail("ls", &err);
        }
        return code;
    }
    store_each(list, &l);
    if (fflush(stdout)) {
        stele_fail(&err, STELE_SYSTEM, "standard output: %s", strerror(errno));
        return fail("ls", &err);
    }
    return STELE_OK;
}

/* ---- rm ---- */

struct removal {
    const char *word, *weights;
    char *name;   /* of a reference; NULL: `word` is the begin of an identity */
    size_t count; /* entries removed */
    bool failed;
    const char *identity; /* references to it are counted */
    size_t others;
};

static bool remove_entry(void *context, const struct store_entry *e)
{
    struct removal *r = context;
    bool meant = r->name ? !strcmp(r->name, e->name) && (!r->weights || !strcmp(r->weights, e->weights))
                         : !strncmp(r->word, e->identity, strlen(r->word));
    if (!meant)
        return true;
    char *path = store_path("refs", e->file);
    r->failed = !path || unlink(path) || r->failed;
    r->count++;
    free(path);
    return true;
}

static bool count_reference(void *context, const struct store_entry *e)
{
    struct removal *r = context;
    r->others += !strcmp(e->identity, r->identity);
    return true;
}

/* Walks over the images that no reference names; `act` gets path and size. The caller holds the store's lock. */
static void each_unnamed(void (*act)(void *context, const char *path, uint64_t bytes), void *context)
{
    struct dirent **entries = NULL;
    char *folder = store_path("images", "");
    int n = folder ? scandir(folder, &entries, NULL, alphasort) : 0;
    for (int i = 0; i < n; i++) {
        char identity[33], *path = store_path("images", entries[i]->d_name);
        struct stat st;
        snprintf(identity, sizeof identity, "%.32s", entries[i]->d_name);
        struct removal r = {.identity = identity};
        bool image = strlen(entries[i]->d_name) == 38 && !strcmp(entries[i]->d_name + 32, ".stele");
        if (image)
            store_each(count_reference, &r);
        if (image && !r.others && path && !lstat(path, &st))
            act(context, path, (uint64_t)st.st_size);
        free(path);
        free(entries[i]);
    }
    free(entries);
    free(folder);
}

/* Who takes images into the store, or out of it, holds this. -1: there is no store. */
static int lock_store(void)
{
    char *images = store_path("images", "");
    int fd = images ? open(images, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd >= 0)
        while (flock(fd, LOCK_EX) && errno == EINTR)
            ;
    free(images);
    return fd;
}

static void unlink_image(void *context, const char *path, uint64_t bytes)
{
    (void)bytes;
    *(bool *)context = unlink(path) || *(bool *)context;
}

int shelf_rm(int argc, char **argv)
{
    struct stele_error err = {0};
    bool failed = false;
    if (argc < 2) {
        stele_fail(&err, STELE_USAGE, "no REF or IDENTITY is named; `stele ls` lists them");
        return fail("rm", &err);
    }
    for (int i = 1; i < argc; i++) {
        int code = common("rm", rm_usage, argv[i], &err);
        if (code >= 0)
            return code;
    }
    int lock = lock_store();
    for (int i = 1; i < argc && err.status == STELE_OK; i++) {
        bool reference = store_is_reference(argv[i]);
        struct removal r = {.word = argv[i],
                            .weights = reference ? store_weights(argv[i]) : NULL,
                            .name = reference ? store_name(argv[i]) : NULL};
        bool identity = !reference && strlen(argv[i]) >= 6 && strspn(argv[i], "0123456789abcdef") == strlen(argv[i]);
        if (r.name || identity)
            store_each(remove_entry, &r);
        if (!r.count)
            stele_fail(&err, STELE_USAGE, "%s: the store does not have it; `stele ls` says what there is", argv[i]);
        failed = failed || r.failed;
        free(r.name);
    }
    if (lock >= 0)
        each_unnamed(unlink_image, &failed);
    if (lock >= 0)
        close(lock);
    if (failed && err.status == STELE_OK)
        stele_fail(&err, STELE_SYSTEM, "the store's files cannot be removed: %s", strerror(errno));
    return err.status == STELE_OK ? STELE_OK : fail("rm", &err);
}

/* ---- gc ---- */

struct sweep {
    bool only_say, failed;
    uint64_t bytes;
};

static void sweep_image(void *context, const char *path, uint64_t bytes)
{
    struct sweep *s = context;
    printf("%9.1f MB  %s\n", (double)bytes / 1e6, path);
    s->bytes += bytes;
    s->failed = (!s->only_say && unlink(path)) || s->failed;
}

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)st;
    (void)kind;
    (void)at;
    return remove(path);
}

/* What a pull left: a folder that nobody has locked, or a file beside it. */
static void sweep_partial(struct sweep *s, const char *path)
{
    char *image;
    struct stat st, whole = {0};
    if (lstat(path, &st))
        return;
    int fd = S_ISDIR(st.st_mode) ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW) : -1;
    if (S_ISDIR(st.st_mode) && (fd < 0 || flock(fd, LOCK_EX | LOCK_NB))) {
        if (fd >= 0)
            close(fd);
        return;
    }
    if (asprintf(&image, "%s/image", path) >= 0) {
        if (stat(image, &whole))
            whole = st;
        free(image);
    }
    uint64_t bytes = (uint64_t)whole.st_blocks * 512;
    printf("%9.1f MB  %s\n", (double)bytes / 1e6, path);
    s->bytes += bytes;
    if (!s->only_say && nftw(path, remove_one, 8, FTW_DEPTH | FTW_PHYS))
        s->failed = true;
    if (fd >= 0)
        close(fd);
}

int shelf_gc(int argc, char **argv)
{
    struct stele_error err = {0};
    struct sweep s = {0};
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-n")) {
            s.only_say = true;
            continue;
        }
        int code = common("gc", gc_usage, argv[i], &err);
        if (code < 0) {
            stele_fail(&err, STELE_USAGE, "no operand is taken, and there is %s", argv[i]);
            code = fail("gc", &err);
        }
        return code;
    }
    int lock = lock_store();
    if (lock < 0)
        return STELE_OK; /* nothing was ever pulled */
    each_unnamed(sweep_image, &s);
    char *partial = store_path("partial", "");
    struct dirent **entries = NULL;
    int n = partial ? scandir(partial, &entries, NULL, alphasort) : 0;
    for (int i = 0; i < n; i++) {
        char *path = entries[i]->d_name[0] == '.' ? NULL : store_path("partial", entries[i]->d_name);
        if (path)
            sweep_partial(&s, path);
        free(path);
        free(entries[i]);
    }
    free(entries);
    free(partial);
    close(lock);
    if (s.failed)
        stele_fail(&err, STELE_SYSTEM, "the store's files cannot be removed: %s", strerror(errno));
    return s.failed || fflush(stdout) ? fail("gc", &err) : STELE_OK;
}
