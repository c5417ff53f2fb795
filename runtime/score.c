/* SPDX-License-Identifier: Apache-2.0 */
/* Log-probabilities of continuations: a tree of sequences over what prompts have in common.
 *
 *     sequence 0      what is kept (stele_keep)
 *     1, 2, ...       prompts, branching off 0; then the branches of two ids and more, branching off them
 *
 * A round takes as many items as there are sequences for. Its first steps compute the prompts; the last row of each has the
 * probabilities of the branches' first ids. The second steps compute the branches. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "executor.h"
#include "probability.h"

enum { ROWS_AT_ONCE = 16 }; /* of logits: the head is read once for all of them where they are neighbours */

/* A sequence to compute: ids behind `first` positions that it has. */
struct run {
    uint32_t sequence, first;
    size_t count;
    const uint32_t *ids;
    struct stele_item *item;
    struct stele_branch_ids *branch; /* NULL: the item's prompt */
};

struct scoring {
    struct stele_session *session;
    struct stele_error *err;
    float *rows; /* [ROWS_AT_ONCE][vocabulary] */
    struct run *runs; /* [sequences] */
    size_t run_count;
    struct stele_slice *slices; /* [sequences] */
};

/* ---- rows ---- */

/* Takes what row `row` of the run says, having these logits: of a prompt the first id of each branch, of a branch the id
 * behind it. */
static void take_row(const struct scoring *s, const struct run *r, size_t row, const float *logits)
{
    struct log_softmax l = log_softmax_of(s->session->table, logits, s->session->plan.counts.vocabulary);
    if (r->branch)
        r->branch->logprob += (double)logprob_of(&l, r->branch->ids[row + 1]);
    for (size_t i = 0; !r->branch && i < r->item->branch_count; i++) {
        struct stele_branch_ids *b = &r->item->branches[i];
        b->logprob = (double)logprob_of(&l, b->ids[0]);
    }
}

/* Takes the wanted rows of a step of `n` slices, the first of which began at row `row` of run `at`. */
static enum stele_status take_rows(struct scoring *s, size_t n, size_t at, size_t row)
{
    size_t wanted = 0, vocabulary = s->session->plan.counts.vocabulary;
    for (size_t i = 0; i < n; i++)
        wanted += s->slices[i].count - s->slices[i].logits_from;
    for (size_t i = 0, taken = 0; i < n; i++, row = 0)
        for (size_t j = s->slices[i].logits_from; j < s->slices[i].count; j++, taken++) {
            size_t left = wanted - taken, rows = left < ROWS_AT_ONCE ? left : ROWS_AT_ONCE;
            enum stele_status status = taken % ROWS_AT_ONCE
                                           ? STELE_OK
                                           : stele_logits(s->session, taken, rows, s->rows, s->err);
            if (status != STELE_OK)
                return status;
            take_row(s, &s->runs[at + i], row + j, s->rows + taken % ROWS_AT_ONCE * vocabulary);
        }
    return STELE_OK;
}

/* A step over parts of runs: from run `at`, row `row` on, as many rows as fit. */
static enum stele_status step(struct scoring *s, size_t *at, size_t *row)
{
    size_t rows = 0, n = 0, first_run = *at, first_row = *row;
    for (; *at < s->run_count && rows < s->session->chunk; n++) {
        struct run *r = &s->runs[*at];
        size_t left = r->count - *row, room = s->session->chunk - rows, take = left < room ? left : room;
        size_t from = r->branch ? 0 : take == left ? take - 1 : take; /* of a prompt, its last row */
        s->slices[n] = (struct stele_slice){.sequence = r->sequence,
                                            .first = r->first + (uint32_t)*row,
                                            .count = (uint32_t)take,
                                            .logits_from = (uint32_t)from,
                                            .ids = r->ids + *row};
        rows += take;
        *row += take;
        if (*row == r->count) {
            ++*at;
            *row = 0;
        }
    }
    enum stele_status status = stele_step(s->session, s->slices, n, s->err);
    return status == STELE_OK ? take_rows(s, n, first_run, first_row) : status;
}

static enum stele_status compute(struct scoring *s)
{
    enum stele_status status = STELE_OK;
    for (size_t at = 0, row = 0; at < s->run_count && status == STELE_OK;)
        status = step(s, &at, &row);
    return status;
}

/* ---- rounds ---- */

/* How many ids of the prompt the kept beginning has; one at least is left to compute. */
static size_t kept_of(const struct stele_session *s, const struct stele_item *item)
{
    size_t n = 0;
    while (n < s->kept_count && n + 1 < item->prompt_count && s->kept[n] == item->prompt[n])
        n++;
    return n;
}

/* The prompts of items [from, *to), one sequence each, and room for a branch: *to is as far as sequences go. */
static enum stele_status compute_prompts(struct scoring *s, struct stele_item *items, size_t from, size_t n, size_t *to)
{
    uint32_t most = (s->session->kv.sequences - 1) / 2;
    enum stele_status status = STELE_OK;
    s->run_count = 0;
    for (*to = from; *to < n && s->run_count < most && status == STELE_OK; ++*to) {
        struct stele_item *item = &items[*to];
        uint32_t sequence = 1 + (uint32_t)s->run_count, first = (uint32_t)kept_of(s->session, item);
        status = stele_branch(s->session, sequence, 0, first, s->err);
        s->runs[s->run_count++] =
            (struct run){sequence, first, item->prompt_count - first, item->prompt + first, item, NULL};
    }
    return status == STELE_OK ? compute(s) : status;
}

