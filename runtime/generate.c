/* SPDX-License-Identifier: Apache-2.0 */
/* The loop: prefill in chunks, then draw, look for an end, hand on, step. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "executor.h"
#include "library.h"
#include "sampler.h"
#include "stele.h"
#include "stop.h"
#include "template_set.h"
#include "thinking.h"
#include "tokenizer.h"

struct generation {
    struct stele_session *session;
    const struct stele_generation *asked;
    struct stele_result *result;
    struct stele_error *err;
    struct sampler *sampler;
    struct tokenizer tokenizer;
    struct tokenizer_stream *stream; /* NULL: ids only */
    struct thinking thinking;
    struct stop_search stops;
    const uint32_t *stop_ids;
    size_t stop_id_count;
    uint32_t *ids; /* [context]: prompt and what was drawn */
    size_t count, computed;
    float *logits; /* [vocabulary] */
    bool finished;
    bool stop_found; /* a stop text: what follows it is not delivered */
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void finish(struct generation *g, enum stele_finish how)
{
    if (!g->finished)
        g->result->finish = how;
    g->finished = true;
}

/* Computes the ids that were not computed yet, in chunks; logits of the last row only. */
static enum stele_status step(struct generation *g)
{
    enum stele_status status = STELE_OK;
    while (status == STELE_OK && g->computed < g->count) {
        size_t rest = g->count - g->computed, n = rest < g->session->chunk ? rest : g->session->chunk;
        struct stele_slice slice = {.first = (uint32_t)g->computed,
                                    .count = (uint32_t)n,
                                    .logits_from = (uint32_t)(n == rest ? n - 1 : n),
                                    .ids = g->ids + g->computed};
        status = stele_step(g->session, &slice, 1, g->err);
        g->computed += n;
    }
    return status;
}

static bool is_stop_id(const struct generation *g, uint32_t id)
{
    for (size_t i = 0; i < g->stop_id_count; i++)
        if (g->stop_ids[i] == id)
            return true;
    return false;
}

/* Hands on what became known to be thinking. */
static void think(struct generation *g)
{
    const struct text_buffer *t = &g->thinking.thoughts;
    if (t->length && g->asked->think && !g->asked->think(g->asked->context, t->data, t->length))
        finish(g, STELE_FINISH_CALLER);
}

/* Hands on the ids and the text that no stop text can still begin in. `end`: nothing follows. */
static void deliver(struct generation *g, const uint32_t *ids, size_t count, bool end)
{
    bool found;
    size_t bytes = stop_ready(&g->stops, end, &found);
    if ((count || bytes) && g->asked->deliver &&
        !g->asked->deliver(g->asked->context, ids, count, g->stops.held, bytes))
        finish(g, STELE_FINISH_CALLER);
    stop_drop(&g->stops, bytes);
    g->stop_found = found;
    if (found)
        finish(g, STELE_FINISH_STOP);
}

/* Text that has become certain: to thinking and answer, and of the answer to what no stop text begins in. */
static enum stele_status take_text(struct generation *g, const char *text, size_t bytes, bool special, bool end)
{
    enum stele_status status = thinking_push(&g->thinking, text, bytes, special, end, g->err);
    if (status == STELE_OK)
        status = stop_push(&g->stops, g->thinking.answer.data, g->thinking.answer.length, g->err);
    if (status == STELE_OK)
        think(g);
    return status;
}

/* A special token has no text in an answer, but a mark may be made of it. */
static enum stele_status take_special(struct generation *g, uint32_t id)
{
    char *piece;
    size_t bytes;
    if (!g->thinking.begin.bytes || !tokenizer_is_special(&g->tokenizer, id))
        return STELE_OK;
    enum stele_status status = tokenizer_piece(&g->tokenizer, id, &piece, &bytes, g->err);
    if (status == STELE_OK)
        status = take_text(g, piece, bytes, true, false);
    free(piece);
    return status;
}

static enum stele_status accept(struct generation *g, uint32_t id)
{
    const char *text;
    size_t bytes;
    enum stele_status status = STELE_OK;
    g->ids[g->count++] = id;
    if (g->stream)
        status = tokenizer_stream_push(g->stream, id, &text, &bytes, g->err);
    if (status == STELE_OK && g->stream)
        status = take_text(g, text, bytes, false, false);
    if (status == STELE_OK && g->stream)
        status = take_special(g, id);
    if (status == STELE_OK)
        deliver(g, &g->ids[g->count - 1], 1, false);
    return status;
}

/* The text that was held back for want of a next token. */
static enum stele_status flush(struct generation *g)
{
    const char *text;
    size_t bytes;
    if (!g->stream || g->stop_found || (g->finished && g->result->finish == STELE_FINISH_CALLER))
        return STELE_OK;
    enum stele_status status = tokenizer_stream_end(g->stream, &text, &bytes, g->err);
    if (status == STELE_OK)
        status = take_text(g, text, bytes, false, true);
    if (status == STELE_OK)
        deliver(g, NULL, 0, true);
    return status;
}

/* What drawing needs, whose size is the vocabulary's: not before the first op. */
static enum stele_status open_drawing(struct generation *g)
{
    uint32_t vocabulary = g->session->plan.counts.vocabulary;
    g->logits = malloc(vocabulary * sizeof *g->logits);
    if (!g->logits)
        return stele_fail(g->err, STELE_SYSTEM, "no memory for the logits of %" PRIu32 " ids", vocabulary);
    return sampler_open(&g->sampler, &g->asked->sampling, vocabulary, blas_choose(g->session->kernels), g->err);
}

