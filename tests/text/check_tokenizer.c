/* SPDX-License-Identifier: Apache-2.0 */
/* The tokenizer's contract beyond its results: what it refuses, touches, takes, and survives. */
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "tokenizer.h"
#include "utf8.h"
#include "vocab_build.h"
#include "../suite.h"

#define FIXTURE(name) "tests/text/fixtures/" name "/tokenizer.json"

struct loaded {
    uint8_t *section;
    size_t length;
    struct tokenizer tokenizer;
};

static struct loaded load(const char *path)
{
    struct loaded l;
    struct stele_error err;
    ck_assert_msg(!vocab_build(&l.section, &l.length, path, NULL, &err), "%s", err.text);
    ck_assert_msg(!tokenizer_open(&l.tokenizer, l.section, l.length, &err), "%s", err.text);
    return l;
}

/* tokenizer.json in the test data; false, and a line, where there is none. */
static bool load_data(struct loaded *out, const char *folder)
{
    const char *data = getenv("STELE_TEST_DATA");
    char path[4096];
    snprintf(path, sizeof path, "%s/%s/tokenizer.json", data ? data : "../shared", folder);
    if (access(path, R_OK)) {
        printf("skipped: no %s\n", path);
        return false;
    }
    *out = load(path);
    return true;
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t); /* of this process: machines are shared */
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static size_t encode(const struct loaded *l, const char *text, size_t bytes, unsigned flags,
                     uint32_t **ids)
{
    size_t count;
    struct stele_error err;
    enum stele_status status =
        tokenizer_encode(&l->tokenizer, text, NULL, bytes, flags, ids, &count, &err);
    ck_assert_msg(!status, "%s", err.text);
    return count;
}

/* ------------------------------------------------------------------------------------ contract */

START_TEST(text_that_is_not_utf8_is_refused_with_its_offset)
{
    static const struct {
        const char *text;
        const char *offset;
    } bad[] = {{"abc\xff", "offset 3"},
               {"\xc3", "offset 0"},
               {"a\xed\xa0\x80", "offset 1"},
               {"long enough to skip \xc0\x80", "offset 20"},
               {"\xf4\x90\x80\x80", "offset 0"}};
    struct loaded l = load(FIXTURE("split-o200k"));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint32_t *ids;
        size_t count;
        struct stele_error err;
        ck_assert_int_eq(
            tokenizer_encode(&l.tokenizer, bad[i].text, NULL, strlen(bad[i].text), 0, &ids, &count, &err),
            STELE_INPUT);
        ck_assert_msg(strstr(err.text, bad[i].offset), "%s", err.text);
        ck_assert_ptr_null(ids);
    }
    free(l.section);
}
END_TEST

START_TEST(plain_text_has_no_added_tokens)
{
    static const char text[] = "a</s>b";
    struct loaded l = load(FIXTURE("sp-legacy"));
    uint32_t *ids, end = vocab_id_of_token(l.section, l.length, "</s>", 4);
    ck_assert_uint_ne(end, VOCAB_NONE);
    ck_assert_uint_eq(end, tokenizer_added_id(&l.tokenizer, "</s>", 4));
    ck_assert(tokenizer_is_special(&l.tokenizer, end));
    for (int plain = 0; plain < 2; plain++) {
        size_t count =
            encode(&l, text, sizeof text - 1, TOKENIZER_BARE | (plain ? TOKENIZER_PLAIN : 0), &ids);
        bool found = false;
        for (size_t i = 0; i < count; i++)
            found |= ids[i] == end;
        ck_assert_int_eq(found, !plain);
        free(ids);
    }
    free(l.section);
}
END_TEST

START_TEST(bare_text_has_nothing_around_it)
{
    struct loaded l = load(FIXTURE("sp-legacy"));
    uint32_t *bare, *whole;
    size_t n = encode(&l, "the end", 7, TOKENIZER_BARE, &bare);
    ck_assert_uint_eq(encode(&l, "the end", 7, 0, &whole), n + 1);
    ck_assert_uint_eq(whole[0], vocab_id_of_token(l.section, l.length, "<s>", 3));
    ck_assert_mem_eq(whole + 1, bare, n * sizeof *bare);
    free(bare);
    free(whole);
    free(l.section);
}
END_TEST

