/* SPDX-License-Identifier: Apache-2.0 */
/* Text to ids and back, as the `tokenizers` library has it, over the tables of an image's tokenizer
 * section. */
#ifndef RUNTIME_TOKENIZER_H
#define RUNTIME_TOKENIZER_H

#include "vocab.h"

/* A view into the mapped section, valid as long as the mapping. Constant after opening: any number
 * of threads. */
struct tokenizer {
    struct vocab vocab;
};

/* Checks the section's header and that its tables lie in it; allocates nothing and touches no other
 * page. What the tables hold is checked where it is used: STELE_INPUT then names what is wrong. */
enum stele_status tokenizer_open(struct tokenizer *out, const uint8_t *section, uint64_t length,
                                 struct stele_error *err);

enum tokenizer_flags {
    TOKENIZER_BARE = 1,  /* no post-processor: add_special_tokens=False */
    TOKENIZER_PLAIN = 2, /* added tokens spelled in the text are plain text */
};

/* The ids of a text, which must be UTF-8: STELE_INPUT names the offset of the first byte that is
 * not. `content` is NULL, or has a byte for each of the text's: where it is not 0, the byte is text
 * and no part of an added token that is spelled there, unless that is ADDED_ORDINARY. *ids is
 * malloc'ed, the caller frees it; NULL where there are none and on failure. Takes O(n log n) time
 * and less than 64 bytes of memory a byte of text. */
enum stele_status tokenizer_encode(const struct tokenizer *t, const char *text,
                                   const uint8_t *content, size_t bytes, unsigned flags,
                                   uint32_t **ids, size_t *count, struct stele_error *err);

/* The text of ids, UTF-8; with skip_special without the special tokens. An id beyond the vocabulary
 * decodes to nothing. *text is malloc'ed and has a NUL behind its *bytes; the caller frees it. NULL
 * on failure. */
enum stele_status tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t count,
                                   bool skip_special, char **text, size_t *bytes,
                                   struct stele_error *err);

/* The bytes that one token stands for by itself, which need not be UTF-8: *bytes malloc'ed, the
 * caller frees it. */
enum stele_status tokenizer_piece(const struct tokenizer *t, uint32_t id, char **bytes,
                                  size_t *length, struct stele_error *err);

uint32_t tokenizer_count(const struct tokenizer *t); /* ids: the greatest plus one */
bool tokenizer_is_special(const struct tokenizer *t, uint32_t id);

/* The id of the added token spelled like that; VOCAB_NONE where there is none. */
uint32_t tokenizer_added_id(const struct tokenizer *t, const char *text, size_t bytes);

/* Decoding while ids come: all that the pushes and the end give, joined, is decode(prompt + ids)
 * less decode(prompt), special tokens skipped. Characters are never cut: what is not certain yet is
 * held back. */
struct tokenizer_stream;

/* *out is NULL on failure; it keeps a pointer to `t`. */
enum stele_status tokenizer_stream_open(struct tokenizer_stream **out, const struct tokenizer *t,
                                        const uint32_t *prompt, size_t count,
                                        struct stele_error *err);
/* *text: what has become certain, valid until the next call with this stream. */
enum stele_status tokenizer_stream_push(struct tokenizer_stream *s, uint32_t id, const char **text,
                                        size_t *bytes, struct stele_error *err);
/* The rest; after it the stream may only be freed. */
enum stele_status tokenizer_stream_end(struct tokenizer_stream *s, const char **text, size_t *bytes,
                                       struct stele_error *err);
void tokenizer_stream_free(struct tokenizer_stream *s); /* NULL is fine */

#endif
