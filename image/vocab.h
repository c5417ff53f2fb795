/* SPDX-License-Identifier: Apache-2.0 */
/* The tokenizer section: a vocabulary with all that turns text into ids and back, used where it is
 * mapped. FORMAT-tokenizer.md describes it byte for byte; this header has the records and the
 * checks on reading them.
 *
 * Everything is little-endian. Offsets count from the start of the section and are multiples of 4.
 * The section comes from a stranger: vocab_open checks the header's spans once, and every index
 * that stands inside a table is checked by whoever follows it. */
#ifndef IMAGE_VOCAB_H
#define IMAGE_VOCAB_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <xxhash.h>

#include "error.h"
#include "types.h"

#define VOCAB_MAGIC 0x4b4f5456u /* "VTOK" */
#define VOCAB_VERSION 1u
#define VOCAB_NONE UINT32_MAX          /* no id, an empty slot of the lookup table */
#define VOCAB_IDS_MAX ((1u << 21) - 1) /* ids have 21 bits in the hash tables */
#define VOCAB_MERGES_MAX (1u << 22)    /* ranks have 22 */
#define VOCAB_CODEPOINTS 0x110000u

/* A table of the section. Eight bytes.
 *    0  4  offset   from the start of the section, a multiple of 4
 *    4  4  count    records, not bytes */
struct vocab_span {
    uint32_t offset, count;
};
static_assert(sizeof(struct vocab_span) == 8, "FORMAT-tokenizer.md: 8 bytes");

/* clang-format off */
/* The tables, in the order of their spans in the header. */
enum vocab_table {
    VOCAB_TOKENS,       /* u32 [ids + 1]: where an id's text begins in VOCAB_TEXTS, and TOKEN_* */
    VOCAB_TEXTS,        /* bytes: the texts of all ids, one after the other */
    VOCAB_LOOKUP,       /* u32, open-addressed: from the text of a whole piece to its id */
    VOCAB_MERGES,       /* vocab_merge, open-addressed: from two ids to what they merge into */
    VOCAB_UNITS,        /* u32 [256]: what a byte (of ASCII: a character) begins as */
    VOCAB_BYTES,        /* u32 [256] or empty: ids of <0x00> to <0xFF>, byte fallback */
    VOCAB_ADDED,        /* vocab_added: the added tokens */
    VOCAB_TRIE,         /* vocab_node: added tokens that are sought in the text as it came */
    VOCAB_TRIE_EDGES,   /* u32: byte << 24 | node */
    VOCAB_NORMAL,       /* vocab_node: added tokens that are sought in the normalised text */
    VOCAB_NORMAL_EDGES, /* u32: byte << 24 | node */
    VOCAB_ASCII,        /* u32 [128]: the classes of the ASCII characters, a bit each */
    VOCAB_PAGES,        /* u16 [VOCAB_PAGES_COUNT]: the range of the page's first character */
    VOCAB_RANGES,       /* u32: first character | index in VOCAB_SETS << 21, ascending */
    VOCAB_SETS,         /* u32: classes, a bit each */
    VOCAB_NORMALIZERS,  /* vocab_step, in order */
    VOCAB_STAGES,       /* vocab_stage: pre-tokenizers, in order */
    VOCAB_PATTERNS,     /* vocab_pattern */
    VOCAB_CODE,         /* vocab_instr: the programs of all patterns */
    VOCAB_TEMPLATE,     /* u32: what the post-processor makes: ids, and TEMPLATE_TEXT */
    VOCAB_DECODERS,     /* vocab_step, in order */
    VOCAB_STRINGS,      /* bytes that the header, steps, stages and patterns point to */
    VOCAB_TABLES
};

#define VOCAB_PAGES_COUNT 274u   /* of 4096 characters: 272, one for the end, one of padding */
#define TEMPLATE_TEXT UINT32_MAX /* in VOCAB_TEMPLATE: here go the text's own ids */

enum vocab_flags {
    VOCAB_RAW = 1,            /* texts are bytes; else characters, a byte-level alphabet's too */
    VOCAB_IGNORE_MERGES = 2,  /* a piece that is a token is that token, reached by merges or not */
    VOCAB_FUSE_UNKNOWN = 4,   /* unknown characters side by side are one unknown id */
    VOCAB_UNKNOWN_ABSENT = 8, /* unk_token is named but has no id: text that needs it is refused */
    VOCAB_FLAGS = 15
};
/* clang-format on */

/* A string of VOCAB_STRINGS: 8 bytes. */
struct vocab_string {
    uint32_t offset, length; /* from the start of VOCAB_STRINGS; bytes */
};
static_assert(sizeof(struct vocab_string) == 8, "FORMAT-tokenizer.md: 8 bytes");