/* Every id in turn, one at a time: the text never ends inside a character, and nothing is lost. */
START_TEST(a_stream_never_cuts_a_character)
{
    static const char *const paths[] = {FIXTURE("split-o200k"), FIXTURE("sp-legacy"),
                                        FIXTURE("byte-fallback-missing"),
                                        FIXTURE("metaspace-first")};
    struct loaded l = load(paths[_i]);
    uint32_t count = tokenizer_count(&l.tokenizer), *ids = malloc(4000 * sizeof *ids);
    uint64_t seed = 1;
    for (size_t i = 0; i < 4000; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (uint32_t)(seed >> 33) % (count + 3); /* some lie beyond the vocabulary */
    }
    char *all, *sum = NULL;
    const char *text;
    size_t all_bytes, bytes, at = 0;
    struct tokenizer_stream *s;
    ck_assert(!tokenizer_decode(&l.tokenizer, ids, 4000, true, &all, &all_bytes, NULL));
    ck_assert(!tokenizer_stream_open(&s, &l.tokenizer, NULL, 0, NULL));
    sum = malloc(all_bytes + 1);
    for (size_t i = 0; i <= 4000; i++) {
        ck_assert(!(i < 4000 ? tokenizer_stream_push(s, ids[i], &text, &bytes, NULL)
                             : tokenizer_stream_end(s, &text, &bytes, NULL)));
        ck_assert_uint_eq(utf8_valid(text, bytes), bytes);
        ck_assert_uint_le(at + bytes, all_bytes);
        memcpy(sum + at, text, bytes);
        at += bytes;
    }
    ck_assert_uint_eq(at, all_bytes);
    ck_assert_mem_eq(sum, all, at);
    tokenizer_stream_free(s);
    free(sum);
    free(all);
    free(ids);
    free(l.section);
}
END_TEST

START_TEST(opening_touches_the_header_alone)
{
    struct loaded l = load(FIXTURE("split-o200k"));
    size_t page = (size_t)sysconf(_SC_PAGESIZE), mapped = round_up(l.length, page);
    uint8_t *map = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(map, MAP_FAILED);
    memcpy(map, l.section, l.length);
    ck_assert_int_eq(mprotect(map + page, mapped - page, PROT_NONE), 0);
    struct tokenizer t;
    ck_assert_int_eq(tokenizer_open(&t, map, l.length, NULL), STELE_OK);
    ck_assert_uint_eq(tokenizer_count(&t), tokenizer_count(&l.tokenizer));
    munmap(map, mapped);
    free(l.section);
}
END_TEST

START_TEST(a_piece_is_the_bytes_of_one_token)
{
    static const struct {
        const char *path, *token, *bytes;
    } cases[] = {{FIXTURE("split-o200k"), "\xc4\xa0the", " the"},
                 {FIXTURE("sp-legacy"), "\xe2\x96\x81the", " the"},
                 {FIXTURE("sp-legacy"), "<0xE9>", "\xe9"}};
    struct loaded l = load(cases[_i].path);
    uint32_t id = vocab_id_of_token(l.section, l.length, cases[_i].token, strlen(cases[_i].token));
    char *bytes;
    size_t length;
    ck_assert_uint_ne(id, VOCAB_NONE);
    ck_assert(!tokenizer_piece(&l.tokenizer, id, &bytes, &length, NULL));
    ck_assert_str_eq(bytes, cases[_i].bytes);
    free(bytes);
    free(l.section);
}
END_TEST

START_TEST(the_same_file_gives_the_same_bytes)
{
    struct loaded a = load(FIXTURE("sp-legacy")), b = load(FIXTURE("sp-legacy"));
    ck_assert_uint_eq(a.length, b.length);
    ck_assert_mem_eq(a.section, b.section, a.length);
    free(a.section);
    free(b.section);
}
END_TEST

