/* SPDX-License-Identifier: Apache-2.0 */
/* Values of a chat template while it runs: Python's, as far as templates can make and see them.
 *
 * 1. Everything lives in one heap per rendering and is freed with it. Nothing but a namespace, a
 * loop and a generator ever changes, so a slice of a list or of a text shares what it is a part of.
 * 2. Every byte of text knows its origin: the template, or content (what messages, tools and
 *    arguments brought). A text of one origin has it in `origin`; one of both has a byte for each.
 *    Numbers, True, None and the punctuation of printed lists have the origin of their value.
 * 3. A call that can fail returns false and has noted in the heap why; *out is then undefined. The
 *    heap counts steps and bytes, so a template that runs away ends in such a failure.
 * 4. Whatever walks a value has a limit on depth. */
#ifndef RUNTIME_VALUE_H
#define RUNTIME_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "error.h"

/* clang-format off */
enum value_kind {
    VALUE_ABSENT,    /* an argument that was not given; no template sees it */
    VALUE_UNDEFINED, /* text: what was missing; owner: of what; flag: enum undefined_why */
    VALUE_NONE,
    VALUE_BOOL,
    VALUE_INT,
    VALUE_BIG,       /* a whole number beyond 64 bits: text, decimal */
    VALUE_FLOAT,
    VALUE_TEXT,      /* flag: enum text_flags */
    VALUE_LIST,      /* items */
    VALUE_TUPLE,     /* items */
    VALUE_VIEW,      /* items; flag: enum view_kind */
    VALUE_GENERATOR, /* can be gone over once */
    VALUE_RANGE,
    VALUE_DICT,      /* entries, in order of insertion */
    VALUE_NAMESPACE,
    VALUE_MACRO,
    VALUE_FUNCTION,  /* count: enum template_function */
    VALUE_METHOD,
    VALUE_LOOP,
};

enum undefined_why { WHY_NAME, WHY_ATTRIBUTE, WHY_ELEMENT, WHY_ELSE, WHY_PARAMETER, WHY_EMPTY, WHY_UNSAFE };
enum view_kind { VIEW_ITEMS, VIEW_KEYS, VIEW_VALUES };
enum text_flags { TEXT_SAFE = 1 }; /* Markup: what is added to it is escaped */
enum value_origin { ORIGIN_TEMPLATE = 0, ORIGIN_CONTENT = 1 };
/* clang-format on */

struct value {
    uint8_t kind, origin, flag;
    uint32_t count; /* bytes of a text, items, entries */
    union {
        bool truth;
        int64_t whole;
        double real;
        const char *text; /* UTF-8, no NUL behind it */
        const struct value *items;
        const struct entry *entries;
        struct generator *generator;
        const struct range *range;
        struct namespace *space;
        const struct macro *macro;
        const struct method *method;
        struct loop *loop;
    };
    union {
        const uint8_t *origins; /* [count]; NULL: all of `origin` */
        const char *owner;
    };
};

struct entry {
    struct value key, value;
};

struct generator {
    const struct value *items;
    uint32_t count;
    bool used;
    const char *broken; /* the type of what cannot be gone over: a failure once this is */
};

struct range {
    int64_t start, stop, step;
};

struct namespace
{
    struct entry *entries;
    uint32_t count, capacity;
};

struct method {
    struct value self;
    uint32_t id; /* enum method_id of template_object.h */
};

struct macro {
    const char *name;
    uint32_t name_bytes, index; /* in TABLE_MACROS */
    struct frame *frame;        /* what it sees: template_run.c */
};

struct loop {
    const struct value *items;
    uint32_t count, index; /* index: of the pass that runs; before the first UINT32_MAX */
    uint32_t depth;
    struct value changed; /* what loop.changed() saw last */
    struct value *kept;   /* of a loop that only selects */
    uint32_t kept_count;
    bool selects, passed;
};

/* ---- heap ---- */

/* Why a rendering failed. The names are those of shared/chat/README.md's table. */
enum failure {
    FAILURE_NONE,
    FAILURE_RAISED,    /* raise_exception; the sentence is its message */
    FAILURE_REFUSED,   /* the call does not fit: no messages, nothing to continue, ... */
    FAILURE_UNDEFINED, /* something undefined was used */
    FAILURE_TYPE,
    FAILURE_VALUE,
    FAILURE_RUNTIME,
    FAILURE_SECURITY,
    FAILURE_LIMIT,       /* too many steps, too deep, too much memory or output */
    FAILURE_UNSUPPORTED, /* what Python would do and this does not */
    FAILURE_PROGRAM,     /* the program is damaged */
    FAILURE_MEMORY,      /* malloc failed */
};

