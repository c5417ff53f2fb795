/* SPDX-License-Identifier: Apache-2.0 */
/* The writer: what it writes can be opened and verified, and whichever call fails, the target is whole or absent and
 * nothing lies beside it. The calls to the kernel that it makes are defined here, so that each can be made to fail. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "image.h"
#include "write.h"
#include "../suite.h"

/* ---- calls that fail when their turn comes ---- */

static long countdown = -1; /* calls until one fails; below 0: none does */
static bool no_tmpfile;
static bool failed_once;

static bool fails(int error)
{
    if (countdown < 0 || countdown-- > 0)
        return false;
    failed_once = true;
    errno = error;
    return true;
}

int open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    int mode = va_arg(args, int);
    va_end(args);
    if ((flags & O_TMPFILE) == O_TMPFILE) {
        if (no_tmpfile) {
            errno = EOPNOTSUPP;
            return -1;
        }
        if (fails(EACCES))
            return -1;
    } else if ((flags & O_CREAT) && fails(EACCES))
        return -1;
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at)
{
    if (fails(ENOSPC))
        return -1;
    return (ssize_t)syscall(SYS_pwrite64, fd, bytes, n > 4096 ? n / 2 + 1 : n, at); /* short writes are no errors */
}

int fallocate(int fd, int mode, off_t at, off_t n)
{
    return fails(ENOSPC) ? -1 : (int)syscall(SYS_fallocate, fd, mode, at, n);
}

int ftruncate(int fd, off_t n)
{
    return fails(EIO) ? -1 : (int)syscall(SYS_ftruncate, fd, n);
}

int fsync(int fd)
{
    struct stat st;
    bool file = !fstat(fd, &st) && S_ISREG(st.st_mode);
    return file && fails(EIO) ? -1 : (int)syscall(SYS_fsync, fd);
}

int linkat(int from, const char *a, int to, const char *b, int flags)
{
    return fails(EPERM) ? -1 : (int)syscall(SYS_linkat, from, a, to, b, flags);
}

int rename(const char *a, const char *b)
{
    return fails(EROFS) ? -1 : (int)syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, 0);
}

/* ---- a folder of our own ---- */

static char folder[64];

static void make_folder(void)
{
    const char template[] = "/tmp/stele-write-XXXXXX";
    memcpy(folder, template, sizeof template);
    ck_assert_ptr_nonnull(mkdtemp(folder));
}