/* ------------------------------------------------------------------------------ hostile sections
 */

static void use(const struct tokenizer *t, const char *text, unsigned flags)
{
    uint32_t *ids;
    size_t count, bytes;
    char *back;
    if (tokenizer_encode(t, text, NULL, strlen(text), flags, &ids, &count, NULL))
        return;
    tokenizer_decode(t, ids, count, flags & 1, &back, &bytes, NULL);
    free(back);
    if (count && !tokenizer_piece(t, ids[0], &back, &bytes, NULL))
        free(back);
    free(ids);
}

/* Bytes flipped at random, mostly in the header and the small tables: an error or an answer, and no
 * read beyond the section (the sanitizers watch). */
START_TEST(a_damaged_section_is_survived)
{
    static const char *const paths[] = {FIXTURE("split-o200k"), FIXTURE("sp-legacy"),
                                        FIXTURE("added-nfc"), FIXTURE("added-both-strip"),
                                        FIXTURE("metaspace-first")};
    static const char text[] = "<s>the  end<x> I'm 123 \xc3\xa9\xe4\xb8\xad e\xcc\x81 <|end|>\n\n"
                               "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                               "  \xe2\x96\x81the</s>";
    struct loaded l = load(paths[_i]);
    uint64_t seed = 7;
    for (int round = 0; round < 400; round++) {
        uint8_t *copy = malloc(l.length);
        memcpy(copy, l.section, l.length);
        for (int flip = 0; flip <= round % 4; flip++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            size_t reach = seed >> 62 ? l.length : 4096;
            copy[(seed >> 8) % reach] = (uint8_t)(seed >> 40);
        }
        struct tokenizer t;
        if (!tokenizer_open(&t, copy, l.length, NULL))
            for (unsigned flags = 0; flags < 4; flags++)
                use(&t, text, flags);
        free(copy);
    }
    free(l.section);
}
END_TEST

/* ------------------------------------------------------------------------------------- content */

/* An added token as texts spell it. */
struct spelled {
    const char *text;
    size_t length;
    uint32_t id, flags;
    bool normalized; /* sought in normalised text */
};

enum { SPELLED_MAX = 60, TEXT_ROOM = 600 };

static size_t gather_spelled(const struct loaded *l, struct spelled *out)
{
    const struct vocab *v = &l->tokenizer.vocab;
    const struct vocab_added *added = vocab_records(v, VOCAB_ADDED);
    const struct vocab_node *nodes = vocab_records(v, VOCAB_NORMAL);
    uint32_t count = vocab_count(v, VOCAB_ADDED), flags, stride = count / SPELLED_MAX + 1;
    size_t n = 0;
    for (uint32_t i = 0; i < count; i += stride) {
        struct spelled s = {.id = added[i].id, .flags = added[i].flags};
        for (uint32_t j = 0; j < vocab_count(v, VOCAB_NORMAL); j++)
            s.normalized |= nodes[j].added == i;
        if (!vocab_token(v, s.id, &s.text, &s.length, &flags) || !s.length || s.length > 36 ||
            utf8_valid(s.text, s.length) < s.length)
            continue;
        if (s.normalized && s.length > 3 && !memcmp(s.text, "\xe2\x96\x81", 3)) { /* of Prepend, not of the text */
            s.text += 3;
            s.length -= 3;
        }
        out[n++] = s;
    }
    return n;
}