/* Header: 216 bytes at the start of the section.
 *    0  4  magic        VOCAB_MAGIC
 *    4  4  version      VOCAB_VERSION; a reader refuses others
 *    8  4  flags        VOCAB_*; a reader refuses bits it does not know
 *   12  4  ids          number of ids: the greatest plus one
 *   16  4  unknown      id for what has no token, or VOCAB_NONE
 *   20  4  space        the class bit of White_Space, or 0 where nothing asks for it
 *   24  4  word         the class bit of word characters (single_word), or 0
 *   28  4  young        the class bit of what Unicode 9 had not assigned (NFC, NFD), or 0
 *   32  8  mark         a character, or empty: where it stands behind another, a piece may be cut
 *                       before it, since it has a token and no merge joins the two sides
 *   40 176 tables       spans, in the order of enum vocab_table */
struct vocab_header {
    uint32_t magic, version, flags, ids, unknown, space, word, young;
    struct vocab_string mark;
    struct vocab_span tables[VOCAB_TABLES];
};
static_assert(sizeof(struct vocab_header) == 40 + 8 * VOCAB_TABLES && VOCAB_TABLES == 22,
              "FORMAT-tokenizer.md: 216");

/* An entry of VOCAB_TOKENS: bits 0 to 27 the offset of the text, which ends where the next entry's
 * begins. */
#define TOKEN_OFFSET 0x0fffffffu
enum token_flags {
    TOKEN_PRESENT = 1u << 28, /* the id has a token; others decode to nothing */
    TOKEN_SPECIAL = 1u << 29,
};

/* VOCAB_LOOKUP: an id in bits 0 to 20, above it the low 11 bits of the hash; linear probing from
 * vocab_slot() upwards, round the end; an empty slot is VOCAB_NONE. It holds those tokens, and only
 * those, that a piece with their text becomes: all of the model's with ignore_merges, else those
 * that the merges alone lead to. */
#define LOOKUP_ID VOCAB_IDS_MAX

/* A merge, 12 bytes; probed as VOCAB_LOOKUP is. An empty slot has VOCAB_NONE in `into`.
 *    0  4  pair       bits 0-20 left id; bits 21-31 low 11 bits of the right id
 *    4  4  rank       bits 0-9 high 10 bits of the right id; bits 10-31 rank: the least goes first
 *    8  4  into       the id of the two together */
struct vocab_merge {
    uint32_t pair, rank, into;
};
static_assert(sizeof(struct vocab_merge) == 12, "FORMAT-tokenizer.md: 12 bytes");

/* An added token: 8 bytes. */
enum added_flags {
    ADDED_LSTRIP = 1,
    ADDED_RSTRIP = 2,
    ADDED_SINGLE_WORD = 4,
    ADDED_ORDINARY = 8, /* not special, and nothing but white space, or one character: no control
                         * token, and so also read in content */
};
struct vocab_added {
    uint32_t id, flags;
};
static_assert(sizeof(struct vocab_added) == 8, "FORMAT-tokenizer.md: 8 bytes");

/* A node of a trie: 8 bytes. Node 0 is the root; the last node only ends the edges of the one
 * before it.
 *    0  4  edges      its first edge; they end where the next node's begin, ascending by byte
 *    4  4  added      index in VOCAB_ADDED of the token that ends here, or VOCAB_NONE */
struct vocab_node {
    uint32_t edges, added;
};
static_assert(sizeof(struct vocab_node) == 8, "FORMAT-tokenizer.md: 8 bytes");

/* A normaliser or a step of the decoder: 24 bytes.
 *    0  2  op         enum step_op
 *    2  2  pattern    of STEP_REPLACE_PATTERN, in VOCAB_PATTERNS
 *    4  8  a          what is sought, prepended, stripped
 *   12  8  b          what takes its place
 *   20  2  start      of STEP_TRIM, STEP_METASPACE: 0 or 1; of STEP_STRIP: characters
 *   22  2  stop       of STEP_TRIM: 0 or 1; of STEP_STRIP: characters */
struct vocab_step {
    uint16_t op, pattern;
    struct vocab_string a, b;
    uint16_t start, stop;
};
static_assert(sizeof(struct vocab_step) == 24, "FORMAT-tokenizer.md: 24 bytes");