/* The branches of items [from, to), whose prompts lie in the sequences 1, 2, …, in the sequences behind those. */
static enum stele_status compute_branches(struct scoring *s, struct stele_item *items, size_t from, size_t to)
{
    uint32_t first = 1 + (uint32_t)(to - from), most = s->session->kv.sequences - first;
    enum stele_status status = STELE_OK;
    s->run_count = 0;
    for (size_t i = from; i < to; i++)
        for (size_t b = 0; b < items[i].branch_count && status == STELE_OK; b++) {
            struct stele_branch_ids *branch = &items[i].branches[b];
            uint32_t sequence = first + (uint32_t)s->run_count, origin = 1 + (uint32_t)(i - from);
            uint32_t positions = (uint32_t)items[i].prompt_count;
            if (branch->count == 1)
                continue;
            status = stele_branch(s->session, sequence, origin, positions, s->err);
            s->runs[s->run_count++] = (struct run){sequence, positions, branch->count - 1, branch->ids, &items[i], branch};
            if (status == STELE_OK && s->run_count == most) {
                status = compute(s);
                s->run_count = 0;
            }
        }
    return status == STELE_OK ? compute(s) : status;
}

/* Ends all branches, so that any sequence can be computed anew. */
static void end_branches(struct stele_session *s)
{
    struct stele_error none;
    for (uint32_t i = s->kv.sequences; i-- > 1;)
        stele_branch(s, i, 0, 0, &none);
}

static enum stele_status check_items(const struct stele_session *s, const struct stele_item *items, size_t n,
                                     struct stele_error *err)
{
    if (s->kv.sequences < 3)
        return stele_fail(err, STELE_USAGE, "scoring needs a session of 3 sequences, not %" PRIu32, s->kv.sequences);
    for (size_t i = 0; i < n; i++) {
        if (!items[i].prompt_count)
            return stele_fail(err, STELE_USAGE, "item %zu: its prompt has no ids", i);
        for (size_t b = 0; b < items[i].branch_count; b++) {
            const struct stele_branch_ids *branch = &items[i].branches[b];
            if (!branch->count)
                return stele_fail(err, STELE_USAGE, "item %zu, branch %zu: it has no ids", i, b);
            if (branch->count > s->context || items[i].prompt_count > s->context - branch->count + 1)
                return stele_fail(err, STELE_USAGE, "item %zu: %zu ids and a branch of %zu are more than the context of %"
                                  PRIu32, i, items[i].prompt_count, branch->count, s->context);
            for (size_t j = 0; j < branch->count; j++)
                if (branch->ids[j] >= s->plan.counts.vocabulary)
                    return stele_fail(err, STELE_USAGE, "item %zu, branch %zu: id %" PRIu32 ": the model has %" PRIu32 " ids",
                                      i, b, branch->ids[j], s->plan.counts.vocabulary);
        }
    }
    return STELE_OK;
}

enum stele_status stele_score(struct stele_session *session, struct stele_item *items, size_t n, struct stele_error *err)
{
    struct scoring s = {.session = session, .err = err};
    enum stele_status status = check_items(session, items, n, err);
    if (status != STELE_OK)
        return status;
    s.rows = malloc((size_t)ROWS_AT_ONCE * session->plan.counts.vocabulary * sizeof *s.rows);
    s.runs = malloc(session->kv.sequences * sizeof *s.runs);
    s.slices = malloc(session->kv.sequences * sizeof *s.slices);
    if (!s.rows || !s.runs || !s.slices)
        status = stele_fail(err, STELE_SYSTEM, "no memory for scoring");
    for (size_t from = 0, to; from < n && status == STELE_OK; from = to) {
        status = compute_prompts(&s, items, from, n, &to);
        if (status == STELE_OK)
            status = compute_branches(&s, items, from, to);
        end_branches(session);
    }
    free(s.slices);
    free(s.runs);
    free(s.rows);
    return status;
}

enum stele_status stele_keep(struct stele_session *session, const uint32_t *ids, size_t count, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    session->kept_count = 0;
    uint32_t *kept = realloc(session->kept, (count + 1) * sizeof *kept);
    if (!kept)
        return stele_fail(err, STELE_SYSTEM, "no memory for %zu ids", count);
    session->kept = kept;
    if (count)
        memcpy(kept, ids, count * sizeof *kept);
    for (size_t at = 0; at < count && status == STELE_OK;) {
        size_t n = count - at < session->chunk ? count - at : session->chunk;
        struct stele_slice slice = {.first = (uint32_t)at, .count = (uint32_t)n, .logits_from = (uint32_t)n, .ids = ids + at};
        status = stele_step(session, &slice, 1, err);
        at += n;
    }
    if (status == STELE_OK)
        session->kept_count = count;
    return status;
}