static enum stele_status draw_token(struct generation *g)
{
    enum stele_status status = step(g);
    if (status == STELE_OK && !g->sampler)
        status = open_drawing(g);
    if (status == STELE_OK)
        status = stele_logits(g->session, 0, 1, g->logits, g->err);
    if (status != STELE_OK)
        return status;
    uint32_t id = sampler_draw(g->sampler, g->logits, g->ids, g->count);
    if (!g->result->tokens++)
        g->result->first_token = now();
    if (!is_stop_id(g, id))
        return accept(g, id);
    finish(g, STELE_FINISH_STOP);
    return STELE_OK;
}

static enum stele_status draw_tokens(struct generation *g)
{
    enum stele_status status = step(g);
    if (status == STELE_OK)
        g->result->prefill_end = now();
    while (status == STELE_OK && !g->finished)
        if (g->result->tokens == g->asked->tokens_max)
            finish(g, STELE_FINISH_LENGTH);
        else if (g->count == g->session->context)
            finish(g, STELE_FINISH_CONTEXT);
        else
            status = draw_token(g);
    return status;
}

static enum stele_status open_text(struct generation *g)
{
    uint64_t bytes;
    const uint8_t *section = image_section(g->session->image, SECTION_TOKENIZER, &bytes);
    if (!section)
        return stele_fail(g->err, STELE_INPUT, "%s: its checkpoint had no tokenizer, so it gives ids instead of text",
                          g->session->image->name);
    enum stele_status status = tokenizer_open(&g->tokenizer, section, bytes, g->err);
    if (status == STELE_OK)
        status = tokenizer_stream_open(&g->stream, &g->tokenizer, g->asked->prompt, g->asked->prompt_count, g->err);
    return status;
}

static struct mark mark_of(const struct template_set *set, struct template_set_text text)
{
    return (struct mark){template_set_text(set, text), text.length};
}

/* The marks, where the model has some and the caller asks for them. */
static enum stele_status open_thinking(struct generation *g)
{
    struct template_set set;
    uint64_t bytes;
    const uint8_t *section = image_section(g->session->image, SECTION_TEMPLATES, &bytes);
    if (!g->asked->thinking || !section)
        return STELE_OK;
    enum stele_status status = template_set_open(&set, section, bytes, g->err);
    if (status != STELE_OK || !set.header.think.length || !set.header.think_done.length)
        return status;
    g->thinking.begin = mark_of(&set, set.header.think);
    g->thinking.done = mark_of(&set, set.header.think_done);
    g->thinking.next = mark_of(&set, set.header.think_next);
    g->thinking.state = g->asked->thinking_begun ? THINKING_INSIDE : THINKING_START;
    return STELE_OK;
}

static enum stele_status open_generation(struct generation *g)
{
    const struct stele_generation *asked = g->asked;
    struct stele_session *s = g->session;
    enum stele_status status = LIBRARY_CHECK_RESERVED(stele_generation, asked, g->err);
    if (status == STELE_OK)
        status = LIBRARY_CHECK_RESERVED(stele_sampling, &asked->sampling, g->err);
    if (status != STELE_OK)
        return status;
    if (!asked->prompt_count)
        return stele_fail(g->err, STELE_USAGE, "the prompt has no ids");
    if (asked->prompt_count > s->context)
        return stele_fail(g->err, STELE_USAGE, "the prompt has %zu ids, more than the context of %" PRIu32,
                          asked->prompt_count, s->context);
    for (size_t i = 0; i < asked->prompt_count; i++)
        if (asked->prompt[i] >= s->plan.counts.vocabulary)
            return stele_fail(g->err, STELE_USAGE, "id %" PRIu32 " at position %zu: the model has %" PRIu32 " ids",
                              asked->prompt[i], i, s->plan.counts.vocabulary);
    for (size_t i = 0; i < asked->stop_count; i++)
        if (!*asked->stops[i])
            return stele_fail(g->err, STELE_USAGE, "a stop text is empty");
    g->stops = (struct stop_search){.stops = asked->stops, .count = asked->stop_count};
    g->ids = malloc(s->context * sizeof *g->ids);
    if (!g->ids)
        return stele_fail(g->err, STELE_SYSTEM, "no memory for %" PRIu32 " ids", s->context);
    memcpy(g->ids, asked->prompt, asked->prompt_count * sizeof *g->ids);
    g->count = asked->prompt_count;
    status = sampler_check(&asked->sampling, g->err);
    if (status == STELE_OK && asked->text)
        status = open_text(g);
    return status == STELE_OK && asked->text ? open_thinking(g) : status;
}

enum stele_status stele_generate(struct stele_session *session, const struct stele_generation *generation,
                                 struct stele_result *result, struct stele_error *err)
{
    struct generation g = {.session = session, .asked = generation, .result = result, .err = err};
    *result = (struct stele_result){.finish = STELE_FINISH_LENGTH};
    g.stop_ids = stele_stop_ids((const struct stele_image *)session->image, &g.stop_id_count);
    enum stele_status status = open_generation(&g);
    result->prefill_begin = now();
    if (status == STELE_OK)
        status = draw_tokens(&g);
    /* Also after an error: what was generated is kept. */
    enum stele_status flushed = result->tokens ? flush(&g) : STELE_OK;
    result->end = now();
    if (status == STELE_OK)
        status = flushed;
    if (status == STELE_OK && result->finish == STELE_FINISH_CONTEXT)
        status = stele_fail(err, STELE_FULL, "the context of %" PRIu32 " positions is full", session->context);
    sampler_close(g.sampler);
    tokenizer_stream_free(g.stream);
    thinking_close(&g.thinking);
    stop_close(&g.stops);
    free(g.logits);
    free(g.ids);
    return status;
}