/* Text of tokens, their beginnings and ends, marks, spaces and words; each part is content or not, as its bytes say. */
static size_t random_text(const struct spelled *tokens, size_t count, char *text, uint8_t *content)
{
    static const char *const words[] = {
        " ", "a",  "hi there",     "\xcc\x81", "\xcc\xb8",     "\xc3\xa9", "\n\n", "  ", "\xe4\xb8\xad",
        "<", "|>", "\xe2\x96\x81", "e",        "\xe2\x80\x8d", "12",       "    "};
    size_t n = 0;
    for (int part = 0; part < 16; part++) {
        const char *from = words[random_below(16)];
        size_t length = strlen(from);
        if (count && random_below(2)) {
            const struct spelled *t = &tokens[random_below((uint32_t)count)];
            size_t cut = random_below(3) ? 0 : random_below((uint32_t)t->length);
            while (cut && ((unsigned char)t->text[cut] & 0xc0) == 0x80)
                cut--; /* not in a character */
            bool head = random_below(2);
            from = head || !cut ? t->text : t->text + cut;
            length = !cut ? t->length : head ? cut : t->length - cut;
        }
        memcpy(text + n, from, length);
        memset(content + n, random_below(2) ? 1 : 0, length);
        n += length;
    }
    return n;
}

/* How often a token is spelled with no byte of content. */
static size_t spelled_free(const struct spelled *s, const char *text, const uint8_t *content, size_t bytes)
{
    size_t n = 0;
    for (size_t at = 0; at + s->length <= bytes; at++)
        n += !memcmp(text + at, s->text, s->length) && !memchr(content + at, 1, s->length);
    return n;
}

static size_t count_id(const uint32_t *ids, size_t count, uint32_t id)
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        n += ids[i] == id;
    return n;
}

static bool same_ids(const uint32_t *a, size_t a_count, const uint32_t *b, size_t b_count)
{
    return a_count == b_count && (!a_count || !memcmp(a, b, a_count * sizeof *a));
}

/* Ids of a text by marks; the caller frees them. */
static size_t encode_marked(const struct loaded *l, const char *text, const uint8_t *content, size_t bytes,
                            unsigned flags, uint32_t **ids)
{
    size_t count;
    struct stele_error err;
    flags |= TOKENIZER_BARE;
    ck_assert_msg(!tokenizer_encode(&l->tokenizer, text, content, bytes, flags, ids, &count, &err), "%s", err.text);
    return count;
}

/* `exact`: normalised tokens are spelled in normalised text as in the text itself. */
static void check_content(const struct loaded *l, const char *path, int rounds, bool exact)
{
    static uint8_t none[TEXT_ROOM * 2], all[TEXT_ROOM * 2], content[TEXT_ROOM * 2];
    struct spelled tokens[SPELLED_MAX];
    size_t count = gather_spelled(l, tokens);
    bool ordinary = false;
    memset(all, 1, sizeof all);
    const struct vocab_added *added = vocab_records(&l->tokenizer.vocab, VOCAB_ADDED);
    for (uint32_t i = 0; i < vocab_count(&l->tokenizer.vocab, VOCAB_ADDED); i++)
        ordinary |= (added[i].flags & ADDED_ORDINARY) != 0;
    for (int round = 0; round < rounds; round++) {
        char text[TEXT_ROOM * 2];
        uint32_t *a, *b, *c, *d, *e;
        size_t n = random_text(tokens, count, text, content);
        size_t a_count = encode_marked(l, text, NULL, n, 0, &a), b_count = encode_marked(l, text, none, n, 0, &b);
        size_t c_count = encode_marked(l, text, all, n, 0, &c);
        size_t d_count = encode_marked(l, text, NULL, n, TOKENIZER_PLAIN, &d);
        size_t e_count = encode_marked(l, text, content, n, 0, &e);
        ck_assert_msg(same_ids(a, a_count, b, b_count), "%s: without content other ids: \"%.*s\"", path, (int)n, text);
        ck_assert_msg(ordinary || same_ids(c, c_count, d, d_count), "%s: all content, not plain: \"%.*s\"", path,
                      (int)n, text);
        if (same_ids(a, a_count, d, d_count) && !ordinary)
            ck_assert_msg(same_ids(e, e_count, a, a_count), "%s: nothing is spelled, other ids: \"%.*s\"", path, (int)n,
                          text);
        for (size_t i = 0; i < count; i++) {
            const struct spelled *s = &tokens[i];
            if ((s->flags & ADDED_ORDINARY) || (s->normalized && !exact) || count_id(d, d_count, s->id))
                continue; /* the last: plain text leads to the id, too */
            size_t most = spelled_free(s, text, content, n), got = count_id(e, e_count, s->id);
            ck_assert_msg(got <= most, "%s: id %" PRIu32 " %zu times, free %zu times: \"%.*s\"", path, s->id, got, most,
                          (int)n, text);
        }
        free(a);
        free(b);
        free(c);
        free(d);
        free(e);
    }
}

