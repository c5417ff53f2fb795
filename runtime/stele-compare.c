/* SPDX-License-Identifier: Apache-2.0 */
/* `stele compare`: an image against reference values that another implementation made of the same
 * checkpoint. A program of its own, so that `stele` does not load a JSON library at each start.
 *
 *     gather     expected.json, golden.json -> references
 *     compare    each in a session of its own: logits, greedy ids, a line
 *
 * A reference has ids and one or both of: a file of logits, and the ids that greedy decoding
 * continues with. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <libgen.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmd.h"
#include "descriptors.h"
#include "guard.h"
#include "stele.h"

enum { LOGITS_BYTES = 16 << 20 }; /* of a block of rows, at least one row */

static struct {
    float bound;
    uint64_t threads, chunk;
    const char *device;
    int kv;
    bool json, help;
} set = {.bound = 1e-5f, .kv = 0};

static const struct cmd_option options[] = {
    {"--bound", OPTION_NUMBER, &set.bound, "X",
     "largest difference allowed, of the largest logit (default 1e-5)", 0, 1, NULL},
    {"--kv", OPTION_CHOICE, &set.kv, NULL,
     "keys and values (default f32, as the references have them)", 0, 0, "f32|f16"},
    {"--chunk", OPTION_COUNT, &set.chunk, "N", "tokens of a step at most (default 512)", 1, 65536,
     NULL},
    {"--threads", OPTION_COUNT, &set.threads, "N", "default: the CPUs this process may use", 1, 256,
     NULL},
    {"--device", OPTION_TEXT, &set.device, "NAME", "cpu (the default), cuda, cuda:N or auto", 0, 0, NULL},
    {"--json", OPTION_FLAG, &set.json, NULL, "one JSON object a line", 0, 0, NULL},
    {"--help", OPTION_FLAG, &set.help, NULL, "this text", 0, 0, NULL},
    {0},
};

static const char about[] =
    "usage: stele compare IMAGE DIR|FILE [options]\n"
    "\n"
    "Runs an image on the reference values that lie beside a checkpoint, in DIR/expected.json or\n"
    "DIR/golden.json, or in FILE, which is spelled like one of them. Prints for each how far the\n"
    "logits are from those of the reference, relative to its largest, and whether greedy decoding\n"
    "gives the same ids, or where it parts. The references are made in f32 or better, so compare\n"
    "an image of the checkpoint's own type; a quantised one differs by what was rounded.\n"
    "\n"
    "options:\n";

static const char codes[] =
    "\nexit codes: 0 all within the bound, 1 system, 2 usage, 3 input, 4 the answers differ\n";

static void print_help(void)
{
    fputs(about, stdout);
    for (const struct cmd_option *o = options; o->name; o++) {
        const char *value = o->kind == OPTION_CHOICE ? o->words : o->value;
        int n = printf("  %s%s%s", o->name, value ? " " : "", value ? value : "");
        printf("%*s%s\n", n < 26 ? 26 - n : 2, "", o->help);
    }
    fputs(codes, stdout);
}

/* ---- references ---- */

struct reference {
    char name[32]; /* "input 1" */
    uint32_t *ids;
    size_t count;
    char *logits;      /* path of the file; NULL: none */
    size_t vocabulary; /* numbers of its rows */
    uint32_t *rows;    /* positions that the file has rows of; NULL: all */
    size_t row_count;
    uint32_t *greedy; /* NULL: not known */
    size_t greedy_count;
    int64_t stop; /* the id that ended it, which is not in greedy; -1: none */
};

struct references {
    struct reference *items;
    size_t count;
    const char *file; /* of JSON, under way */
    char *folder;     /* in which files of logits lie */
    struct stele_error *err;
};

static enum stele_status malformed(const struct references *all, const struct reference *r,
                                   const char *what)
{
    return stele_fail(all->err, STELE_INPUT, "%s: %s: %s", all->file, r->name, what);
}

/* An array of whole numbers below 2^32 - 1, malloc'ed. */
static enum stele_status read_ids(const struct references *all, const struct reference *r,
                                  const json_t *array, uint32_t **out, size_t *count)
{
    size_t n = json_array_size(array);
    *out = malloc((n + 1) * sizeof **out);
    if (!*out)
        return stele_fail(all->err, STELE_SYSTEM, "%s: no memory for %zu ids", all->file, n);
    *count = n;
    for (size_t i = 0; i < n; i++) {
        const json_t *id = json_array_get(array, i);
        json_int_t value = json_integer_value(id);
        if (!json_is_integer(id) || value < 0 || value >= UINT32_MAX)
            return malformed(all, r, "an id is no whole number in range");
        (*out)[i] = (uint32_t)value;
    }
    return STELE_OK;
}

