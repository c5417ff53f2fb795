/* SPDX-License-Identifier: Apache-2.0 */
/* A text cut into windows and scored: what `stele perplexity` and `stele kld` share.
 *
 *     windows_open    file -> ids; BOS, length and stride of the windows; a session for each model
 *     windows_walk    every window through every model, each scored id and its rows to `visit`
 *     windows_close
 *
 * The text is tokenised whole, without what the tokenizer puts around a text. Window k holds the
 * ids from k * stride on, `length` of them or what is left; the last window is the first that
 * reaches the end. With a BOS that id stands before the ids of every window. An id is scored in the
 * first window that holds it, and there stands behind what comes before it in that window alone; an
 * id with nothing before it is not scored. So with a stride below the length each window begins
 * with ids that are context only, as in the strided perplexity of Hugging Face's documentation. */
#ifndef RUNTIME_WINDOWS_H
#define RUNTIME_WINDOWS_H

#include <stdio.h>

#include "cmd_session.h"

enum { WINDOWS_MODELS_MAX = 2 };

#define WINDOWS_NO_BOS UINT32_MAX

/* What the options of both verbs say. */
struct windows_settings {
    uint64_t context, stride, bytes;
    const char *bos;
    bool plain, json;
    bool ignored; /* --raw and --bare, which say what is so in any case */
};

/* clang-format off */
#define WINDOWS_OPTIONS(set)                                                                      \
    {"--context", OPTION_COUNT, &(set).context, "N",                                              \
     "ids of a window (default 512, or what the model allows)", 1, 16777216, NULL},               \
    {"--stride", OPTION_COUNT, &(set).stride, "N",                                                \
     "ids from window to window (default: as many as it has)", 1, 16777216, NULL},                \
    {"--bos", OPTION_TEXT, &(set).bos, "ID|none",                                                 \
     "id before each window (default: what the tokenizer puts before a text)", 0, 0, NULL},       \
    {"--bytes", OPTION_COUNT, &(set).bytes, "N",                                                  \
     "only the first N bytes of the file; a character cut there is left out", 1, 1e15, NULL},     \
    {"--json", OPTION_FLAG, &(set).json, NULL, "one JSON object", 0, 0, NULL},                    \
    {"--raw", OPTION_FLAG, &(set).ignored, NULL,                                                  \
     "the text as it is, as always here; accepted as in run", 0, 0, NULL},                        \
    {"--bare", OPTION_FLAG, &(set).ignored, NULL,                                                 \
     "as always here; accepted as in logprobs", 0, 0, NULL},                                      \
    {"--plain", OPTION_FLAG, &(set).plain, NULL,                                                  \
     "added tokens spelled in the text are plain text", 0, 0, NULL},                              \
    CMD_SESSION_OPTIONS
/* clang-format on */

struct windows_model {
    struct stele_image *image;
    struct stele_session *session;
    float *rows; /* a block of logits */
};

struct windows {
    const char *verb; /* for sentences of a signal handler */
    struct windows_model models[WINDOWS_MODELS_MAX];
    size_t model_count;
    uint32_t *ids;
    size_t id_count;
    uint32_t length, stride, bos; /* of the windows; WINDOWS_NO_BOS */
    size_t window_count, scored;  /* windows, and ids that are scored in them */
    uint32_t *tokens;             /* [1 + length]: BOS and ids of the window under way */
    size_t rows_max;              /* of a block */
    uint32_t vocabulary;          /* rows of the head */
};

/* Opens the images at `paths` (one or two; the second has the vocabulary of the first) and the text
 * in `file` ("-": standard input). Whatever it returns, windows_close frees what there is. */
enum stele_status windows_open(struct windows *w, const char *verb, const char *const *paths,
                               size_t path_count, const char *file,
                               const struct windows_settings *set, struct stele_error *err);
void windows_close(struct windows *w);

/* Called for each scored id, in order of the text: rows[i][vocabulary] are the logits of model i
 * that predict it. */
typedef void windows_visit(void *context, const struct windows *w, const float *const *rows,
                           uint32_t id);

/* Progress goes to stderr where that is a terminal. At the end the images are as they were, or it
 * is STELE_DAMAGED. */
enum stele_status windows_walk(struct windows *w, windows_visit *visit, void *context,
                               struct stele_error *err);

/* -ln p(id) by the logits of model i, as logprobs has it. */
double windows_loss(const struct windows *w, size_t model, const float *row, uint32_t id);

/* What was measured, in one sentence without a full stop. */
void windows_describe(FILE *to, const struct windows *w);

/* The members `"ids": … "kv": …` of a JSON object, commas between them. */
void windows_describe_json(FILE *to, const struct windows *w);

#endif