/* One vocabulary in `one_in`, of a folder of such. */
static void check_folder(const char *folder, int one_in, int *checked)
{
    int seen = 0;
    DIR *dir = opendir(folder);
    if (!dir) {
        printf("skipped: no %s\n", folder);
        return;
    }
    for (struct dirent *entry; (entry = readdir(dir));) {
        char path[8192];
        struct loaded l;
        snprintf(path, sizeof path, "%s/%.255s/tokenizer.json", folder, entry->d_name);
        if (*entry->d_name == '.' || access(path, R_OK) || seen++ % one_in ||
            vocab_build(&l.section, &l.length, path, NULL, NULL))
            continue; /* what is not supported is refused: check_cases.c */
        ck_assert_msg(!tokenizer_open(&l.tokenizer, l.section, l.length, NULL), "%s", path);
        check_content(&l, path, rounds_of(60), false);
        free(l.section);
        ++*checked;
    }
    closedir(dir);
}

START_TEST(content_spells_no_added_token_whatever_the_vocabulary)
{
    const char *data = getenv("STELE_TEST_DATA");
    char path[4096] = "tests/text/fixtures";
    int checked = 0;
    if (_i)
        snprintf(path, sizeof path, "%s/tokenizers/synthetic", data ? data : "../shared");
    check_folder(path, _i ? 60 / rounds_of(60) : 1, &checked);
    printf("content: %d vocabularies\n", checked);
    ck_assert(_i || checked > 5);
}
END_TEST

START_TEST(content_spells_no_added_token_of_a_models_vocabulary)
{
    static const struct {
        const char *name;
        bool exact;
    } vocabularies[] = {{"tokenizers/llama2-normalized", true}, {"tokenizers/phi3-mini", true},
                        {"tokenizers/deepseek-v3", true},       {"tokenizers/olmo", false},
                        {"tokenizers/gpt2", true},              {"models/trained12M", true}};
    struct loaded l;
    if (!load_data(&l, vocabularies[_i].name))
        return;
    check_content(&l, vocabularies[_i].name, rounds_of(300), vocabularies[_i].exact);
    free(l.section);
}
END_TEST

/* --------------------------------------------------------------------------------- cost of text */

static long peak_bytes(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_maxrss * 1024;
}

/* A run of a million equal characters, whatever the pattern: seconds would be quadratic. */
START_TEST(a_long_run_takes_little_time_and_memory)
{
    static const char *const paths[] = {FIXTURE("split-o200k"), FIXTURE("sp-legacy"),
                                        FIXTURE("added-nfc"), FIXTURE("metaspace-first")};
    static const char *const runs[] = {"a",
                                       " ",
                                       "1",
                                       "\n",
                                       "\xe4\xb8\xad",
                                       "\xcc\x81",
                                       "e\xcc\x81",
                                       "\xe2\x96\x81",
                                       "<",
                                       ".",
                                       "\xcc\x81\xcc\xa7"};
    enum { BYTES = 1 << 20, SECONDS_MAX = 20 }; /* sanitizers take 8; quadratic time, hours */
    struct loaded l = load(paths[_i / (int)(sizeof runs / sizeof *runs)]);
    const char *unit = runs[_i % (int)(sizeof runs / sizeof *runs)];
    size_t n = strlen(unit), count = BYTES / n;
    char *text = malloc(count * n);
    for (size_t i = 0; i < count; i++)
        memcpy(text + i * n, unit, n);
    uint32_t *ids;
    long before = peak_bytes();
    double start = seconds();
    encode(&l, text, count * n, 0, &ids);
    double took = seconds() - start;
    long bytes = peak_bytes() - before;
    ck_assert_msg(took < SECONDS_MAX, "%s: a million bytes of \"%s\" took %.1f s", paths[_i / 11],
                  unit, took);
#ifndef __SANITIZE_ADDRESS__
    ck_assert_msg(bytes < 64L * BYTES, "%s: %.1f bytes a byte of \"%s\"", paths[_i / 11],
                  (double)bytes / BYTES, unit);
#else
    (void)bytes;
#endif
    free(ids);
    free(text);
    free(l.section);
}
END_TEST

