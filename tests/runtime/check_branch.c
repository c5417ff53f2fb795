/* SPDX-License-Identifier: Apache-2.0 */
/* Sequences that branch off others have the bits of sequences computed whole, through blocks that are shared and rings that
 * are copied; what would change what another sequence reads is refused. On the demo model, as it is and with a window. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "convert.h"
#include "stele.h"
#include "../suite.h"

#define DEMO "scripts/demo-model/checkpoint/"

enum { CONTEXT = 300, SEQUENCES = 5, CHUNK = 24, VOCABULARY = 1024, ROUNDS = 60 };

static char folder[] = "/tmp/stele-branch-XXXXXX";
static struct stele_image *images[2];

/* ---- the two images ---- */

static void copy_config(const char *to, bool windowed)
{
    static const char plain[] = "LlamaForCausalLM", other[] = "MistralForCausalLM";
    char text[4096];
    FILE *in = fopen(DEMO "config.json", "r"), *out = fopen(to, "w");
    ck_assert(in && out);
    size_t n = fread(text, 1, sizeof text - 1, in);
    text[n] = '\0';
    char *name = strstr(text, plain);
    ck_assert_ptr_nonnull(name);
    if (windowed)
        fprintf(out, "{\"sliding_window\": 40, %.*s%s%s", (int)(name - text) - 1, text + 1, other, name + strlen(plain));
    else
        fputs(text, out);
    fclose(in);
    fclose(out);
}

static void no_progress(void *context, uint64_t done, uint64_t total)
{
    (void)context;
    (void)done;
    (void)total;
}

static struct stele_image *make_image(bool windowed)
{
    static const char *const names[] = {"model.safetensors", "generation_config.json"};
    struct stele_error err;
    struct stele_image *image;
    char source[PATH_MAX], target[PATH_MAX], link[2 * PATH_MAX], *root = realpath(DEMO, NULL);
    ck_assert_ptr_nonnull(root);
    snprintf(source, sizeof source, "%s/%d", folder, windowed);
    snprintf(target, sizeof target, "%s/%d.stele", folder, windowed);
    ck_assert(!mkdir(source, 0700));
    for (size_t i = 0; i < 2; i++) {
        char from[2 * PATH_MAX];
        snprintf(from, sizeof from, "%s/%s", root, names[i]);
        snprintf(link, sizeof link, "%s/%s", source, names[i]);
        ck_assert(!symlink(from, link));
    }
    free(root);
    snprintf(link, sizeof link, "%s/config.json", source);
    copy_config(link, windowed);
    struct convert_options options = {.source = source, .target = target, .weights = TENSOR_Q8, .threads = 1, .progress = no_progress};
    ck_assert_msg(convert_checkpoint(&options, &err) == STELE_OK, "%s", err.text);
    ck_assert(stele_image_open(&image, target, &err) == STELE_OK);
    return image;
}

/* ---- stepping ---- */

static struct stele_session *open_session(int which)
{
    struct stele_error err;
    struct stele_session *s;
    struct stele_options o = {.context = CONTEXT, .sequences = SEQUENCES, .chunk = CHUNK, .threads = 1};
    ck_assert_msg(stele_session_open(&s, images[which], &o, &err) == STELE_OK, "%s", err.text);
    return s;
}

/* Computes ids [first, count) of a sequence in chunks of `chunk`; logits of the last into `row`. */
static enum stele_status extend(struct stele_session *s, uint32_t sequence, const uint32_t *ids, uint32_t first,
                                uint32_t count, uint32_t chunk, float *row)
{
    struct stele_error err;
    for (uint32_t at = first, n; at < count; at += n) {
        n = count - at < chunk ? count - at : chunk;
        struct stele_slice slice = {sequence, at, n, at + n == count ? n - 1 : n, ids + at};
        enum stele_status status = stele_step(s, &slice, 1, &err);
        if (status != STELE_OK)
            return status;
    }
    return stele_logits(s, 0, 1, row, &err);
}

struct sequence {
    uint32_t ids[CONTEXT], count;
};

static uint32_t below(uint32_t n)
{
    return (uint32_t)rand() % n;
}

/* What the sequence holds, computed whole in a session of its own. */
static void check_whole(struct stele_session *alone, const struct sequence *q, const float *row)
{
    static float whole[VOCABULARY];
    ck_assert_int_eq(extend(alone, 0, q->ids, 0, q->count, CHUNK, whole), STELE_OK);
    ck_assert_msg(!memcmp(whole, row, sizeof whole), "a sequence of %u ids has other bits as a branch", q->count);
}

static void grow(struct stele_session *s, struct stele_session *alone, struct sequence *q, uint32_t sequence)
{
    static float row[VOCABULARY];
    uint32_t more = 1 + below(50), room = CONTEXT - q->count, first = q->count;
    more = more < room ? more : room;
    for (uint32_t i = 0; i < more; i++)
        q->ids[q->count++] = below(VOCABULARY);
    if (!more)
        return;
    enum stele_status status = extend(s, sequence, q->ids, first, q->count, 1 + below(CHUNK), row);
    if (status == STELE_USAGE) /* a branch reads what would be written */
        q->count = first;
    else
        check_whole(alone, q, row);
}

