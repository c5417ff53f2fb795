/* SPDX-License-Identifier: Apache-2.0 */
/* Classes of characters: which there are, and the range table that the image has of them. */
#include "vocab_draft.h"

#include <stdlib.h>

/* clang-format off */
enum category {
    CATEGORY_LU, CATEGORY_LL, CATEGORY_LT, CATEGORY_LM, CATEGORY_LO, CATEGORY_MN, CATEGORY_MC,
    CATEGORY_ME, CATEGORY_ND, CATEGORY_NL, CATEGORY_NO, CATEGORY_PC, CATEGORY_PD, CATEGORY_PS,
    CATEGORY_PE, CATEGORY_PI, CATEGORY_PF, CATEGORY_PO, CATEGORY_SM, CATEGORY_SC, CATEGORY_SK,
    CATEGORY_SO, CATEGORY_ZS, CATEGORY_ZL, CATEGORY_ZP, CATEGORY_CC, CATEGORY_CF, CATEGORY_CS,
    CATEGORY_CO, CATEGORY_CN,
};
/* clang-format on */

/* Runs of equal characters; a run ends where the next begins. */
static const struct run {
    uint32_t first;
    uint8_t category, age, han; /* age: 0 in Unicode 8, 1 new in 9, 2 younger or not assigned */
} RUNS[] = {
#include "unicode.inc"
};
#define RUN_COUNT (sizeof RUNS / sizeof *RUNS)

#define BIT(c) (1u << CATEGORY_##c)
#define LETTER (BIT(LU) | BIT(LL) | BIT(LT) | BIT(LM) | BIT(LO))
#define MARK (BIT(MN) | BIT(MC) | BIT(ME))
#define PUNCTUATION (BIT(PC) | BIT(PD) | BIT(PS) | BIT(PE) | BIT(PI) | BIT(PF) | BIT(PO))

/* What a name stands for: the categories in the mask, of the ages up to `age_max`, and the further
 * ranges. */
static const struct property {
    const char *name;
    uint32_t categories;
    uint8_t age_max;
    struct {
        uint32_t first, last;
    } more[8];
} PROPERTIES[] = {
    {"L", LETTER, 2, {{0}}},
    {"M", MARK, 2, {{0}}},
    {"N", BIT(ND) | BIT(NL) | BIT(NO), 2, {{0}}},
    {"P", PUNCTUATION, 2, {{0}}},
    {"S", BIT(SM) | BIT(SC) | BIT(SK) | BIT(SO), 2, {{0}}},
    {"Z", BIT(ZS) | BIT(ZL) | BIT(ZP), 2, {{0}}},
    {"Lu", BIT(LU), 2, {{0}}},
    {"Ll", BIT(LL), 2, {{0}}},
    {"Lt", BIT(LT), 2, {{0}}},
    {"Lm", BIT(LM), 2, {{0}}},
    {"Lo", BIT(LO), 2, {{0}}},
    {"Mn", BIT(MN), 2, {{0}}},
    {"Mc", BIT(MC), 2, {{0}}},
    {"Me", BIT(ME), 2, {{0}}},
    {"Nd", BIT(ND), 2, {{0}}},
    {"Nl", BIT(NL), 2, {{0}}},
    {"No", BIT(NO), 2, {{0}}},
    {"Pc", BIT(PC), 2, {{0}}},
    {"Pd", BIT(PD), 2, {{0}}},
    {"Ps", BIT(PS), 2, {{0}}},
    {"Pe", BIT(PE), 2, {{0}}},
    {"Pi", BIT(PI), 2, {{0}}},
    {"Pf", BIT(PF), 2, {{0}}},
    {"Po", BIT(PO), 2, {{0}}},
    {"Sm", BIT(SM), 2, {{0}}},
    {"Sc", BIT(SC), 2, {{0}}},
    {"Sk", BIT(SK), 2, {{0}}},
    {"So", BIT(SO), 2, {{0}}},
    {"White_Space", BIT(ZS) | BIT(ZL) | BIT(ZP), 2, {{0x09, 0x0d}, {0x85, 0x85}}},
    {"Any", 0, 2, {{0, 0x10ffff}}},
    /* Alphabetic, M, Nd, Pc and Join_Control: what is alphabetic beyond L, M and Nl are circled
       letters */
    {"Word",
     LETTER | MARK | BIT(ND) | BIT(NL) | BIT(PC),
     2,
     {{0x200c, 0x200d},
      {0x24b6, 0x24e9},
      {0x1f130, 0x1f149},
      {0x1f150, 0x1f169},
      {0x1f170, 0x1f189}}},
    /* Rust's standard library is a version ahead of its regex crate: Unicode 17 */
    {"Numeric", BIT(ND) | BIT(NL) | BIT(NO), 2, {{0x11de0, 0x11de9}, {0x16ff4, 0x16ff6}}},
    /* the library's table of punctuation is that of Unicode 8; U+166D and U+111C9 have changed
       since */
    {"Punctuation",
     PUNCTUATION,
     0,
     {{0x21, 0x2f},
      {0x3a, 0x40},
      {0x5b, 0x60},
      {0x7b, 0x7e},
      {0x166d, 0x166d},
      {0x111c9, 0x111c9}}},
};

void charset_add(struct charset *s, uint32_t first, uint32_t last)
{
    for (uint32_t c = first; c <= last && c < VOCAB_CODEPOINTS; c++)
        s->bits[c / 64] |= 1ull << c % 64;
}