/* The file that `name` names, beside the JSON. */
static enum stele_status read_logits_name(const struct references *all, struct reference *r,
                                          const json_t *name, const json_t *vocabulary)
{
    const char *text = json_string_value(name);
    json_int_t n = json_integer_value(vocabulary);
    if (!text || strchr(text, '/') || !strcmp(text, ".."))
        return malformed(all, r, "the file of logits has no proper name");
    if (n < 1 || n > INT32_MAX)
        return malformed(all, r, "n_vocab is missing or out of range");
    r->vocabulary = (size_t)n;
    if (asprintf(&r->logits, "%s/%s", all->folder, text) >= 0)
        return STELE_OK;
    r->logits = NULL;
    return stele_fail(all->err, STELE_SYSTEM, "%s: no memory", all->file);
}

/* A new reference at the end, and its ids. */
static enum stele_status add(struct references *all, struct reference **out, const char *kind,
                             size_t number, const json_t *ids)
{
    struct reference *items = realloc(all->items, (all->count + 1) * sizeof *items);
    if (!items)
        return stele_fail(all->err, STELE_SYSTEM, "%s: no memory for its references", all->file);
    all->items = items;
    struct reference *r = *out = &items[all->count++];
    *r = (struct reference){.stop = -1};
    snprintf(r->name, sizeof r->name, number ? "%s %zu" : "%s", kind, number);
    if (!json_array_size(ids))
        return malformed(all, r, "it has no ids");
    return read_ids(all, r, ids, &r->ids, &r->count);
}

static enum stele_status add_greedy(const struct references *all, struct reference *r,
                                    const json_t *ids, const json_t *stop)
{
    if (!json_is_array(ids))
        return malformed(all, r, "its greedy ids are missing");
    if (json_is_integer(stop))
        r->stop = json_integer_value(stop);
    return read_ids(all, r, ids, &r->greedy, &r->greedy_count);
}

/* expected.json: `inputs`, each with ids, logits and greedy ids. */
static enum stele_status add_inputs(struct references *all, const json_t *root)
{
    const json_t *inputs = json_object_get(root, "inputs"), *input;
    size_t i;
    json_array_foreach(inputs, i, input)
    {
        struct reference *r;
        enum stele_status status = add(all, &r, "input", i + 1, json_object_get(input, "ids"));
        if (status == STELE_OK)
            status = read_logits_name(all, r, json_object_get(input, "logits"),
                                      json_object_get(root, "n_vocab"));
        if (status == STELE_OK)
            status = add_greedy(all, r, json_object_get(input, "greedy"), NULL);
        if (status != STELE_OK)
            return status;
    }
    return STELE_OK;
}

/* golden.json: `logits`, of one text, and `runs`, each with a prompt's ids and what follows them.
 */
static enum stele_status add_golden(struct references *all, const json_t *root)
{
    const json_t *logits = json_object_get(root, "logits"), *runs = json_object_get(root, "runs"),
                 *run;
    const json_t *file = json_object_get(logits, "file"),
                 *rows = json_object_get(logits, "file_positions");
    struct reference *r;
    enum stele_status status = STELE_OK;
    if (json_is_string(file)) {
        status = add(all, &r, "logits", 0, json_object_get(logits, "ids"));
        if (status == STELE_OK)
            status = read_logits_name(all, r, file, json_object_get(logits, "n_vocab"));
        if (status == STELE_OK && json_is_array(rows))
            status = read_ids(all, r, rows, &r->rows, &r->row_count);
    }
    size_t i;
    json_array_foreach(runs, i, run)
    {
        if (status == STELE_OK)
            status = add(all, &r, "run", i + 1, json_object_get(run, "prompt_ids"));
        if (status == STELE_OK)
            status = add_greedy(all, r, json_object_get(run, "greedy_ids"),
                                json_object_get(run, "stop_id"));
    }
    return status;
}