/* clang-format off */
enum step_op {
    /* normalisers: each is given the whole of a stretch between added tokens */
    STEP_PREPEND = 1,         /* a before it, unless it is empty */
    STEP_REPLACE = 2,         /* each a becomes b, from the left; a decoder, too */
    STEP_REPLACE_PATTERN = 3, /* each match of the pattern becomes b */
    STEP_NFC = 4,
    STEP_NFD = 5,
    STEP_TRIM = 6,            /* white space goes: at the start if `start`, at the end if `stop` */
    /* decoders: each takes tokens and hands tokens on */
    STEP_JOIN = 16,           /* a between tokens */
    STEP_METASPACE = 17,      /* a becomes a space, or in the first token nothing if `start` */
    STEP_BYTE_FALLBACK = 18,  /* runs of <0xNN> become their characters, or one U+FFFD for each */
    STEP_FUSE = 19,           /* all tokens become one */
    STEP_STRIP = 20,          /* up to `start` and `stop` characters a go from each token's ends */
    STEP_ALPHABET = 21,       /* byte-level characters become bytes; a token with others stays */
    STEP_LOSSY = 22,          /* all tokens become one, what is no UTF-8 in it U+FFFD */
};
/* clang-format on */

/* A pre-tokenizer: 16 bytes.
 *    0  1  op         enum stage_op
 *    1  1  behavior   of STAGE_SPLIT: enum split_behavior
 *    2  1  flag       of STAGE_SPLIT: 1 if inverted; of STAGE_METASPACE: enum metaspace_scheme
 *    3  1  reserved   0
 *    4  4  pattern    of STAGE_SPLIT, in VOCAB_PATTERNS
 *    8  8  a          of STAGE_METASPACE: what takes the place of a space */
struct vocab_stage {
    uint8_t op, behavior, flag, reserved;
    uint32_t pattern;
    struct vocab_string a;
};
static_assert(sizeof(struct vocab_stage) == 16, "FORMAT-tokenizer.md: 16 bytes");

enum stage_op {
    STAGE_SPLIT = 1,
    STAGE_PREFIX_SPACE = 2, /* a space before each piece that has none */
    STAGE_METASPACE = 3,
    STAGE_ALPHABET = 4, /* bytes become the characters of the byte-level alphabet */
};

enum split_behavior {
    SPLIT_ISOLATED = 0,
    SPLIT_REMOVED = 1,
    SPLIT_MERGED_WITH_PREVIOUS = 2,
    SPLIT_MERGED_WITH_NEXT = 3,
    SPLIT_CONTIGUOUS = 4,
    SPLIT_BEHAVIORS
};

enum metaspace_scheme { METASPACE_ALWAYS = 0, METASPACE_FIRST = 1, METASPACE_NEVER = 2 };

/* A pattern: 24 bytes.
 *    0  4  kind       enum pattern_kind
 *    4  4  code       of PATTERN_PROGRAM: its first instruction in VOCAB_CODE
 *    8  4  count      of PATTERN_PROGRAM: instructions
 *   12  4  first      of PATTERN_PROGRAM: a match begins with a character of these classes
 *   16  8  text       else: the literal, or the regular expression */
struct vocab_pattern {
    uint32_t kind, code, count, first;
    struct vocab_string text;
};
static_assert(sizeof(struct vocab_pattern) == 24, "FORMAT-tokenizer.md: 24 bytes");

/* clang-format off */
enum pattern_kind {
    PATTERN_PROGRAM = 1,   /* our own matcher, over classes of the section: depends on no library */
    PATTERN_LITERAL = 2,
    PATTERN_ONIGURUMA = 3, /* the library of the host, Ruby's syntax */
};
/* clang-format on */

/* An instruction of a pattern's program: 12 bytes. The matcher tries alternatives in order, and
 * long runs first.
 *    0  1  op         enum pattern_op
 *    1  1  flags      CODE_POSSESSIVE: a run that is never shortened
 *    2  2  next       of CODE_TRY and CODE_JUMP: from the program's start, always further on
 *    4  4  classes    bits; a character is in the class if it has one of them
 *    8  2  min        of CODE_RUN
 *   10  2  max        of CODE_RUN; RUN_UNBOUNDED: no limit */
struct vocab_instr {
    uint8_t op, flags;
    uint16_t next;
    uint32_t classes;
    uint16_t min, max;
};
static_assert(sizeof(struct vocab_instr) == 12, "FORMAT-tokenizer.md: 12 bytes");