void charset_invert(struct charset *s)
{
    for (size_t i = 0; i < VOCAB_CODEPOINTS / 64; i++)
        s->bits[i] = ~s->bits[i];
}

static uint32_t run_last(size_t run)
{
    return (run + 1 < RUN_COUNT ? RUNS[run + 1].first : VOCAB_CODEPOINTS) - 1;
}

static void add_runs(struct charset *s, uint32_t categories, uint8_t age_max)
{
    for (size_t i = 0; i < RUN_COUNT; i++)
        if ((categories >> RUNS[i].category & 1) && RUNS[i].age <= age_max)
            charset_add(s, RUNS[i].first, run_last(i));
}

static bool is_name(const char *name, const char *text, size_t length)
{
    return strlen(name) == length && !memcmp(name, text, length);
}

bool charset_add_property(struct charset *s, const char *name, size_t length)
{
    if (is_name("Han", name, length) || is_name("Young", name, length)) {
        bool han = *name == 'H';
        for (size_t i = 0; i < RUN_COUNT; i++)
            if (han ? RUNS[i].han : RUNS[i].age == 2)
                charset_add(s, RUNS[i].first, run_last(i));
        return true;
    }
    if (is_name("Neither", name, length)) {
        charset_add_property(s, "Word", 4);
        charset_add_property(s, "White_Space", 11);
        charset_invert(s);
        return true;
    }
    for (size_t i = 0; i < sizeof PROPERTIES / sizeof *PROPERTIES; i++) {
        const struct property *p = &PROPERTIES[i];
        if (!is_name(p->name, name, length))
            continue;
        add_runs(s, p->categories, p->age_max);
        for (size_t m = 0; m < 8 && p->more[m].last; m++)
            charset_add(s, p->more[m].first, p->more[m].last);
        return true;
    }
    return false;
}

static bool has(const struct charset *s, uint32_t c)
{
    return s->bits[c / 64] >> c % 64 & 1;
}

static bool class_is(const struct draft *d, unsigned class, const struct charset *s)
{
    for (uint32_t c = 0; c < VOCAB_CODEPOINTS; c++)
        if ((d->classes[c] >> class & 1) != has(s, c))
            return false;
    return true;
}

enum stele_status draft_class(struct draft *d, const struct charset *s, uint32_t *bit,
                              struct stele_error *err)
{
    *bit = 0;
    if (!d->classes && !(d->classes = calloc(VOCAB_CODEPOINTS, sizeof *d->classes)))
        return stele_fail(err, STELE_SYSTEM, "no memory for the classes of %u characters",
                          VOCAB_CODEPOINTS);
    unsigned class = 0;
    while (class < d->class_count && !class_is(d, class, s))
        class ++;
    if (class == 32)
        return STELE_OK;
    if (class == d->class_count) {
        for (uint32_t c = 0; c < VOCAB_CODEPOINTS; c++)
            d->classes[c] |= (uint32_t)has(s, c) << class;
        d->class_count++;
    }
    *bit = 1u << class;
    return STELE_OK;
}

enum stele_status draft_property(struct draft *d, const char *name, uint32_t *bit,
                                 struct stele_error *err)
{
    struct charset *s = calloc(1, sizeof *s);
    if (!s)
        return stele_fail(err, STELE_SYSTEM, "no memory for a set of characters");
    bool known = charset_add_property(s, name, strlen(name));
    assert(known);
    (void)known;
    enum stele_status status = draft_class(d, s, bit, err);
    free(s);
    if (!status && !*bit)
        return stele_fail(err, STELE_INPUT,
                          "%s: its components tell more than 32 classes of characters apart",
                          d->path);
    return status;
}

/* The index of a set of classes in VOCAB_SETS, to which it is added if it is new. */
static enum stele_status set_index(struct draft *d, uint32_t classes, uint32_t *index,
                                   struct stele_error *err)
{
    size_t count = draft_count(d, VOCAB_SETS, 4);
    for (uint32_t i = 0; i < count; i++)
        if (!memcmp(d->tables[VOCAB_SETS].data + 4 * i, &classes, 4)) {
            *index = i;
            return STELE_OK;
        }
    *index = (uint32_t)count;
    if (count > 0x7ff)
        return stele_fail(err, STELE_INPUT,
                          "%s: its patterns cut the characters into more than 2048 kinds", d->path);
    return draft_put(d, VOCAB_SETS, &classes, 4, err);
}

enum stele_status draft_ranges(struct draft *d, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    uint16_t pages[VOCAB_PAGES_COUNT] = {0};
    uint32_t ranges = 0, before = 0;
    for (uint32_t c = 0; c < VOCAB_CODEPOINTS && !status; c++) {
        uint32_t classes = d->classes ? d->classes[c] : 0, set = 0;
        if (c < 128)
            status = draft_put(d, VOCAB_ASCII, &classes, 4, err);
        if (!status && (c == 0 || classes != before)) {
            status = set_index(d, classes, &set, err);
            uint32_t range = c | set << 21;
            if (!status)
                status = draft_put(d, VOCAB_RANGES, &range, 4, err);
            ranges++;
        }
        before = classes;
        if (c % 4096 == 0)
            pages[c / 4096] = (uint16_t)(ranges - 1);
    }
    pages[VOCAB_CODEPOINTS / 4096] = pages[VOCAB_CODEPOINTS / 4096 + 1] = (uint16_t)(ranges - 1);
    return status ? status : draft_put(d, VOCAB_PAGES, pages, sizeof pages, err);
}