static const char *path_in(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static void remove_folder(void)
{
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        unlink(path_in(e->d_name));
    if (d)
        closedir(d);
    rmdir(folder);
}

static size_t files(void)
{
    size_t n = 0;
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        n += e->d_name[0] != '.';
    if (d)
        closedir(d);
    return n;
}

/* ---- an image ---- */

enum { WEIGHTS = 5 * (1 << 20) + 320 };
static uint8_t weights[WEIGHTS];
static const char plan_text[] = "not a plan: the writer does not look";

/* Pieces of all sizes, so that they end before, at and behind the ends of chunks. */
static enum stele_status append_weights(struct image_writer *w, struct stele_error *err)
{
    static const size_t pieces[] = {1, 63, 4096, (1 << 21) - 4160, 1 << 21, (1 << 20) + 7};
    size_t at = 0;
    for (size_t i = 0; at < WEIGHTS; i++) {
        size_t n = i < sizeof pieces / sizeof *pieces ? pieces[i] : WEIGHTS - at;
        enum stele_status status = image_append(w, weights + at, n, err);
        if (status != STELE_OK)
            return status;
        at += n;
    }
    return STELE_OK;
}

static enum stele_status write_image(const char *path, bool replace, struct stele_error *err)
{
    struct image_writer *w;
    for (size_t i = 0; i < WEIGHTS; i++)
        weights[i] = (uint8_t)(i * 2654435761u >> 24);
    enum stele_status status = image_begin(&w, path, replace, WEIGHTS, err);
    if (status != STELE_OK) {
        ck_assert_ptr_null(w);
        return status;
    }
    status = image_write_section(w, SECTION_PLAN, plan_text, sizeof plan_text, err);
    if (status == STELE_OK)
        status = image_write_section(w, SECTION_TENSORS, "", 0, err);
    if (status == STELE_OK)
        status = image_begin_section(w, SECTION_WEIGHTS, IMAGE_CHUNK, err);
    if (status == STELE_OK)
        status = append_weights(w, err);
    if (status == STELE_OK)
        status = image_write_digests(w, err);
    if (status == STELE_OK)
        return image_finish(w, err);
    image_abandon(w);
    return status;
}

static void check_image(const char *path)
{
    struct image *image;
    struct stele_error err;
    uint64_t bytes;
    ck_assert_msg(image_open(&image, path, &err) == STELE_OK, "%s", err.text);
    ck_assert_msg(image_verify(image, &(struct image_watch){0}, &err) == STELE_OK, "%s", err.text);
    const uint8_t *found = image_section(image, SECTION_WEIGHTS, &bytes);
    ck_assert_uint_eq(bytes, WEIGHTS);
    ck_assert(!memcmp(found, weights, WEIGHTS));
    ck_assert_uint_eq((uintptr_t)(found - image->bytes) % IMAGE_CHUNK, 0);
    found = image_section(image, SECTION_PLAN, &bytes);
    ck_assert(bytes == sizeof plan_text && !memcmp(found, plan_text, bytes));
    ck_assert_ptr_nonnull(image_section(image, SECTION_TENSORS, &bytes));
    ck_assert_uint_eq(bytes, 0);
    found = image_section(image, SECTION_DIGESTS, &bytes);
    ck_assert_uint_eq(bytes, 3 * sizeof(struct image_digest));
    struct image_digest second = digest_chunk(weights + IMAGE_CHUNK, IMAGE_CHUNK);
    ck_assert(!memcmp(found + sizeof second, &second, sizeof second));
    ck_assert_ptr_null(image_section(image, SECTION_TOKENIZER, &bytes));
    ck_assert(image_unchanged(image, &err) == STELE_OK);
    image_close(image);
}

START_TEST(what_is_written_in_pieces_is_what_is_opened_and_verified)
{
    struct stele_error err;
    no_tmpfile = _i;
    ck_assert_msg(write_image(path_in("a.stele"), false, &err) == STELE_OK, "%s", err.text);
    check_image(path_in("a.stele"));
    ck_assert_uint_eq(files(), 1);
}
END_TEST

/* Fails the first call, then only the second, and so on, until none is left to fail. */
START_TEST(whichever_call_fails_the_old_target_is_whole_and_nothing_lies_beside_it)
{
    struct stele_error err;
    no_tmpfile = _i & 1;
    bool replace = _i & 2;
    long turn = 0;
    for (bool reached = true; reached; turn++) {
        ck_assert_msg(turn < 1000, "it never succeeds");
        if (replace) {
            FILE *f = fopen(path_in("a.stele"), "w");
            ck_assert_ptr_nonnull(f);
            fputs("old", f);
            fclose(f);
        }
        countdown = turn;
        failed_once = false;
        enum stele_status status = write_image(path_in("a.stele"), replace, &err);
        countdown = -1;
        reached = failed_once;
        if (!reached) {
            ck_assert_msg(status == STELE_OK, "turn %ld: %s", turn, err.text);
            break;
        }
        ck_assert_msg(status == STELE_SYSTEM, "turn %ld: status %d", turn, (int)status);
        ck_assert_msg(strstr(err.text, folder) != NULL, "turn %ld: %s", turn, err.text);
        ck_assert_msg(files() == (replace ? 1u : 0u), "turn %ld: %zu files", turn, files());
        struct stat st;
        ck_assert(!replace || (!stat(path_in("a.stele"), &st) && st.st_size == 3));
    }
    ck_assert_int_gt(turn, 10);
    check_image(path_in("a.stele"));
}
END_TEST

START_TEST(an_abandoned_image_leaves_nothing)
{
    struct stele_error err;
    struct image_writer *w;
    no_tmpfile = _i;
    ck_assert(image_begin(&w, path_in("a.stele"), false, 1 << 20, &err) == STELE_OK);
    ck_assert(image_write_section(w, SECTION_PLAN, plan_text, sizeof plan_text, &err) == STELE_OK);
    image_abandon(w);
    image_abandon(NULL);
    ck_assert_uint_eq(files(), 0);
}
END_TEST

START_TEST(targets_that_no_image_can_be_are_refused)
{
    struct stele_error err;
    struct image_writer *w;
    ck_assert_int_eq(image_begin(&w, folder, true, 0, &err), STELE_USAGE);
    ck_assert_int_eq(image_begin(&w, "/dev/null", true, 0, &err), STELE_USAGE);
    ck_assert_int_eq(image_begin(&w, "/no/such/folder/x.stele", true, 0, &err), STELE_SYSTEM);
    ck_assert_msg(strstr(err.text, "/no/such/folder") != NULL, "%s", err.text);
    ck_assert_int_eq(write_image(path_in("a.stele"), false, &err), STELE_OK);
    ck_assert_int_eq(image_begin(&w, path_in("a.stele"), false, 0, &err), STELE_USAGE);
    ck_assert_msg(strstr(err.text, "-f") != NULL, "%s", err.text);
    check_image(path_in("a.stele"));
}
END_TEST

START_TEST(a_link_is_followed_and_stays)
{
    struct stele_error err;
    char link[512];
    struct stat st;
    ck_assert_int_eq(write_image(path_in("real.stele"), false, &err), STELE_OK);
    snprintf(link, sizeof link, "%s/link.stele", folder);
    ck_assert(!symlink("real.stele", link));
    ck_assert_msg(write_image(link, true, &err) == STELE_OK, "%s", err.text);
    ck_assert(!lstat(link, &st) && S_ISLNK(st.st_mode));
    ck_assert_uint_eq(files(), 2);
    check_image(path_in("real.stele"));
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("write");
    TCase *tc = tcase_create("write");
    tcase_set_timeout(tc, 120);
    tcase_add_checked_fixture(tc, make_folder, remove_folder);
    tcase_add_loop_test(tc, what_is_written_in_pieces_is_what_is_opened_and_verified, 0, 2);
    tcase_add_loop_test(tc, whichever_call_fails_the_old_target_is_whole_and_nothing_lies_beside_it, 0, 4);
    tcase_add_loop_test(tc, an_abandoned_image_leaves_nothing, 0, 2);
    tcase_add_test(tc, targets_that_no_image_can_be_are_refused);
    tcase_add_test(tc, a_link_is_followed_and_stays);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