static enum stele_status read_json(struct references *all, const char *path)
{
    json_error_t why;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &why);
    if (!root && json_error_code(&why) == json_error_cannot_open_file)
        return stele_fail(all->err, STELE_SYSTEM, "%s: %s", path, strerror(errno));
    if (!root)
        return stele_fail(all->err, STELE_INPUT,
                          "%s: line %d, column %d: not JSON that stele reads: %s", path, why.line,
                          why.column, why.text);
    size_t before = all->count;
    all->file = path;
    enum stele_status status = add_inputs(all, root);
    if (status == STELE_OK)
        status = add_golden(all, root);
    if (status == STELE_OK && all->count == before)
        status = stele_fail(all->err, STELE_INPUT,
                            "%s: it has neither `inputs` nor `runs` nor `logits`", path);
    json_decref(root);
    return status;
}

/* The references of a folder, or of one file. */
static enum stele_status gather(struct references *all, const char *operand)
{
    static const char *const names[] = {"expected.json", "golden.json"};
    struct stat st;
    if (stat(operand, &st))
        return stele_fail(all->err, STELE_SYSTEM, "%s: %s", operand, strerror(errno));
    char *copy = strdup(operand);
    all->folder = copy ? strdup(S_ISDIR(st.st_mode) ? operand : dirname(copy)) : NULL;
    free(copy);
    if (!all->folder)
        return stele_fail(all->err, STELE_SYSTEM, "%s: no memory", operand);
    if (!S_ISDIR(st.st_mode))
        return read_json(all, operand);
    enum stele_status status = STELE_OK;
    bool found = false;
    for (size_t i = 0; status == STELE_OK && i < sizeof names / sizeof *names; i++) {
        char *path;
        if (asprintf(&path, "%s/%s", operand, names[i]) < 0)
            return stele_fail(all->err, STELE_SYSTEM, "%s: no memory", operand);
        if (!access(path, F_OK)) {
            found = true;
            status = read_json(all, path);
        }
        free(path);
    }
    return found ? status
                 : stele_fail(all->err, STELE_INPUT,
                              "%s: there is neither expected.json nor golden.json", operand);
}

static void free_references(struct references *all)
{
    for (size_t i = 0; i < all->count; i++) {
        free(all->items[i].ids);
        free(all->items[i].logits);
        free(all->items[i].rows);
        free(all->items[i].greedy);
    }
    free(all->items);
    free(all->folder);
}

/* ---- one reference ---- */

/* The ids that follow, `stop` the last of them. */
static size_t greedy_all(const struct reference *r)
{
    return r->greedy_count + (r->stop >= 0);
}

static int64_t greedy_at(const struct reference *r, size_t i)
{
    return i < r->greedy_count ? (int64_t)r->greedy[i] : r->stop;
}

struct comparison {
    const struct stele_image *image;
    const struct reference *reference;
    struct stele_session *session;
    struct stele_session_info info;
    float *rows; /* [rows_max][vocabulary] */
    size_t rows_max;
    const float *want; /* the mapped file; NULL: none */
    size_t want_bytes;
    double difference, largest; /* of the logits, absolute */
    size_t equal;               /* greedy ids that are as they should be */
    uint32_t got;               /* the first that is not */
    struct stele_error *err;
};

static size_t wanted_rows(const struct reference *r)
{
    return r->rows ? r->row_count : r->count;
}

static enum stele_status map_logits(struct comparison *c)
{
    const struct reference *r = c->reference;
    size_t need = wanted_rows(r) * r->vocabulary * sizeof *c->want;
    int fd = open(r->logits, O_RDONLY | O_CLOEXEC);
    struct stat st;
    enum stele_status status = STELE_OK;
    if (fd < 0 || fstat(fd, &st))
        status = stele_fail(c->err, STELE_SYSTEM, "%s: %s", r->logits, strerror(errno));
    else if ((uint64_t)st.st_size != need || !need)
        status =
            stele_fail(c->err, STELE_INPUT, "%s: %jd bytes long; %zu rows of %zu numbers have %zu",
                       r->logits, (intmax_t)st.st_size, wanted_rows(r), r->vocabulary, need);
    else {
        void *bytes = mmap(NULL, need, PROT_READ, MAP_PRIVATE, fd, 0);
        if (bytes == MAP_FAILED)
            status = stele_fail(c->err, STELE_SYSTEM, "%s: cannot map it: %s", r->logits,
                                strerror(errno));
        else {
            c->want = bytes;
            c->want_bytes = need;
        }
    }
    if (fd >= 0)
        close(fd);
    return status;
}