#define RUN_UNBOUNDED UINT16_MAX
#define CODE_MAX 256u /* instructions of a program */
enum { CODE_POSSESSIVE = 1 };
/* clang-format off */
enum pattern_op {
    CODE_MATCH = 1,     /* the pattern has matched */
    CODE_RUN = 2,       /* min to max characters of the class, fewer where the rest needs it */
    CODE_TRY = 3,       /* what follows, or else `next`; that at once if the next character is in
                         * none of `classes`, which are 0 where anything may follow */
    CODE_JUMP = 4,      /* to `next` */
    CODE_AHEAD = 5,     /* the next character is in the class */
    CODE_NOT_AHEAD = 6, /* there is none, or it is not in the class */
    CODE_LINE_END = 7,  /* there is none, or it is a line feed */
};
/* clang-format on */

/* A checked view of a section; small, to be copied at will, valid as long as its memory. */
struct vocab {
    const uint8_t *base;
    struct vocab_header header;
};

/* Checks the header, and that its tables lie in the section; touches the header's bytes and no
 * others. STELE_OK: *out is a view into `section`, which must be aligned to 4 bytes. Else err says
 * which field was wrong. */
enum stele_status vocab_open(struct vocab *out, const uint8_t *section, uint64_t length,
                             struct stele_error *err);

static inline const void *vocab_records(const struct vocab *v, enum vocab_table table)
{
    return v->base + v->header.tables[table].offset;
}

static inline uint32_t vocab_count(const struct vocab *v, enum vocab_table table)
{
    return v->header.tables[table].count;
}

/* The bytes of a string of VOCAB_STRINGS; false where it does not lie in it. */
static inline bool vocab_string(const struct vocab *v, struct vocab_string s, const char **out,
                                size_t *length)
{
    uint32_t room = vocab_count(v, VOCAB_STRINGS);
    if (s.offset > room || s.length > room - s.offset)
        return false;
    *out = (const char *)vocab_records(v, VOCAB_STRINGS) + s.offset;
    *length = s.length;
    return true;
}

/* The text of an id and its TOKEN_* flags; false for an id that the vocabulary has not, or a
 * damaged entry. */
bool vocab_token(const struct vocab *v, uint32_t id, const char **text, size_t *length,
                 uint32_t *flags);

/* Where probing for a hash begins: the high half of it, scaled to the table. */
static inline uint32_t vocab_slot(uint64_t hash, uint32_t slots)
{
    return (uint32_t)(((hash >> 32) * slots) >> 32);
}

static inline uint64_t vocab_text_hash(const char *text, size_t length)
{
    return XXH3_64bits(text, length);
}

/* Two rounds of multiply and xor-shift: neighbouring ids end far apart. */
static inline uint64_t vocab_pair_hash(uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u;
    h ^= h >> 32;
    return h * 0xd6e8feb86659fd93u;
}

/* The id that a whole piece with this text becomes by one lookup, or VOCAB_NONE. */
uint32_t vocab_lookup(const struct vocab *v, const char *text, size_t length);

/* What two ids merge into, and the rank of it; VOCAB_NONE where they do not. */
static inline uint32_t vocab_merge_find(const struct vocab_merge *merges, uint32_t slots,
                                        uint32_t left, uint32_t right, uint32_t *rank)
{
    if (left > VOCAB_IDS_MAX || right > VOCAB_IDS_MAX || !slots)
        return VOCAB_NONE;
    uint32_t pair = left | right << 21, high = right >> 11;
    uint32_t slot = vocab_slot(vocab_pair_hash(left, right), slots);
    for (uint32_t probes = 0; probes < slots; probes++) {
        const struct vocab_merge *m = &merges[slot];
        if (m->into == VOCAB_NONE)
            break;
        if (m->pair == pair && (m->rank & 0x3ff) == high) {
            *rank = m->rank >> 10;
            return m->into;
        }
        if (++slot == slots)
            slot = 0;
    }
    return VOCAB_NONE;
}

/* The character of the byte-level alphabet that stands for a byte: printable ones for themselves,
 * the others from U+0100 on in ascending order. */
static inline uint32_t alphabet_char(uint8_t byte)
{
    if (byte < 0x21)
        return 0x100u + byte;
    if (byte >= 0x7f && byte <= 0xa0)
        return 0x121u + byte - 0x7fu;
    return byte == 0xad ? 0x143u : byte;
}

/* The byte that a character of the alphabet stands for, or -1. */
static inline int alphabet_byte(uint32_t c)
{
    if (c >= 0x100 && c < 0x121)
        return (int)(c - 0x100);
    if (c >= 0x121 && c < 0x143)
        return (int)(c - 0x121 + 0x7f);
    if (c == 0x143)
        return 0xad;
    bool plain = (c >= 0x21 && c < 0x7f) || (c > 0xa0 && c < 0x100 && c != 0xad);
    return plain ? (int)c : -1;
}

#endif
