/* SPDX-License-Identifier: Apache-2.0 */
/* A chat template as a program: what the converter makes of the model's Jinja text, and the runtime
 * runs over messages. FORMAT-template.md describes it byte for byte; this header has the records.
 *
 * A program works on a stack of values. Names are looked up in frames: one for the whole template,
 * and one more for each loop, macro call and `generation` block that is being run. Everything is
 * little-endian; offsets count from the start of the program and are multiples of 8. It comes from
 * a stranger: template_open checks the header's spans once, and every index that stands in an
 * instruction or a table is checked by whoever follows it. */
#ifndef IMAGE_TEMPLATE_H
#define IMAGE_TEMPLATE_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "error.h"
#include "types.h"

#define TEMPLATE_MAGIC 0x504d5443u /* "CTMP" */
#define TEMPLATE_VERSION 1u
#define TEMPLATE_BYTES_MAX (1u << 24) /* of a program; the longest of a known model has 30 kB */

/* A table of the program. Eight bytes.
 *    0  4  offset   from the start of the program, a multiple of 8
 *    4  4  count    records, not bytes */
struct template_span {
    uint32_t offset, count;
};
static_assert(sizeof(struct template_span) == 8, "FORMAT-template.md: 8 bytes");

/* clang-format off */
/* The tables, in the order of their spans in the header. */
enum template_table {
    TABLE_CODE,       /* template_op */
    TABLE_CONSTANTS,  /* template_constant */
    TABLE_NAMES,      /* u32, in TABLE_STRINGS, and NAME_HIDDEN: the variables of the template */
    TABLE_MACROS,     /* template_macro */
    TABLE_PARAMETERS, /* u32, in TABLE_NAMES: those of all macros */
    TABLE_KEYWORDS,   /* u32, in TABLE_STRINGS: names of arguments, call by call */
    TABLE_STRINGS,    /* template_string */
    TABLE_BYTES,      /* the strings, UTF-8, one after the other */
    TABLE_WORDS,      /* bytes: every word of the source once, a space between: what fields it knows */
    TEMPLATE_TABLES
};
/* clang-format on */

/* Of a name: the template sets it at its outermost level before it reads it there. What it is given
 * under that name does not count; until it is set it is undefined. */
#define NAME_HIDDEN 0x80000000u

/* Header: 88 bytes at the start of the program.
 *    0  4  magic      TEMPLATE_MAGIC
 *    4  4  version    TEMPLATE_VERSION; a reader refuses others
 *    8  4  flags      0; a reader refuses bits it does not know
 *   12  4  length     bytes of the program, a multiple of 8
 *   16 72  tables     spans, in the order of enum template_table */
struct template_header {
    uint32_t magic, version, flags, length;
    struct template_span tables[TEMPLATE_TABLES];
};
static_assert(sizeof(struct template_header) == 16 + 8 * TEMPLATE_TABLES && TEMPLATE_TABLES == 9,
              "FORMAT-template.md: 88 bytes");

/* A string: 8 bytes. */
struct template_string {
    uint32_t offset, length; /* from the start of TABLE_BYTES; bytes */
};
static_assert(sizeof(struct template_string) == 8, "FORMAT-template.md: 8 bytes");

/* A constant: 16 bytes.
 *    0  4  kind       enum constant_kind
 *    4  4  string     of CONSTANT_TEXT and CONSTANT_BIG, in TABLE_STRINGS
 *    8  8  bits       of CONSTANT_INT: two's complement; of CONSTANT_FLOAT: binary64 */
struct template_constant {
    uint32_t kind, string;
    uint64_t bits;
};
static_assert(sizeof(struct template_constant) == 16, "FORMAT-template.md: 16 bytes");

/* clang-format off */
enum constant_kind {
    CONSTANT_NONE = 0,
    CONSTANT_FALSE = 1,
    CONSTANT_TRUE = 2,
    CONSTANT_INT = 3,
    CONSTANT_BIG = 4,     /* a whole number beyond 64 bits, as decimal digits */
    CONSTANT_FLOAT = 5,
    CONSTANT_TEXT = 6,
    CONSTANT_ABSENT = 7,  /* an argument that was not given */
    CONSTANT_NOTHING = 8, /* undefined: what `x if y` is without an else */
};
/* clang-format on */

/* A macro, or the body of a call block: 24 bytes.
 *    0  4  name        in TABLE_STRINGS
 *    4  4  entry       in TABLE_CODE
 *    8  4  parameter   its first one, in TABLE_PARAMETERS
 *   12  2  parameters  how many
 *   14  2  reserved    0
 *   16  4  flags       MACRO_*
 *   20  4  reserved    0 */
struct template_macro {
    uint32_t name, entry, parameter;
    uint16_t parameters, reserved;
    uint32_t flags, reserved2;
};
static_assert(sizeof(struct template_macro) == 24, "FORMAT-template.md: 24 bytes");

enum macro_flags { MACRO_VARARGS = 1, MACRO_KWARGS = 2, MACRO_CALLER = 4 };

/* An instruction: 12 bytes.
 *    0  1  op         enum template_opcode
 *    1  1  keywords   of OP_CALL: named arguments
 *    2  2  count      of arguments, items; else as the op says
 *    4  4  operand    an index; of jumps: signed, from the instruction that follows
 *    8  2  id         a number of template.def, or an operator
 *   10  2  line       of the source, for sentences; the last one known where it has more */
struct template_op {
    uint8_t op, keywords;
    uint16_t count;
    uint32_t operand;
    uint16_t id, line;
};
static_assert(sizeof(struct template_op) == 12, "FORMAT-template.md: 12 bytes");

