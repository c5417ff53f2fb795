/* SPDX-License-Identifier: Apache-2.0 */
/* What a row of logits says: probabilities of ids, and the likeliest ones. */
#include "probability.h"

#include <inttypes.h>

#include "executor.h"

enum stele_status stele_logprobs(const struct stele_session *session, const float *row, const uint32_t *ids, size_t count,
                                 float *out, struct stele_error *err)
{
    uint32_t vocabulary = session->plan.counts.vocabulary;
    for (size_t i = 0; i < count; i++)
        if (ids[i] >= vocabulary)
            return stele_fail(err, STELE_USAGE, "id %" PRIu32 ": the model has %" PRIu32 " ids", ids[i], vocabulary);
    struct log_softmax l = log_softmax_of(session->table, row, vocabulary);
    for (size_t i = 0; i < count; i++)
        out[i] = logprob_of(&l, ids[i]);
    return STELE_OK;
}

static bool comes_before(const float *row, uint32_t a, uint32_t b)
{
    return row[a] > row[b] || (row[a] == row[b] && a < b);
}

/* Lets ids[at] of a heap, whose root comes last, sink to its place. */
static void sink(const float *row, uint32_t *ids, size_t n, size_t at)
{
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && comes_before(row, ids[child], ids[child + 1]))
            child++;
        if (comes_before(row, ids[child], ids[at]))
            return;
        uint32_t id = ids[at];
        ids[at] = ids[child];
        ids[child] = id;
    }
}

/* A heap keeps the first n while the row passes, and is then taken apart. */
size_t stele_top(const struct stele_session *session, const float *row, uint32_t *ids, size_t count)
{
    uint32_t vocabulary = session->plan.counts.vocabulary;
    size_t n = count < vocabulary ? count : vocabulary;
    for (uint32_t id = 0; id < n; id++)
        ids[id] = id;
    for (size_t i = n / 2; i-- > 0;)
        sink(row, ids, n, i);
    for (uint32_t id = (uint32_t)n; n && id < vocabulary; id++)
        if (comes_before(row, id, ids[0])) {
            ids[0] = id;
            sink(row, ids, n, 0);
        }
    for (size_t left = n; left-- > 1;) {
        uint32_t last = ids[0];
        ids[0] = ids[left];
        ids[left] = last;
        sink(row, ids, left, 0);
    }
    return n;
}