struct heap_limits {
    uint64_t steps;      /* instructions, and 64 bytes looked at for each */
    size_t memory_bytes; /* of values */
    size_t output_bytes;
};

struct heap {
    struct heap_chunk *chunks;
    size_t used, chunk_left;
    char *chunk_at;
    struct heap_limits limits;
    uint64_t steps;
    /* what is written: bytes and their origins, side by side. Texts are made at its end, too. */
    char *out;
    uint8_t *out_origins;
    size_t out_length, out_capacity;
    enum failure failure;
    char *message; /* FAILURE_RAISED: all of it, in the heap; else NULL */
    size_t message_bytes;
    uint32_t line; /* of the template, where it is now; 0: not in it */
    struct stele_error *err;
};

void heap_open(struct heap *h, const struct heap_limits *limits, struct stele_error *err);
void heap_close(struct heap *h);
/* Aligned to 8, not zeroed; NULL after a failure. */
void *heap_alloc(struct heap *h, size_t count, size_t size);
/* False where the steps are used up. */
bool heap_spend(struct heap *h, uint64_t steps);
/* Notes a failure, the first one stays; returns false. The sentence gets the template's line. */
bool heap_fail(struct heap *h, enum failure failure, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* The failure of using something undefined. */
bool heap_fail_undefined(struct heap *h, const struct value *v);

/* ---- making values ---- */

static inline struct value value_none(void)
{
    return (struct value){.kind = VALUE_NONE};
}

static inline struct value value_bool(bool truth)
{
    return (struct value){.kind = VALUE_BOOL, .truth = truth};
}

static inline struct value value_int(int64_t whole)
{
    return (struct value){.kind = VALUE_INT, .whole = whole};
}

static inline struct value value_float(double real)
{
    return (struct value){.kind = VALUE_FLOAT, .real = real};
}

static inline struct value value_text(const char *text, size_t bytes, enum value_origin origin)
{
    return (struct value){
        .kind = VALUE_TEXT, .origin = (uint8_t)origin, .count = (uint32_t)bytes, .text = text};
}

static inline struct value value_undefined(enum undefined_why why, const char *name, size_t bytes,
                                           const char *owner)
{
    return (struct value){.kind = VALUE_UNDEFINED,
                          .flag = (uint8_t)why,
                          .count = (uint32_t)bytes,
                          .text = name,
                          .owner = owner};
}

static inline struct value value_list(enum value_kind kind, const struct value *items, size_t count)
{
    return (struct value){.kind = (uint8_t)kind, .count = (uint32_t)count, .items = items};
}

bool value_generator(struct heap *h, const struct value *items, size_t count, struct value *out);
/* One that fails when it is gone over, since a value of that type cannot be. */
bool value_generator_broken(struct heap *h, const char *type, struct value *out);

/* ---- asking values ---- */

static inline bool value_is_text(const struct value *v, const char *text)
{
    return v->kind == VALUE_TEXT && v->count == strlen(text) && !memcmp(v->text, text, v->count);
}

static inline bool value_is_sequence(const struct value *v) /* has items */
{
    return v->kind == VALUE_LIST || v->kind == VALUE_TUPLE || v->kind == VALUE_VIEW;
}

const char *value_type(const struct value *v); /* Python's name of the type */
bool value_truth(const struct value *v);
bool value_equal(struct heap *h, const struct value *a, const struct value *b, bool *out);
/* a < b, or another of enum template_operator LT to GE; a type failure where they have no order. */
bool value_ordered(struct heap *h, unsigned op, const struct value *a, const struct value *b,
                   bool *out);
bool value_in(struct heap *h, const struct value *item, const struct value *in, bool *out);
/* len(); a type failure where there is none. */
bool value_length(struct heap *h, const struct value *v, uint32_t *out);
/* What a loop goes over: items of a sequence, keys, characters. A generator is used up. */
bool value_iterate(struct heap *h, const struct value *v, const struct value **items,
                   uint32_t *count);
/* The value of a key of a mapping or namespace, or NULL; spends steps. */
const struct value *value_find(struct heap *h, const struct value *dict, const struct value *key);
const struct value *value_find_text(struct heap *h, const struct value *dict, const char *key,
                                    size_t bytes);

/* The order of `count` keys by <, those that are equal as they stood: indices, in the heap.
 * NULL after a failure. */
uint32_t *value_order(struct heap *h, const struct value *keys, uint32_t count, bool reverse);

/* ---- numbers (value_number.c) ---- */

/* enum template_operator ADD to POW of two values that are numbers, texts or lists. */
bool value_binary(struct heap *h, unsigned op, const struct value *a, const struct value *b,
                  struct value *out);
bool value_negate(struct heap *h, const struct value *a, bool minus, struct value *out);
bool value_is_number(const struct value *v);              /* bool, int, big or float */
bool value_is_whole(const struct value *v, int64_t *out); /* bool or int */
/* -1, 0, 1; 2 where one is not a number (nan). Both are numbers. */
int value_compare_numbers(const struct value *a, const struct value *b);
/* A whole number from decimal digits with an optional sign, kept in the heap or longer. */
struct value value_digits(const char *digits, size_t bytes);
/* Python's repr of a float, at most 32 bytes; returns how many. */
size_t value_float_text(double real, char text[40]);

/* ---- printing (value_print.c): at the end of the heap's output ---- */

bool out_bytes(struct heap *h, const char *bytes, size_t length, enum value_origin origin);
bool out_text(struct heap *h, const struct value *text); /* VALUE_TEXT, with its origins */
bool out_part(struct heap *h, const struct value *text, size_t from, size_t to);
/* What was written since `start` becomes a text, and is taken back from the output. */
bool out_take(struct heap *h, size_t start, struct value *out);
bool out_str(struct heap *h, const struct value *v);  /* Python's str() */
bool out_repr(struct heap *h, const struct value *v); /* Python's repr() */

struct json_style {
    bool ensure_ascii, sort_keys, indented;
    struct value indent;       /* VALUE_TEXT, one level, if indented */
    struct value comma, colon; /* VALUE_TEXT */
};
bool out_json(struct heap *h, const struct value *v, const struct json_style *style);
bool value_str(struct heap *h, const struct value *v, struct value *out); /* a text stays itself */

/* ---- text (value_text.c) ---- */

struct value text_part(const struct value *text, size_t from, size_t to); /* bytes */
uint32_t text_characters(const struct value *text);
/* The byte at which character `index` begins; the length where there are not so many. */
size_t text_offset(const struct value *text, size_t index);
bool text_strip(struct heap *h, const struct value *text, const struct value *characters, bool left,
                bool right, struct value *out);
/* From byte `from` on; SIZE_MAX where it is not. */
size_t text_find(const struct value *text, size_t from, const struct value *what);
/* The last one that ends at byte `end` or before; SIZE_MAX where there is none, or no steps are left for
 * the places to look at. */
size_t text_find_last(struct heap *h, const struct value *text, size_t end,
                      const struct value *what);
bool text_replace(struct heap *h, const struct value *text, const struct value *old,
                  const struct value *new, int64_t most, struct value *out);
/* `separator` VALUE_ABSENT or none: white space. most < 0: all. */
bool text_split(struct heap *h, const struct value *text, const struct value *separator,
                int64_t most, bool from_right, struct value *out);
bool text_lines(struct heap *h, const struct value *text, struct value *out); /* splitlines() */
enum text_case { CASE_UPPER, CASE_LOWER, CASE_TITLE, CASE_TITLE_FILTER, CASE_CAPITALIZE };
bool text_case(struct heap *h, const struct value *text, enum text_case which, struct value *out);
bool text_escape(struct heap *h, const struct value *text, struct value *out); /* HTML; safe */
bool text_printable(uint32_t c); /* Python 3.11's str.isprintable() of a character */

/* ---- JSON (value_json.c) ---- */

/* Reads one JSON value, all of `bytes`, as content: texts point into it where they have no escapes,
 * so it must live as long as the heap. Numbers keep Python's difference of whole numbers and
 * floats, whole ones have any size; NaN, Infinity and -Infinity are read. A key that comes twice is
 * refused. STELE_INPUT names line and column; `name` stands for the text in the sentence. */
enum stele_status value_json(struct heap *h, const char *json, size_t bytes, const char *name,
                             struct value *out);

#endif