/* clang-format off */
/* "a b -> c": takes b (the top) and a from the stack, leaves c. */
enum template_opcode {
    OP_END = 1,           /* the template is done */
    OP_TEXT = 2,          /* writes string `operand` */
    OP_PRINT = 3,         /* v ->: writes it as Python's str() has it */
    OP_CONSTANT = 4,      /* -> constant `operand` */
    OP_LOAD = 5,          /* -> name `operand`: of the innermost frame that has it, or undefined */
    OP_STORE = 6,         /* v ->: into name `operand` of the innermost frame */
    OP_STORE_FIELD = 7,   /* v ->: into field `operand` (a string) of the namespace in name `count` */
    OP_FIELD = 8,         /* o -> o.s, s being string `operand` */
    OP_ITEM = 9,          /* o k -> o[k] */
    OP_SLICE = 10,        /* o start stop step -> o[start:stop:step]; none where absent */
    OP_BINARY = 11,       /* a b -> c: `id` of enum template_operator */
    OP_NEGATE = 12,       /* a -> -a */
    OP_PLUS = 13,         /* a -> +a */
    OP_NOT = 14,          /* a -> not a */
    OP_CONCAT = 15,       /* `count` values -> their texts joined: ~ */
    OP_JUMP = 16,
    OP_JUMP_IF_NOT = 17,  /* a ->: jumps where it is false */
    OP_AND = 18,          /* a -> a, and jumps, where it is false; else a -> */
    OP_OR = 19,           /* a -> a, and jumps, where it is true; else a -> */
    OP_LIST = 20,         /* `count` values -> a list */
    OP_TUPLE = 21,        /* `count` values -> a tuple */
    OP_DICT = 22,         /* `count` keys and values, in turn -> a mapping */
    OP_CALL = 23,         /* f, `count` values, `keywords` values -> f(...); names from keyword
                           * `operand` on */
    OP_FILTER = 24,       /* v, `count` arguments -> filter `id`; of map, select and their kin
                           * `operand` is the filter or the test */
    OP_TEST = 25,         /* v, `count` arguments -> test `id` */
    OP_DUP = 26,          /* a -> a a */
    OP_ROT = 27,          /* a b c -> c a b, of three; of two if `count` is 2 */
    OP_POP = 28,          /* a -> */
    OP_UNPACK = 29,       /* a sequence of `count` values -> them, the first on top */
    OP_LOOP = 30,         /* v ->: begins a loop over it, with a frame of its own */
    OP_NEXT = 31,         /* -> the next value, in an empty frame; jumps where there is none */
    OP_LOOP_END = 32,     /* ends the loop; jumps if it had a whole pass (OP_PASS) */
    OP_KEEP = 33,         /* v c ->: of a loop that only selects: keeps v if c is true */
    OP_KEPT = 34,         /* ends such a loop -> the values that it kept */
    OP_FRAME = 35,        /* begins a frame */
    OP_FRAME_END = 36,
    OP_CAPTURE = 37,      /* what is written from here on ... */
    OP_CAPTURE_END = 38,  /* ... -> is a text, and is not written */
    OP_MACRO = 39,        /* -> macro `operand`, seeing the frames of here */
    OP_GIVEN = 40,        /* jumps if parameter `count` (a name) was given; else its default follows */
    OP_RETURN = 41,       /* ends a macro: what it wrote is the value of its call */
    OP_SPACE = 42,        /* an error if name `operand` is no namespace */
    OP_PASS = 43,         /* a pass of the loop came to its end, not to break or continue */
    OP_OPS
};

enum template_operator {
    OPERATOR_ADD = 1, OPERATOR_SUB, OPERATOR_MUL, OPERATOR_DIV, OPERATOR_FLOORDIV, OPERATOR_MOD,
    OPERATOR_POW, OPERATOR_EQ, OPERATOR_NE, OPERATOR_LT, OPERATOR_LE, OPERATOR_GT, OPERATOR_GE,
    OPERATOR_IN, OPERATOR_NOT_IN, OPERATORS
};

enum template_filter {
#define FILTER(number, id, name, parameters, required) FILTER_##id = number,
#include "template.def"
};

enum template_test {
#define TEST(number, id, name, arguments) TEST_##id = number,
#include "template.def"
};

enum template_function {
#define FUNCTION(number, id, name) FUNCTION_##id = number,
#include "template.def"
};
/* clang-format on */

/* A checked view of a program; small, to be copied at will, valid as long as its memory. */
struct template_program {
    const uint8_t *base;
    struct template_header header;
};

/* Checks the header, and that its tables lie in the `length` bytes; touches the header and no other
 * byte. `bytes` must be aligned to 8. Else err says which field was wrong. */
enum stele_status template_open(struct template_program *out, const uint8_t *bytes, uint64_t length,
                                struct stele_error *err);

static inline const void *template_records(const struct template_program *p,
                                           enum template_table table)
{
    return p->base + p->header.tables[table].offset;
}

static inline uint32_t template_count(const struct template_program *p, enum template_table table)
{
    return p->header.tables[table].count;
}

/* String `index`; false where it does not lie in its tables. */
static inline bool template_text(const struct template_program *p, uint32_t index,
                                 const char **text, uint32_t *length)
{
    if (index >= template_count(p, TABLE_STRINGS))
        return false;
    struct template_string s =
        ((const struct template_string *)template_records(p, TABLE_STRINGS))[index];
    uint32_t room = template_count(p, TABLE_BYTES);
    if (s.offset > room || s.length > room - s.offset)
        return false;
    *text = (const char *)template_records(p, TABLE_BYTES) + s.offset;
    *length = s.length;
    return true;
}

#endif
