/* SPDX-License-Identifier: Apache-2.0 */
/* The records of an image, as they lie in the file. FORMAT.md specifies them byte by byte and says why; all integers are
 * little-endian, no pointer and no host-sized integer is stored. */
#ifndef IMAGE_FORMAT_H
#define IMAGE_FORMAT_H

#include <assert.h>
#include <stdint.h>

#define IMAGE_MAGIC "stele\r\n\x1a" /* 8 bytes: text-mode copies and `type` damage or stop at it, as with PNG's */
#define IMAGE_VERSION 1
#define NUMERICS_VERSION 1 /* of blas/NUMBERS.md: a change of any definition there is a new version */

enum {
    IMAGE_PAGE = 4096,           /* header and section table have a page each; the weights begin at a multiple */
    IMAGE_ALIGN = 64,            /* other sections begin at multiples */
    IMAGE_SECTIONS_MAX = 64,
    IMAGE_CHUNK = 2 << 20,       /* digests are over chunks of this size */
    IMAGE_NAME_MAX = 72,         /* bytes of a tensor's name, NUL included */
    IMAGE_OPTIONAL = INT32_MIN,  /* kinds with this bit may be ignored by a reader that does not know them */
};

enum section_kind {
    SECTION_PLAN = 1,
    SECTION_TENSORS = 2,
    SECTION_TOKENIZER = 3, /* absent: the image takes ids only */
    SECTION_DEFAULTS = 4,
    SECTION_WEIGHTS = 5,
    SECTION_DIGESTS = 6,
    SECTION_PROVENANCE = 7,
    SECTION_TEMPLATES = 8, /* absent: text goes in as it is */
    SECTION_KINDS
};

/* XXH3-128 in canonical (big-endian) byte order. */
struct image_digest {
    uint8_t bytes[16];
};

/* Page 0. The rest of the page is zero. */
struct image_header {
    uint8_t magic[8];              /*  0 IMAGE_MAGIC */
    uint32_t version;              /*  8 IMAGE_VERSION */
    uint32_t numerics;             /* 12 version of NUMBERS.md that the answers follow */
    struct image_digest identity;  /* 16 digest of what the image is: identity.c */
    uint64_t check;                /* 32 XXH3-64 of pages 0 and 1 with this field zero */
    uint64_t file_bytes;           /* 40 length of the whole file */
    uint32_t sections;             /* 48 entries of the section table */
    uint32_t reserved;             /* 52 zero; another value is refused */
};
static_assert(sizeof(struct image_header) == 56, "FORMAT.md: 56 bytes");

/* Page 1 holds up to 64 of these, ascending by offset; the rest of the page is zero. */
struct image_section {
    uint32_t id;                /*  0 unique in the file; the position in the table */
    uint32_t kind;              /*  4 enum section_kind; each occurs once at most */
    uint64_t offset;            /*  8 bytes from the start of the file, a multiple of 64; of the weights, of 4096 */
    uint64_t bytes;             /* 16 length; the padding behind it is zero */
    struct image_digest digest; /* 24 digest of the digests of its 2 MiB chunks */
};
static_assert(sizeof(struct image_section) == 40, "FORMAT.md: 40 bytes");

/* Section "tensors": an array of these. */
struct image_tensor {
    char name[IMAGE_NAME_MAX]; /*  0 for people, NUL-padded */
    uint32_t type;             /* 72 enum tensor_type */
    uint32_t layout;           /* 76 enum tensor_layout */
    uint64_t rows;             /* 80 output rows; 1 for a vector */
    uint64_t columns;          /* 88 K; the length of a vector */
    uint64_t offset;           /* 96 from the start of the section "weights", a multiple of 64 */
    uint64_t bytes;            /* 104 as rows, columns, type and layout give it */
    uint64_t stride;           /* 112 of a bank: from the beginning of one matrix to that of the next; else 0 */
    uint32_t count;            /* 120 matrices of this shape, one for each expert; 1: no bank */
    uint32_t reserved;         /* 124 zero */
};
static_assert(sizeof(struct image_tensor) == 128, "FORMAT.md: 128 bytes");

enum tensor_layout {
    LAYOUT_PANELS = 0, /* blas/panel.h */
    LAYOUT_VECTOR = 1, /* f32, one after the other */
    LAYOUTS
};

/* Section "plan": this header, then arrays in this order without gaps: ops, slots, states, ropes, constants. */
struct plan_header {
    uint32_t ops;             /*  0 */
    uint32_t slots;           /*  4 */
    uint32_t states;          /*  8 */
    uint32_t ropes;           /* 12 */
    uint32_t constants;       /* 16 binary32 numbers */
    uint32_t vocabulary;      /* 20 rows of embedding and head: ids lie below */
    uint32_t context;         /* 24 positions that the model was trained for */
    uint32_t slot_numbers;    /* 28 binary32 numbers of scratch for one row: every slot lies below */
};
static_assert(sizeof(struct plan_header) == 32, "FORMAT.md: 32 bytes");

/* A slot holds activations: [rows of the step][stride] binary32, `width` of them used. Slots whose lifetimes do not meet
 * share numbers. The stride is no multiple of 1024 numbers (4 KiB), so that rows do not share cache sets. */
struct plan_slot {
    uint32_t offset; /* numbers for one row before this slot; the runtime multiplies by its rows */
    uint32_t stride;
    uint32_t width;
    uint32_t reserved;
};
static_assert(sizeof(struct plan_slot) == 16, "FORMAT.md: 16 bytes");

/* What a sequence keeps from step to step. */
struct plan_state {
    uint32_t kind;             /*  0 enum state_kind */
    uint32_t heads;            /*  4 KV heads */
    uint32_t head_dim;         /*  8 */
    uint32_t window;           /* 12 positions that a row sees, itself among them; 0: all */
    uint32_t position_numbers; /* 16 numbers a position costs (padding included), 0: none */
    uint32_t reserved;         /* 20 */
    uint64_t sequence_bytes;   /* 24 bytes a sequence costs whatever its length, 0: none */
};
static_assert(sizeof(struct plan_state) == 32, "FORMAT.md: 32 bytes");

enum state_kind {
    STATE_KV = 1, /* keys and values, in blocks of 64 positions (panel.h) */
};

/* A set of RoPE frequencies: `pairs` constants from `first` on. Where a run is set up for a context of more than
 * `long_above` positions, those from `long_first` on instead, whatever the length of its text (longrope). */
struct plan_rope {
    uint32_t first;        /*  0 */
    uint32_t pairs;        /*  4 */
    float magnitude;       /*  8 multiplies sines and cosines; 1 for most */
    uint32_t long_above;   /* 12 0: there is one set only */
    uint32_t long_first;   /* 16 */
    float long_magnitude;  /* 20 */
    uint32_t reserved[2];  /* 24 zero */
};
static_assert(sizeof(struct plan_rope) == 32, "FORMAT.md: 32 bytes");

/* Section "defaults": this, then `stops` ids of end of text. A field that is 0 is off. */
struct image_defaults {
    float temperature;       /*  0 0: greedy */
    float top_p;             /*  4 */
    float min_p;             /*  8 */
    float repeat_penalty;    /* 12 */
    uint32_t top_k;          /* 16 */
    uint32_t reserved;       /* 20 zero */
    uint32_t stops;          /* 24 */
    uint32_t reserved2;      /* 28 zero */
};
static_assert(sizeof(struct image_defaults) == 32, "FORMAT.md: 32 bytes");

/* Section "digests": the digests of the chunks of the section "weights", in order. */

#endif
