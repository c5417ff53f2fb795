/* SPDX-License-Identifier: Apache-2.0 */
#include "intake.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "arrival.h"
#include "numbers.h"
#include "pack.h"
#include "panel.h"
#include "pool.h"

enum {
    STEP_BYTES = 8 << 20,  /* of the stream that are packed at once */
    CRUMB_BYTES = 1 << 20, /* less than that is worth a moment's wait for more */
    RUN_BYTES = 256 << 10, /* of panels that one thread lays and writes at once, if they are neighbours */
};
static const uint64_t SYNC_BYTES = (uint64_t)1 << 30; /* of the stream between two syncs */

/* The panels of one part of a tensor of the image, in the order in which their rows arrive. */
struct extent {
    const struct recipe *recipe;
    const struct source_tensor *tensor; /* NULL: zeros */
    size_t expert;
    uint64_t from;                    /* position of its first row in the stream */
    uint64_t row_bytes;               /* in the stream, from one of its rows to the next */
    uint64_t rows, panels;            /* its own */
    uint64_t next;                    /* panel that is not laid yet */
    uint64_t first_panel, panel_step; /* of the tensor */
    uint64_t out;                     /* offset of the tensor's panel 0 in the weights */
    size_t early;                     /* of MXFP4: index of its scales among the early pieces, plus one */
};

/* Neighbouring panels of an extent, ready to be laid. */
struct run {
    struct extent *extent;
    uint64_t first, count;
};