START_TEST(the_section_of_a_small_vocabulary_is_small)
{
    struct loaded l;
    if (!load_data(&l, "models/trained12M"))
        return;
    printf("trained12M: %zu bytes for %" PRIu32 " ids\n", l.length, tokenizer_count(&l.tokenizer));
    ck_assert_uint_le(l.length, 150000);
    free(l.section);
}
END_TEST

/* Prints the rates; asserts a tenth of the goal of 10 MB/s, for sanitizers and slow machines. */
START_TEST(encoding_is_fast)
{
    static const char *const vocabularies[] = {"tokenizers/llama3", "tokenizers/qwen3",
                                               "tokenizers/llama2", "models/trained12M"};
    static const char *const texts[] = {"prose.txt", "technical.txt", "multilingual.txt"};
    struct loaded l;
    const char *data = getenv("STELE_TEST_DATA");
    if (!load_data(&l, vocabularies[_i]))
        return;
    for (size_t t = 0; t < 3; t++) {
        char path[4096], *text = malloc(1 << 20);
        snprintf(path, sizeof path, "%s/text/%s", data ? data : "../shared", texts[t]);
        FILE *file = fopen(path, "r");
        size_t bytes = file ? fread(text, 1, 1 << 20, file) : 0, count = 0;
        double best = 1e9;
        while (bytes && utf8_valid(text, bytes) < bytes)
            bytes--;
        for (int round = 0; round < rounds_of(5) && bytes; round++) {
            uint32_t *ids;
            double start = seconds();
            count = encode(&l, text, bytes, 0, &ids);
            double took = seconds() - start;
            best = took < best ? took : best;
            free(ids);
        }
        if (bytes) {
            printf("%s, %s: %.1f MB/s, %.2f bytes an id\n", vocabularies[_i], texts[t],
                   (double)bytes / best / 1e6, (double)bytes / (double)count);
            ck_assert_msg((double)bytes / best > 1e6, "%s, %s: %.2f MB/s", vocabularies[_i],
                          texts[t], (double)bytes / best / 1e6);
        }
        if (file)
            fclose(file);
        free(text);
    }
    free(l.section);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tokenizer");
    TCase *tc = tcase_create("contract");
    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, text_that_is_not_utf8_is_refused_with_its_offset);
    tcase_add_test(tc, plain_text_has_no_added_tokens);
    tcase_add_test(tc, bare_text_has_nothing_around_it);
    tcase_add_loop_test(tc, a_stream_never_cuts_a_character, 0, 4);
    tcase_add_test(tc, opening_touches_the_header_alone);
    tcase_add_loop_test(tc, a_piece_is_the_bytes_of_one_token, 0, 3);
    tcase_add_test(tc, the_same_file_gives_the_same_bytes);
    tcase_add_loop_test(tc, a_damaged_section_is_survived, 0, 5);
    tcase_add_loop_test(tc, content_spells_no_added_token_whatever_the_vocabulary, 0, 2);
    tcase_add_loop_test(tc, content_spells_no_added_token_of_a_models_vocabulary, 0, 6);
    tcase_add_loop_test(tc, a_long_run_takes_little_time_and_memory, 0, 4 * 11);
    tcase_add_test(tc, the_section_of_a_small_vocabulary_is_small);
    tcase_add_loop_test(tc, encoding_is_fast, 0, 4);
    suite_add_tcase(suite, tc);
    return suite_run(suite) ? EXIT_FAILURE : EXIT_SUCCESS;
}