/* A context of the positions that are used and no more: where RoPE depends on it, that is what the
 * reference saw. */
static enum stele_status open_session(struct comparison *c)
{
    const struct reference *r = c->reference;
    size_t all = greedy_all(r), positions = r->count + (all ? all - 1 : 0);
    static const enum stele_kv kinds[] = {STELE_KV_F32, STELE_KV_F16};
    struct stele_options o = {
        .threads = (uint32_t)set.threads,
        .context = positions < UINT32_MAX ? (uint32_t)positions : UINT32_MAX,
        .chunk = (uint32_t)set.chunk,
        .kv = kinds[set.kv],
        .kernels = cmd_kernels(),
        .device = set.device,
    };
    enum stele_status status = stele_session_open(&c->session, c->image, &o, c->err);
    if (status != STELE_OK)
        return status;
    c->info = stele_session_info(c->session);
    size_t row_bytes = c->info.vocabulary * sizeof *c->rows;
    c->rows_max = row_bytes < LOGITS_BYTES ? LOGITS_BYTES / row_bytes : 1;
    c->rows = malloc(c->rows_max * row_bytes);
    if (!c->rows)
        return stele_fail(c->err, STELE_SYSTEM, "no memory for %zu rows of logits", c->rows_max);
    if (r->logits && r->vocabulary != c->info.vocabulary)
        return stele_fail(c->err, STELE_INPUT,
                          "%s: rows of %zu numbers; the image has a vocabulary of %" PRIu32,
                          r->logits, r->vocabulary, c->info.vocabulary);
    return r->logits ? map_logits(c) : STELE_OK;
}

/* The row of the file that belongs to a position; NULL: none. */
static const float *wanted(const struct comparison *c, size_t position)
{
    const struct reference *r = c->reference;
    if (!r->rows)
        return c->want + position * r->vocabulary;
    for (size_t i = 0; i < r->row_count; i++)
        if (r->rows[i] == position)
            return c->want + i * r->vocabulary;
    return NULL;
}

static void compare_row(struct comparison *c, size_t position, const float *row)
{
    const float *want = c->want ? wanted(c, position) : NULL;
    for (size_t i = 0; want && i < c->info.vocabulary; i++) {
        double size = fabs((double)want[i]), off = fabs((double)row[i] - (double)want[i]);
        c->largest = size > c->largest ? size : c->largest;
        c->difference = off > c->difference || isnan(off) ? off : c->difference;
    }
}

/* All ids in steps; at the end rows[0] predicts what follows. */
static enum stele_status prefill(struct comparison *c)
{
    const struct reference *r = c->reference;
    enum stele_status status = STELE_OK;
    for (size_t first = 0, n; status == STELE_OK && first < r->count; first += n) {
        n = r->count - first < c->info.chunk ? r->count - first : c->info.chunk;
        size_t skip = c->want ? 0 : n - 1, rows; /* without a file only the last row is of use */
        struct stele_slice slice = {.first = (uint32_t)first,
                                    .count = (uint32_t)n,
                                    .logits_from = (uint32_t)skip,
                                    .ids = r->ids + first};
        status = stele_step(c->session, &slice, 1, c->err);
        for (size_t from = skip; status == STELE_OK && from < n; from += rows) {
            rows = n - from < c->rows_max ? n - from : c->rows_max;
            status = stele_logits(c->session, from - skip, rows, c->rows, c->err);
            for (size_t i = 0; status == STELE_OK && i < rows; i++)
                compare_row(c, first + from + i, c->rows + i * c->info.vocabulary);
            if (status == STELE_OK && rows > 1)
                memcpy(c->rows, c->rows + (rows - 1) * c->info.vocabulary,
                       c->info.vocabulary * sizeof *c->rows);
        }
    }
    return status;
}

static uint32_t top_of(const float *row, uint32_t n)
{
    uint32_t top = 0;
    for (uint32_t i = 1; i < n; i++)
        top = row[i] > row[top] ? i : top;
    return top;
}

