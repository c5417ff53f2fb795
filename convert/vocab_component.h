/* SPDX-License-Identifier: Apache-2.0 */
/* Compiling the components of a tokenizer.json; what the files of the kinds of components share.
 *
 * Each component has a row in a table with its name and a function; what has none is refused by
 * name. Each kind has a file: vocab_normalizer.c, vocab_pretokenizer.c, vocab_postprocessor.c,
 * vocab_decoder.c. */
#ifndef CONVERT_VOCAB_COMPONENT_H
#define CONVERT_VOCAB_COMPONENT_H

#include "vocab_draft.h"

enum { TEMPLATE_MAX = 1024, STEPS_MAX = 16 };

/* What the post-processors so far make of a text: ids and TEMPLATE_TEXT, in parts. The library
 * hands the parts on, and a template over two parts is its form for pairs. */
struct template
{
    uint32_t ids[TEMPLATE_MAX];
    size_t count;
    size_t ends[TEMPLATE_MAX]; /* where each part ends in `ids` */
    size_t part_count;
};

struct builder {
    struct draft draft;
    struct stele_error *err;
    const json_t *root;
    struct draft_added *added; /* [added_count]: special ones first, as the library orders them */
    size_t added_count;
    struct template template;
    bool fused; /* decoders so far have made one token of all */
};

/* A kind of component: its place in the JSON, the list that its Sequence has, and what it may be.
 */
struct component {
    const char *name;
    enum stele_status (*compile)(struct builder *b, const json_t *json);
};

struct kind {
    const char *place, *list;
    const struct component *components; /* ends with a NULL name */
};

extern const struct kind normalizers, pre_tokenizers, post_processors, decoders;

/* Compiles a component of a kind, or a Sequence of them; null is none. STELE_INPUT names what is
 * not supported. */
enum stele_status component_compile(struct builder *b, const struct kind *kind, const json_t *json);

/* Puts what the post-processors made of a text into VOCAB_TEMPLATE. */
enum stele_status template_finish(struct builder *b);

/* A field that is malformed, or has a value that is not supported. */
enum stele_status malformed(struct builder *b, const char *place, const char *field,
                            const json_t *value);

/* A boolean, or `absent` where the field is not there or null. */
enum stele_status get_bool(struct builder *b, const char *place, const json_t *json,
                           const char *field, bool absent, bool *out);

/* A string; it lives as long as the JSON. */
enum stele_status get_string(struct builder *b, const char *place, const json_t *json,
                             const char *field, const char **text, size_t *length);

/* A string that goes into VOCAB_STRINGS. */
enum stele_status put_string(struct builder *b, const char *place, const json_t *json,
                             const char *field, struct vocab_string *out);

/* {"String": text} or {"Regex": text}, not empty. */
enum stele_status get_pattern(struct builder *b, const char *place, const json_t *json, bool *regex,
                              const char **text, size_t *length);

/* Metaspace's scheme: `always`, `first` or `never`; files of an older library have add_prefix_space
 * instead. */
enum stele_status get_scheme(struct builder *b, const char *place, const json_t *json,
                             enum metaspace_scheme *out);

#endif