START_TEST(branches_have_the_bits_of_whole_sequences)
{
    static struct sequence all[SEQUENCES];
    struct stele_session *s = open_session(_i), *alone = open_session(_i);
    struct stele_error err;
    int branched = 0;
    memset(all, 0, sizeof all);
    srand(7);
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t to = below(SEQUENCES), from = below(SEQUENCES), positions = all[from].count ? below(all[from].count + 1) : 0;
        if (to != from && below(2) && stele_branch(s, to, from, positions, &err) == STELE_OK) {
            memcpy(all[to].ids, all[from].ids, positions * sizeof(uint32_t));
            all[to].count = positions;
            branched++;
        }
        grow(s, alone, &all[to], to);
    }
    ck_assert_int_gt(branched, ROUNDS / 8);
    stele_session_close(alone);
    stele_session_close(s);
}
END_TEST

START_TEST(what_a_branch_reads_is_not_computed_anew)
{
    static float row[VOCABULARY];
    struct stele_error err;
    struct stele_session *s = open_session(0);
    uint32_t ids[200];
    for (uint32_t i = 0; i < 200; i++)
        ids[i] = below(VOCABULARY);
    ck_assert_int_eq(extend(s, 0, ids, 0, 150, CHUNK, row), STELE_OK);
    ck_assert_int_eq(stele_branch(s, 1, 0, 140, &err), STELE_OK);
    ck_assert_int_eq(extend(s, 0, ids, 100, 110, CHUNK, row), STELE_USAGE); /* in its second block, which is shared */
    ck_assert_int_eq(extend(s, 0, ids, 130, 150, CHUNK, row), STELE_OK);    /* in the third, which was copied */
    ck_assert_int_eq(extend(s, 1, ids, 127, 150, CHUNK, row), STELE_USAGE); /* nor by the branch */
    ck_assert_int_eq(extend(s, 1, ids, 140, 150, CHUNK, row), STELE_OK);
    ck_assert_int_eq(extend(s, 1, ids, 151, 152, CHUNK, row), STELE_USAGE); /* behind a gap */
    ck_assert_int_eq(stele_branch(s, 1, 0, 0, &err), STELE_OK);
    ck_assert_int_eq(extend(s, 0, ids, 100, 110, CHUNK, row), STELE_OK);
    ck_assert_int_eq(stele_branch(s, 1, 0, 111, &err), STELE_USAGE); /* more than was computed */
    ck_assert_int_eq(stele_branch(s, 1, 1, 0, &err), STELE_USAGE);
    ck_assert_int_eq(stele_branch(s, SEQUENCES, 0, 0, &err), STELE_USAGE);
    ck_assert_int_eq(stele_branch(s, 0, SEQUENCES, 0, &err), STELE_USAGE);
    stele_session_close(s);
}
END_TEST

START_TEST(a_window_that_moved_on_is_not_gone_back_to)
{
    static float row[VOCABULARY];
    struct stele_error err;
    struct stele_session *s = open_session(1); /* a ring of 2 blocks more than the window needs */
    uint32_t ids[CONTEXT];
    for (uint32_t i = 0; i < CONTEXT; i++)
        ids[i] = below(VOCABULARY);
    ck_assert_int_eq(extend(s, 0, ids, 0, CONTEXT, CHUNK, row), STELE_OK);
    ck_assert_int_eq(stele_branch(s, 1, 0, 100, &err), STELE_USAGE);
    ck_assert_int_eq(stele_branch(s, 1, 0, CONTEXT - 1, &err), STELE_OK);
    ck_assert_int_eq(extend(s, 0, ids, 100, 110, CHUNK, row), STELE_USAGE);
    ck_assert_int_eq(stele_branch(s, 1, 0, 0, &err), STELE_OK);
    ck_assert_int_eq(extend(s, 0, ids, 0, 10, CHUNK, row), STELE_OK); /* anew */
    stele_session_close(s);
}
END_TEST

static void setup(void)
{
    ck_assert_ptr_nonnull(mkdtemp(folder));
    for (int i = 0; i < 2; i++)
        images[i] = make_image(i);
}

static void teardown(void)
{
    char command[PATH_MAX];
    for (int i = 0; i < 2; i++)
        stele_image_close(images[i]);
    snprintf(command, sizeof command, "rm -rf %s", folder);
    ck_assert(!system(command));
}

int main(void)
{
    Suite *suite = suite_create("branch");
    TCase *tc = tcase_create("branch");
    tcase_add_unchecked_fixture(tc, setup, teardown);
    tcase_set_timeout(tc, 300);
    tcase_add_loop_test(tc, branches_have_the_bits_of_whole_sequences, 0, 2);
    tcase_add_test(tc, what_a_branch_reads_is_not_computed_anew);
    tcase_add_test(tc, a_window_that_moved_on_is_not_gone_back_to);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