/* Greedy ids until one is another than the reference's. */
static enum stele_status continue_greedily(struct comparison *c)
{
    const struct reference *r = c->reference;
    enum stele_status status = STELE_OK;
    while (status == STELE_OK && c->equal < greedy_all(r)) {
        c->got = top_of(c->rows, c->info.vocabulary);
        if (c->got != greedy_at(r, c->equal))
            return STELE_OK;
        if (++c->equal == greedy_all(r))
            return STELE_OK;
        struct stele_slice slice = {
            .first = (uint32_t)(r->count + c->equal - 1), .count = 1, .ids = &c->got};
        status = stele_step(c->session, &slice, 1, c->err);
        if (status == STELE_OK)
            status = stele_logits(c->session, 0, 1, c->rows, c->err);
    }
    return status;
}

static void print(const struct comparison *c, bool within)
{
    const struct reference *r = c->reference;
    double relative = c->difference / c->largest;
    size_t all = greedy_all(r);
    if (set.json) {
        printf("{\"name\": \"%s\", \"ids\": %zu, \"logits\": ", r->name, r->count);
        printf(c->want ? "%.3g" : "null", relative);
        printf(r->greedy ? ", \"greedy\": %zu, \"greedy_equal\": %zu"
                         : ", \"greedy\": null, \"greedy_equal\": null",
               all, c->equal);
        printf(", \"within\": %s}\n", within ? "true" : "false");
        return;
    }
    printf("%-9s %5zu ids", r->name, r->count);
    if (c->want)
        printf("  logits off by %.2g of the largest", relative);
    if (r->greedy && c->equal == all)
        printf("  all %zu greedy ids equal", all);
    else if (r->greedy)
        printf("  greedy ids part at %zu of %zu: %" PRIu32 " instead of %" PRId64, c->equal + 1,
               all, c->got, greedy_at(r, c->equal));
    puts(within ? "" : "  DIFFERENT");
}

static enum stele_status compare(const struct stele_image *image, const struct reference *r,
                                 bool *within, struct stele_error *err)
{
    struct comparison c = {.image = image, .reference = r, .err = err};
    enum stele_status status = open_session(&c);
    if (status == STELE_OK)
        status = prefill(&c);
    if (status == STELE_OK)
        status = continue_greedily(&c);
    *within = c.difference <= (double)set.bound * c.largest && c.equal == greedy_all(r);
    if (status == STELE_OK)
        print(&c, *within);
    if (c.want)
        munmap((void *)(uintptr_t)c.want, c.want_bytes);
    free(c.rows);
    stele_session_close(c.session);
    return status;
}

static enum stele_status compare_all(const struct stele_image *image, const char *path,
                                     const char *operand, struct stele_error *err)
{
    struct references all = {.err = err};
    size_t different = 0;
    enum stele_status status = gather(&all, operand);
    for (size_t i = 0; status == STELE_OK && i < all.count; i++) {
        bool within;
        status = compare(image, &all.items[i], &within, err);
        different += !within;
    }
    if (status == STELE_OK)
        status = stele_image_unchanged(image, err);
    if (status == STELE_OK && (fflush(stdout) || ferror(stdout)))
        status = stele_fail(err, STELE_SYSTEM, "standard output: %s", strerror(errno));
    if (status == STELE_OK && different)
        status =
            stele_fail(err, STELE_DAMAGED, "%s: %zu of %zu answers are not those of %s (bound %g)",
                       path, different, all.count, operand, (double)set.bound);
    free_references(&all);
    return status;
}

int main(int argc, char **argv)
{
    guard_mark_start();
    hold_standard_descriptors();
    signal(SIGXFSZ, SIG_IGN); /* a file that may not grow is an error with a sentence */
    struct stele_error err = {0};
    struct stele_image *image = NULL;
    const char *operands[2] = {NULL};
    char verb[] = "compare";
    size_t count;
    argv[0] = verb; /* as sentences name it */
    enum stele_status status = cmd_options(options, argc, argv, operands, 2, &count, &err);
    if (status == STELE_OK && set.help) {
        print_help();
        return STELE_OK;
    }
    if (status == STELE_OK && count < 2)
        status = stele_fail(&err, STELE_USAGE, "no %s is named; `stele help compare` says more",
                            count ? "DIR" : "IMAGE");
    if (status == STELE_OK)
        status = stele_image_open(&image, operands[0], &err);
    if (status == STELE_OK) {
        guard_image(image, verb);
        status = compare_all(image, operands[0], operands[1], &err);
    }
    stele_image_close(image);
    return status == STELE_OK ? STELE_OK : cmd_fail(verb, &err);
}