struct stream {
    const struct stream_options *options;
    struct emitter *emitter;
    struct image_writer *writer;
    struct journal *journal;
    struct window *window;
    struct stele_error *err;
    struct pool *pool;
    struct extent *extents; /* ascending by `from` */
    size_t extent_count, first_open;
    struct early *early;
    size_t early_count;
    struct run *runs;
    size_t run_count, run_room;
    uint64_t from, to; /* the step's part of the stream */
    bool digest;       /* its file has one that the source states */
    uint64_t total, panel_bytes_max, span;
    size_t row_numbers; /* of the widest matrix */
    uint8_t *panels;    /* [threads][panel room] */
    float *rows;        /* [threads][row_numbers] */
    size_t panel_room;
    struct arrival_map map; /* of what is missing, for who computes meanwhile */
    atomic_int status;          /* of the threads; the first error of a step by thread */
    struct stele_error *errors; /* [threads] */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the plan as extents ---- */

static uint64_t bytes_of_numbers(const struct source_tensor *t, uint64_t n)
{
    return t->type == SOURCE_MXFP4 ? n / 2 : t->type == SOURCE_F32 ? n * 4 : n * 2;
}

static bool add_extent(struct stream *s, struct extent e)
{
    if (!(s->extent_count & (s->extent_count + 1))) { /* full at 0, 1, 3, 7, ... */
        struct extent *more = realloc(s->extents, (2 * s->extent_count + 1) * sizeof *more);
        if (!more)
            return false;
        s->extents = more;
    }
    s->extents[s->extent_count++] = e;
    return true;
}

static bool add_part(struct stream *s, const struct recipe *r, size_t expert, size_t index, uint64_t first_panel)
{
    const struct part *part = &r->parts[expert * r->part_count + index];
    const struct image_tensor *t = &r->record;
    bool vector = t->layout == LAYOUT_VECTOR;
    struct extent e = {
        .recipe = r,
        .tensor = part->tensor,
        .expert = expert,
        .rows = part->rows,
        .panels = round_up(part->rows, PANEL_ROWS) / PANEL_ROWS,
        .first_panel = r->in_turn ? index : first_panel,
        .panel_step = r->in_turn ? r->part_count : 1,
        .out = t->offset + (vector ? expert * (t->columns / r->sets) * sizeof(float) : expert * t->stride),
    };
    if (part->tensor) {
        uint64_t row = bytes_of_numbers(part->tensor, vector ? 1 : t->columns);
        e.from = part->tensor->at + part->first * row;
        e.row_bytes = row * part->step;
        uint64_t span = e.row_bytes * (e.rows < PANEL_ROWS ? e.rows : PANEL_ROWS);
        s->span = span > s->span ? span : s->span;
    }
    uint64_t bytes = pack_panel_bytes(r);
    s->panel_bytes_max = bytes > s->panel_bytes_max ? bytes : s->panel_bytes_max;
    size_t numbers = vector ? 0 : pack_row_numbers(t->columns);
    s->row_numbers = numbers > s->row_numbers ? numbers : s->row_numbers;
    return add_extent(s, e);
}

static bool add_recipe(struct stream *s, const struct recipe *r)
{
    for (size_t expert = 0; expert < r->sets; expert++) {
        uint64_t panel = 0;
        for (size_t i = 0; i < r->part_count; i++) {
            if (!add_part(s, r, expert, i, panel))
                return false;
            panel += round_up(r->parts[expert * r->part_count + i].rows, PANEL_ROWS) / PANEL_ROWS;
        }
    }
    return true;
}

static int by_from(const void *a, const void *b)
{
    const struct extent *x = a, *y = b;
    return x->from < y->from ? -1 : x->from > y->from;
}

static int by_before(const void *a, const void *b)
{
    const struct early *x = a, *y = b;
    return x->at < y->at ? -1 : x->at > y->at;
}

/* The scales of MXFP4 lie behind its codes and are needed with them. */
static enum stele_status find_early(struct stream *s)
{
    s->early = calloc(s->extent_count + 1, sizeof *s->early);
    if (!s->early)
        return stele_fail(s->err, STELE_SYSTEM, "no memory for the plan");
    const struct source_tensor *last = NULL;
    for (size_t i = 0; i < s->extent_count; i++) {
        const struct source_tensor *t = s->extents[i].tensor;
        if (!t || t->type != SOURCE_MXFP4 || t == last)
            continue;
        last = t;
        bool known = false;
        for (size_t e = 0; e < s->early_count; e++)
            known = known || s->early[e].at == t->scale_tensor->at;
        if (!known)
            s->early[s->early_count++] =
                (struct early){.before = t->at, .at = t->scale_tensor->at, .length = t->scale_tensor->length};
    }
    qsort(s->early, s->early_count, sizeof *s->early, by_before);
    for (size_t e = 0; e < s->early_count; e++)
        if (s->early[e].at < s->early[e].before || (e && s->early[e].before < s->early[e - 1].before))
            return stele_fail(s->err, STELE_INPUT,
                              "the scales of MXFP4 lie before their codes, or out of order; fetch the "
                              "files and use `stele convert`");
    for (size_t i = 0; i < s->extent_count; i++)
        for (size_t e = 0; s->extents[i].tensor && s->extents[i].tensor->type == SOURCE_MXFP4 && e < s->early_count;
             e++)
            if (s->early[e].at == s->extents[i].tensor->scale_tensor->at)
                s->extents[i].early = e + 1;
    for (size_t i = 0; s->early_count && i < s->options->file_count; i++)
        if (s->options->files[i].rangeless)
            return stele_fail(s->err, STELE_INPUT, "%s: its server serves no ranges, which weights in MXFP4 need",
                              s->options->files[i].name);
    return STELE_OK;
}

static int by_offset(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return x[0] < y[0] ? -1 : x[0] > y[0];
}

/* Bytes of the weights that are there; NULL: without being written. */
static enum stele_status lay(struct stream *s, const void *bytes, uint64_t length, uint64_t offset, struct stele_error *err)
{
    enum stele_status status = image_place(s->writer, bytes, length, offset, err);
    if (status == STELE_OK)
        arrival_laid(&s->map, offset, length);
    return status;
}

/* Where each matrix and vector begins and ends in the weights, ascending; malloc'ed, NULL: no memory. */
static uint64_t (*list_covered(const struct stream *s, size_t *count))[2]
{
    size_t n = 0, room = 0;
    for (uint32_t i = 0; i < s->emitter->recipe_count; i++)
        room += s->emitter->recipes[i].sets;
    uint64_t(*covered)[2] = malloc((room + 1) * sizeof *covered);
    for (size_t i = 0; covered && i < s->extent_count; i++) { /* the tensor that begins with this extent */
        const struct extent *e = &s->extents[i];
        if (e->first_panel)
            continue;
        const struct recipe *r = e->recipe;
        uint64_t panels = 0;
        for (size_t p = 0; p < r->part_count; p++)
            panels += round_up(r->parts[e->expert * r->part_count + p].rows, PANEL_ROWS) / PANEL_ROWS;
        covered[n][0] = e->out;
        covered[n++][1] = e->out + panels * pack_panel_bytes(r);
    }
    if (covered)
        qsort(covered, n, sizeof *covered, by_offset);
    *count = n;
    return covered;
}

/* Opens the map of what is missing, whose pieces are the matrices and vectors with what follows them. */
static enum stele_status open_map(struct stream *s, uint64_t (*covered)[2], size_t count)
{
    uint64_t *at = malloc((count + 1) * sizeof *at);
    if (!at)
        return stele_fail(s->err, STELE_SYSTEM, "no memory for the plan");
    for (size_t i = 0; i <= count; i++)
        at[i] = !i ? 0 : i < count ? covered[i][0] : s->emitter->weights_bytes;
    enum stele_status status = arrival_map_open(&s->map, at, count, s->err);
    free(at);
    return status;
}

/* What no panel covers is zero, a hole of the file. */
static enum stele_status place_gaps(struct stream *s)
{
    size_t n;
    uint64_t(*covered)[2] = list_covered(s, &n), at = 0;
    enum stele_status status = covered ? open_map(s, covered, n) : stele_fail(s->err, STELE_SYSTEM, "no memory for the plan");
    for (size_t i = 0; status == STELE_OK && i <= n; i++) {
        uint64_t to = i < n ? covered[i][0] : s->emitter->weights_bytes;
        if (to > at)
            status = lay(s, NULL, to - at, at, s->err);
        at = i < n ? covered[i][1] : at;
    }
    free(covered);
    return status;
}

static enum stele_status make_extents(struct stream *s)
{
    for (uint32_t i = 0; i < s->emitter->recipe_count; i++)
        if (!add_recipe(s, &s->emitter->recipes[i]))
            return stele_fail(s->err, STELE_SYSTEM, "no memory for the plan");
    if (s->extent_count)
        qsort(s->extents, s->extent_count, sizeof *s->extents, by_from);
    return find_early(s);
}

/* ---- packing ---- */

/* End in the stream of a panel's rows. */
static uint64_t panel_end(const struct extent *e, uint64_t panel)
{
    uint64_t rows = (panel + 1) * PANEL_ROWS < e->rows ? (panel + 1) * PANEL_ROWS : e->rows;
    uint64_t row =
        bytes_of_numbers(e->tensor, e->recipe->record.layout == LAYOUT_VECTOR ? 1 : e->recipe->record.columns);
    return e->from + (rows - 1) * e->row_bytes + row;
}

/* Where the rows of the next panel begin. */
static uint64_t needed_from(const struct extent *e)
{
    return e->from + e->next * PANEL_ROWS * e->row_bytes;
}

static uint64_t out_of(const struct extent *e, uint64_t panel)
{
    return e->out + (e->first_panel + panel * e->panel_step) * pack_panel_bytes(e->recipe);
}

static bool add_run(struct stream *s, struct extent *e, uint64_t first, uint64_t count)
{
    if (s->run_count == s->run_room) {
        size_t room = 2 * s->run_room + 64;
        struct run *more = realloc(s->runs, room * sizeof *more);
        if (!more)
            return false;
        s->runs = more;
        s->run_room = room;
    }
    s->runs[s->run_count++] = (struct run){e, first, count};
    return true;
}

/* Cuts the panels first ... end - 1 of an extent into runs. */
static bool add_runs(struct stream *s, struct extent *e, uint64_t end)
{
    uint64_t most = e->panel_step == 1 ? RUN_BYTES / pack_panel_bytes(e->recipe) : 1;
    most = most ? most : 1;
    while (e->next < end) {
        uint64_t n = end - e->next < most ? end - e->next : most;
        if (!add_run(s, e, e->next, n))
            return false;
        e->next += n;
    }
    return true;
}

/* The panels whose rows end at or before `to`. The next one that is not among them decides what must stay: *tail. */
static enum stele_status collect(struct stream *s, uint64_t to, uint64_t *tail)
{
    s->run_count = 0;
    *tail = to;
    while (s->first_open < s->extent_count && s->extents[s->first_open].next == s->extents[s->first_open].panels)
        s->first_open++;
    for (size_t i = s->first_open; i < s->extent_count && s->extents[i].from < to; i++) {
        struct extent *e = &s->extents[i];
        uint64_t end = e->next;
        while (end < e->panels && panel_end(e, end) <= to)
            end++;
        if (end > e->next && e->early) {
            const uint8_t *scales;
            enum stele_status status = window_early(s->window, e->early - 1, &scales, s->err);
            if (status != STELE_OK)
                return status;
            ((struct source_tensor *)(uintptr_t)e->tensor)->scales = scales;
        }
        if (!add_runs(s, e, end))
            return stele_fail(s->err, STELE_SYSTEM, "no memory for the plan");
        if (e->next < e->panels && needed_from(e) < *tail)
            *tail = needed_from(e);
    }
    return STELE_OK;
}

static void pack_run(struct stream *s, const struct run *run, size_t thread)
{
    const struct extent *e = run->extent;
    size_t bytes = pack_panel_bytes(e->recipe);
    uint8_t *out = s->panels + thread * s->panel_room;
    struct fault fault = {.panel = UINT64_MAX};
    for (uint64_t i = 0; i < run->count; i++)
        pack_panel(e->recipe, e->expert, e->first_panel + (run->first + i) * e->panel_step, out + i * bytes,
                   s->rows + thread * s->row_numbers, &fault);
    enum stele_status status = pack_fault(&fault, &s->errors[thread]);
    if (status == STELE_OK)
        status = lay(s, out, run->count * bytes, out_of(e, run->first), &s->errors[thread]);
    int none = STELE_OK;
    if (status != STELE_OK && atomic_compare_exchange_strong(&s->status, &none, (int)status))
        *s->err = s->errors[thread];
}

/* The digest goes on beside the panels, as item 0. */
static void work(void *context, size_t from, size_t to, size_t thread)
{
    struct stream *s = context;
    for (size_t i = from; i < to; i++)
        if (i)
            pack_run(s, &s->runs[i - 1], thread);
        else if (s->digest && s->to > s->from) {
            const struct source_window *w = window_bytes(s->window);
            SHA256_Update(&s->journal->sha, w->bytes + s->from % w->size, s->to - s->from);
        }
}

static enum stele_status pack_collected(struct stream *s)
{
    pool_run(s->pool, s->run_count + 1, work, s);
    return (enum stele_status)atomic_load(&s->status);
}

/* Panels of zeros, which come from nowhere. */
static enum stele_status pack_zeros(struct stream *s)
{
    s->run_count = 0;
    for (size_t i = 0; i < s->extent_count; i++)
        if (!s->extents[i].tensor && !add_runs(s, &s->extents[i], s->extents[i].panels))
            return stele_fail(s->err, STELE_SYSTEM, "no memory for the plan");
    s->from = s->to = 0;
    return pack_collected(s);
}

/* Panels that an earlier pull has laid. *tail is where the rows begin of the first that it has begun to read and not
 * laid. */
static enum stele_status place_resumed(struct stream *s, uint64_t *tail)
{
    enum stele_status status = STELE_OK;
    *tail = s->journal->at;
    for (size_t i = 0; status == STELE_OK && i < s->extent_count && s->extents[i].from < s->journal->at; i++) {
        struct extent *e = &s->extents[i];
        for (; status == STELE_OK && e->tensor && e->next < e->panels && panel_end(e, e->next) <= s->journal->at;
             e->next++)
            status = lay(s, NULL, pack_panel_bytes(e->recipe), out_of(e, e->next), s->err);
        if (e->tensor && e->next < e->panels)
            *tail = needed_from(e) < *tail ? needed_from(e) : *tail;
    }
    return status;
}

/* ---- the files ---- */

static enum stele_status check_digest(struct stream *s, const struct remote *file)
{
    uint8_t digest[SHA256_DIGEST_LENGTH];
    char text[2 * sizeof digest + 1];
    SHA256_Final(digest, &s->journal->sha);
    SHA256_Init(&s->journal->sha);
    for (size_t i = 0; i < sizeof digest; i++)
        sprintf(text + 2 * i, "%02x", digest[i]);
    if (!file->sha256[0] || !strcasecmp(file->sha256, text))
        return STELE_OK;
    s->journal->at = 0; /* nothing of it is worth keeping */
    return stele_fail(s->err, STELE_DAMAGED,
                      "%s: its bytes have the SHA-256 %s, but the source states %s; nothing was kept", file->name, text,
                      file->sha256);
}

static enum stele_status keep_journal(struct stream *s, uint64_t at)
{
    s->journal->at = at;
    bool sync = at - s->journal->synced >= SYNC_BYTES;
    if (journal_write(s->journal, image_descriptor(s->writer), sync))
        return STELE_OK;
    return stele_fail(s->err, STELE_SYSTEM, "cannot write the begun image: %s", strerror(errno));
}

/* One file of the stream, from `at` to its end. */
static enum stele_status pack_file(struct stream *s, const struct remote *file, uint64_t at, uint64_t end)
{
    uint64_t ready = 0, tail;
    enum stele_status status = STELE_OK;
    s->digest = file->sha256[0];
    while (status == STELE_OK && at < end) {
        status = window_wait(s->window, at, &ready, s->err);
        if (status == STELE_OK && ready < end && ready - at < CRUMB_BYTES) {
            nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
            status = window_wait(s->window, at, &ready, s->err);
        }
        if (status != STELE_OK)
            return status;
        s->from = at;
        s->to = ready < end ? ready : end;
        s->to = s->to < at + STEP_BYTES ? s->to : at + STEP_BYTES;
        status = collect(s, s->to, &tail);
        if (status == STELE_OK)
            status = pack_collected(s);
        at = s->to;
        window_release(s->window, tail);
        if (status == STELE_OK && at == end)
            status = check_digest(s, file);
        if (status == STELE_OK)
            status = keep_journal(s, at);
        arrival_more(s->options->channel);
        s->options->progress(s->options->context, at, s->total, window_active(s->window));
    }
    return status;
}

static enum stele_status pack_files(struct stream *s)
{
    enum stele_status status = STELE_OK;
    uint64_t start = 0;
    for (size_t f = 0; status == STELE_OK && f < s->options->file_count; f++) {
        uint64_t end = start + s->options->files[f].length, at = s->journal->at > start ? s->journal->at : start;
        if (at < end)
            status = pack_file(s, &s->options->files[f], at, end);
        start = end;
    }
    return status;
}

static enum stele_status open_stream(struct stream *s, uint64_t from)
{
    const struct stream_options *o = s->options;
    struct window_options options = {
        .files = o->files,
        .file_count = o->file_count,
        .early = s->early,
        .early_count = s->early_count,
        .from = from,
        .memory = o->memory,
        .chunk = o->chunk,
        .connections = o->connections,
    };
    uint64_t size;
    s->panel_room = s->panel_bytes_max > RUN_BYTES ? s->panel_bytes_max : RUN_BYTES;
    s->pool = pool_open(o->threads);
    s->panels = malloc(o->threads * s->panel_room);
    s->rows = malloc(o->threads * (s->row_numbers + 1) * sizeof *s->rows);
    s->errors = calloc(o->threads, sizeof *s->errors);
    if (!s->pool || !s->panels || !s->rows || !s->errors)
        return stele_fail(s->err, STELE_SYSTEM, "no memory to pack the weights");
    enum stele_status status = window_size(&options, s->span, &size, s->err);
    return status == STELE_OK ? window_open(&s->window, o->http, &options, size, s->err) : status;
}

static void close_stream(struct stream *s)
{
    window_close(s->window);
    pool_close(s->pool);
    arrival_map_close(&s->map);
    free(s->extents);
    free(s->early);
    free(s->runs);
    free(s->panels);
    free(s->rows);
    free(s->errors);
}

/* Tensors are read through the window from now on. */
static void set_window(struct stream *s)
{
    for (size_t i = 0; i < s->emitter->source->tensor_count; i++)
        s->emitter->source->tensors[i].window = window_bytes(s->window);
}

enum stele_status stream_weights(const struct stream_options *options, struct emitter *emitter,
                                 struct image_writer *writer, uint64_t align, struct journal *journal,
                                 struct stream_stats *stats, struct stele_error *err)
{
    struct stream s = {.options = options, .emitter = emitter, .writer = writer, .journal = journal, .err = err};
    double begin = now();
    uint64_t tail;
    for (size_t i = 0; i < options->file_count; i++)
        s.total += options->files[i].length;
    *stats = (struct stream_stats){.resumed = journal->at, .total = s.total};
    enum stele_status status = make_extents(&s);
    if (status == STELE_OK)
        status = image_begin_placed(writer, SECTION_WEIGHTS, align, emitter->weights_bytes, err);
    if (status == STELE_OK)
        status = place_gaps(&s);
    if (status == STELE_OK)
        status = image_announce(writer, options->channel, &s.map, err);
    if (status == STELE_OK)
        status = place_resumed(&s, &tail);
    if (status == STELE_OK)
        status = open_stream(&s, tail);
    if (status == STELE_OK) {
        set_window(&s);
        status = pack_zeros(&s);
    }
    if (status == STELE_OK)
        status = pack_files(&s);
    if (s.window)
        stats->window = window_stats(s.window);
    stats->seconds = now() - begin;
    close_stream(&s);
    return status;
}
