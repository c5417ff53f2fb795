/* SPDX-License-Identifier: Apache-2.0 */
/* `stele inspect`: what an image holds, for people or as one JSON object. Nothing is computed and
 * no weight is read.
 *
 * Names and metadata come from whoever made the image: their control bytes are escaped. */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cmd.h"
#include "guard.h"
#include "image.h"
#include "plan.h"
#include "stele.h"
#include "template_set.h"
#include "utf8.h"
#include "vocab.h"

static struct {
    bool plan, tensors, json;
} set;

static const struct cmd_option options[] = {
    {"--plan", OPTION_FLAG, &set.plan, NULL,
     "the ops with their operands, then slots, states and ropes", 0, 0, NULL},
    {"--tensors", OPTION_FLAG, &set.tensors, NULL, "the tensors, one a line", 0, 0, NULL},
    {"--json", OPTION_FLAG, &set.json, NULL, "all of it as one JSON object", 0, 0, NULL},
    {0},
};

const struct verb verb_inspect = {
    .name = "inspect",
    .synopsis = "IMAGE [--plan|--tensors|--json]",
    .about = "Prints what the image is: identity, sections, the model's shape, its defaults and "
             "where it\n"
             "came from.",
    .run = cmd_inspect,
    .options = options,
};

/* ---- facts ---- */

enum { ATTENTION_KINDS_MAX = 16 };

/* Layers whose attention has the same shape. */
struct attention_kind {
    uint32_t layers, heads, kv_heads, head_dim, window;
};

/* What is printed in several forms, gathered once. */
struct facts {
    const struct image *image;
    struct plan plan;
    void *plan_memory; /* what plan views */
    uint64_t parameters;
    struct {
        uint64_t tensors, bytes;
    } matrices[TENSOR_TYPES], vectors;
    uint64_t kv_numbers;                              /* a position costs, in all layers */
    struct attention_kind kinds[ATTENTION_KINDS_MAX]; /* the first, should there be more */
    size_t kind_count;
    bool has_text;
    struct vocab vocab; /* if has_text */
    uint32_t host_patterns;
    struct template_set templates; /* all zero: none */
    struct stele_sampling sampling;
    const uint32_t *stops;
    size_t stop_count;
    const char *provenance;
    uint64_t provenance_bytes;
};

static void add_attention(struct facts *f, const struct plan_attention *op)
{
    const struct plan_state *kv = &f->plan.states[op->kv];
    for (size_t i = 0; i < f->kind_count; i++) {
        struct attention_kind *k = &f->kinds[i];
        if (k->heads == op->heads && k->kv_heads == kv->heads && k->head_dim == kv->head_dim &&
            k->window == kv->window) {
            k->layers++;
            return;
        }
    }
    if (f->kind_count < ATTENTION_KINDS_MAX)
        f->kinds[f->kind_count++] =
            (struct attention_kind){1, op->heads, kv->heads, kv->head_dim, kv->window};
}

static void count_plan(struct facts *f)
{
    for (uint32_t i = 0; i < f->plan.tensor_count; i++) {
        const struct image_tensor *t = &f->plan.tensors[i];
        f->parameters += t->rows * t->columns * t->count;
        if (t->layout == LAYOUT_VECTOR) {
            f->vectors.tensors++;
            f->vectors.bytes += t->bytes;
        } else {
            f->matrices[t->type].tensors += t->count;
            f->matrices[t->type].bytes += t->bytes * t->count;
        }
    }
    for (uint32_t i = 0; i < f->plan.counts.states; i++)
        f->kv_numbers += f->plan.states[i].position_numbers;
    for (uint32_t i = 0; i < f->plan.counts.ops; i++)
        if (f->plan.ops[i].code == PLAN_ATTENTION)
            add_attention(f, &f->plan.ops[i].attention);
}

static enum stele_status open_plan(struct facts *f, struct stele_error *err)
{
    const uint8_t *weights;
    enum stele_status status = plan_load(&f->plan, &f->plan_memory, &weights, f->image, err);
    if (status == STELE_OK)
        count_plan(f);
    return status;
}

static enum stele_status open_vocab(struct facts *f, struct stele_error *err)
{
    uint64_t bytes;
    const uint8_t *section = image_section(f->image, SECTION_TOKENIZER, &bytes);
    f->has_text = section != NULL;
    enum stele_status status = section ? vocab_open(&f->vocab, section, bytes, err) : STELE_OK;
    if (!section || status != STELE_OK)
        return status;
    const struct vocab_pattern *patterns = vocab_records(&f->vocab, VOCAB_PATTERNS);
    for (uint32_t i = 0; i < vocab_count(&f->vocab, VOCAB_PATTERNS); i++)
        f->host_patterns += patterns[i].kind == PATTERN_ONIGURUMA;
    return STELE_OK;
}

static enum stele_status open_templates(struct facts *f, struct stele_error *err)
{
    uint64_t bytes;
    const uint8_t *section = image_section(f->image, SECTION_TEMPLATES, &bytes);
    return section ? template_set_open(&f->templates, section, bytes, err) : STELE_OK;
}

static enum stele_status gather(struct facts *f, const struct stele_image *image,
                                struct stele_error *err)
{
    f->image = (const struct image *)image;
    enum stele_status status = open_plan(f, err);
    if (status == STELE_OK)
        status = open_vocab(f, err);
    if (status == STELE_OK)
        status = open_templates(f, err);
    f->sampling = stele_default_sampling(image);
    f->stops = stele_stop_ids(image, &f->stop_count);
    f->provenance = (const char *)image_section(f->image, SECTION_PROVENANCE, &f->provenance_bytes);
    return status;
}

/* ---- for people ---- */

/* Text of a stranger: control bytes, also C1 in UTF-8, as \xNN; newlines stay if `lines`. */
static void put_text(const char *text, size_t length, bool lines)
{
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        bool c1 = c == 0xc2 && i + 1 < length && ((unsigned char)text[i + 1] & 0xe0) == 0x80;
        if ((c < 0x20 || c == 0x7f || c1) && !(lines && c == '\n'))
            printf("\\x%02x", c);
        else
            putchar(c);
    }
}

static void put_name(const char *name)
{
    put_text(name, strlen(name), false);
}

/* "key          value" */
__attribute__((format(printf, 2, 3))) static void put_fact(const char *key, const char *format, ...)
{
    printf("%-14s ", key);
    va_list args;
    va_start(args, format);
    vprintf(format, args);
    va_end(args);
    putchar('\n');
}

static void print_sections(const struct image *image)
{
    puts("\nsection              offset            bytes  digest");
    for (uint32_t i = 0; i < image->header.sections; i++) {
        const struct image_section *s = &image->sections[i];
        char digest[33];
        digest_text(digest, &s->digest);
        printf("%-14s %12" PRIu64 " %16" PRIu64 "  %s\n", section_name(s->kind), s->offset,
               s->bytes, digest);
    }
}

static void print_attention(const struct facts *f)
{
    for (size_t i = 0; i < f->kind_count; i++) {
        const struct attention_kind *k = &f->kinds[i];
        char window[32] = "";
        if (k->window)
            snprintf(window, sizeof window, ", window %" PRIu32, k->window);
        put_fact("attention",
                 "%" PRIu32 " layers: %" PRIu32 " heads on %" PRIu32 " key-value heads of %" PRIu32
                 "%s",
                 k->layers, k->heads, k->kv_heads, k->head_dim, window);
    }
}

static void print_model(const struct facts *f)
{
    const struct plan_header *n = &f->plan.counts;
    putchar('\n');
    put_fact("vocabulary", "%" PRIu32, n->vocabulary);
    put_fact("context", "%" PRIu32 " positions", n->context);
    put_fact("layers", "%" PRIu32, n->states);
    print_attention(f);
    put_fact("parameters", "%" PRIu64 ", rows that pad joined matrices included", f->parameters);
    for (int type = 0; type < TENSOR_TYPES; type++)
        if (f->matrices[type].tensors)
            put_fact("weights", "%s, %" PRIu64 " bytes in %" PRIu64 " matrices",
                     type_name((enum tensor_type)type), f->matrices[type].bytes,
                     f->matrices[type].tensors);
    if (f->vectors.tensors)
        put_fact("weights", "f32, %" PRIu64 " bytes in %" PRIu64 " vectors", f->vectors.bytes,
                 f->vectors.tensors);
    put_fact("state", "%" PRIu64 " bytes a position with --kv f32, %" PRIu64 " with f16",
             f->kv_numbers * 4, f->kv_numbers * 2);
}

static void print_tokenizer(const struct facts *f)
{
    if (!f->has_text) {
        put_fact("tokenizer", "none: takes --ids");
        return;
    }
    put_fact("tokenizer", "%" PRIu32 " ids, %" PRIu32 " added tokens", f->vocab.header.ids,
             vocab_count(&f->vocab, VOCAB_ADDED));
    if (f->host_patterns)
        put_fact("", "%" PRIu32 " patterns run by the host's Oniguruma", f->host_patterns);
}

/* A field that is 0 is off. */
static void put_sampling(const char *key, double value)
{
    if (value != 0)
        put_fact(key, "%.9g", value);
    else
        put_fact(key, "off");
}

static void put_set_text(const struct facts *f, struct template_set_text text)
{
    put_text(template_set_text(&f->templates, text), text.length, false);
}

static void print_defaults(const struct facts *f)
{
    putchar('\n');
    put_fact("temperature", "%.9g%s", (double)f->sampling.temperature,
             f->sampling.temperature == 0 ? " (greedy)" : "");
    put_sampling("top-k", (double)f->sampling.top_k);
    put_sampling("top-p", (double)f->sampling.top_p);
    put_sampling("min-p", (double)f->sampling.min_p);
    put_sampling("repeat-penalty", (double)f->sampling.repeat_penalty);
    printf("%-14s", "stop ids");
    for (size_t i = 0; i < f->stop_count; i++)
        printf(" %" PRIu32, f->stops[i]);
    puts(f->stop_count ? "" : " none");
    for (uint32_t i = 0; i < f->templates.header.templates; i++) {
        printf("%-14s ", i ? "" : "chat template");
        put_set_text(f, f->templates.templates[i].name);
        putchar('\n');
    }
    if (!f->templates.header.templates)
        put_fact("chat template", "none");
    if (f->templates.header.think.length) {
        printf("%-14s ", "thinking");
        put_set_text(f, f->templates.header.think);
        fputs(" ... ", stdout);
        put_set_text(f, f->templates.header.think_done);
        putchar('\n');
    }
}

static void print_provenance(const struct facts *f)
{
    if (!f->provenance)
        return;
    fputs("\nprovenance ", stdout);
    put_text(f->provenance, f->provenance_bytes, true);
    putchar('\n');
}

static void print_summary(const struct facts *f)
{
    char identity[33];
    digest_text(identity, &f->image->header.identity);
    printf("%-14s ", "image");
    put_name(f->image->name);
    putchar('\n');
    put_fact("identity", "%s", identity);
    put_fact("format", "%" PRIu32, f->image->header.version);
    put_fact("numerics", "%" PRIu32, f->image->header.numerics);
    put_fact("bytes", "%" PRIu64, f->image->length);
    print_sections(f->image);
    print_model(f);
    print_tokenizer(f);
    print_defaults(f);
    print_provenance(f);
}

static void print_tensors(const struct facts *f)
{
    for (uint32_t i = 0; i < f->plan.tensor_count; i++) {
        const struct image_tensor *t = &f->plan.tensors[i];
        printf("%-4s %8" PRIu64 " x %-8" PRIu64 " offset %12" PRIu64 " bytes %12" PRIu64 "  ",
               type_name((enum tensor_type)t->type), t->rows, t->columns, t->offset, t->bytes);
        if (t->count > 1)
            printf("x %" PRIu32 ", stride %" PRIu64 "  ", t->count, t->stride);
        put_name(t->name);
        putchar('\n');
    }
}

static const char *activation_name(uint32_t activation)
{
    static const char *const names[] = {"none", "silu_gate", "gelu_gate", "clamped_gate"};
    static_assert(sizeof names / sizeof *names == ACTIVATIONS, "a name for each");
    return names[activation];
}

static float number_of(uint32_t word)
{
    float number;
    memcpy(&number, &word, sizeof number);
    return number;
}

static bool is_none(enum plan_kind kind, uint32_t word)
{
    return word == PLAN_NONE &&
           (kind == KIND_SLOT_OR_NONE || kind == KIND_VECTOR_OR_NONE || kind == KIND_ROPE_OR_NONE);
}

static bool names_tensor(enum plan_kind kind)
{
    return kind == KIND_MATRIX || kind == KIND_BANK || kind == KIND_VECTOR ||
           kind == KIND_VECTOR_OR_NONE;
}

static void print_operand(const struct facts *f, enum plan_kind kind, uint32_t word)
{
    if (is_none(kind, word)) {
        fputs("none", stdout);
        return;
    }
    switch (kind) {
    case KIND_SLOT:
    case KIND_SLOT_OR_NONE:
        printf("slot:%" PRIu32, word);
        break;
    case KIND_MATRIX:
    case KIND_BANK:
    case KIND_VECTOR:
    case KIND_VECTOR_OR_NONE:
        put_name(f->plan.tensors[word].name);
        break;
    case KIND_STATE:
        printf("state:%" PRIu32, word);
        break;
    case KIND_ROPE:
    case KIND_ROPE_OR_NONE:
        printf("rope:%" PRIu32, word);
        break;
    case KIND_COLUMN:
    case KIND_COUNT:
        printf("%" PRIu32, word);
        break;
    case KIND_ROUTING:
        printf("routing:%" PRIu32, word);
        break;
    case KIND_ACTIVATION:
        fputs(activation_name(word), stdout);
        break;
    case KIND_NUMBER:
        printf("%.9g", (double)number_of(word));
        break;
    }
}

static void print_plan(const struct facts *f)
{
    const struct plan *p = &f->plan;
    for (uint32_t i = 0; i < p->counts.ops; i++) {
        const struct plan_form *form = &plan_forms[p->ops[i].code];
        printf("op %-4" PRIu32 " %-9s", i, form->name);
        for (size_t a = 0; form->args[a].name; a++) {
            printf(" %s=", form->args[a].name);
            print_operand(f, form->args[a].kind, p->ops[i].args[a]);
        }
        putchar('\n');
    }
    for (uint32_t i = 0; i < p->counts.slots; i++)
        printf("slot %" PRIu32 ": %" PRIu32 " numbers a row, from %" PRIu32 " on, stride %" PRIu32
               "\n",
               i, p->slots[i].width, p->slots[i].offset, p->slots[i].stride);
    for (uint32_t i = 0; i < p->counts.states; i++)
        printf("state %" PRIu32 ": %" PRIu32 " key-value heads of %" PRIu32 ", window %" PRIu32
               ", %" PRIu32 " numbers a position\n",
               i, p->states[i].heads, p->states[i].head_dim, p->states[i].window,
               p->states[i].position_numbers);
    for (uint32_t i = 0; i < p->counts.ropes; i++) {
        const struct plan_rope *r = &p->ropes[i];
        printf("rope %" PRIu32 ": %" PRIu32
               " pairs, inverse frequencies %.9g to %.9g, magnitude %.9g\n",
               i, r->pairs, (double)p->constants[r->first],
               (double)p->constants[r->first + r->pairs - 1], (double)r->magnitude);
    }
}

/* ---- as JSON ---- */

static void json_text(const char *text)
{
    cmd_json_string(stdout, text, strlen(text));
}

/* JSON has no infinity and no NaN. */
static void json_float(float x)
{
    if (isfinite(x))
        printf("%.9g", (double)x);
    else
        fputs("null", stdout);
}

static const char *comma(size_t i)
{
    return i ? "," : "";
}

static void json_sections(const struct image *image)
{
    fputs("\"sections\":[", stdout);
    for (uint32_t i = 0; i < image->header.sections; i++) {
        const struct image_section *s = &image->sections[i];
        char digest[33];
        digest_text(digest, &s->digest);
        printf("%s{\"kind\":%" PRIu32 ",\"name\":\"%s\",\"offset\":%" PRIu64 ",\"bytes\":%" PRIu64
               ",\"digest\":\"%s\"}",
               comma(i), s->kind, section_name(s->kind), s->offset, s->bytes, digest);
    }
    putchar(']');
}

static void json_weights(const struct facts *f)
{
    size_t n = 0;
    fputs(",\"weights\":[", stdout);
    for (int type = 0; type < TENSOR_TYPES; type++)
        if (f->matrices[type].tensors)
            printf("%s{\"type\":\"%s\",\"layout\":\"panels\",\"tensors\":%" PRIu64
                   ",\"bytes\":%" PRIu64 "}",
                   comma(n++), type_name((enum tensor_type)type), f->matrices[type].tensors,
                   f->matrices[type].bytes);
    if (f->vectors.tensors)
        printf("%s{\"type\":\"f32\",\"layout\":\"vector\",\"tensors\":%" PRIu64
               ",\"bytes\":%" PRIu64 "}",
               comma(n), f->vectors.tensors, f->vectors.bytes);
    putchar(']');
}

static void json_model(const struct facts *f)
{
    const struct plan_header *n = &f->plan.counts;
    printf("\"model\":{\"vocabulary\":%" PRIu32 ",\"context\":%" PRIu32 ",\"layers\":%" PRIu32
           ",\"parameters\":%" PRIu64 ",\"attention\":[",
           n->vocabulary, n->context, n->states, f->parameters);
    for (size_t i = 0; i < f->kind_count; i++) {
        const struct attention_kind *k = &f->kinds[i];
        printf("%s{\"layers\":%" PRIu32 ",\"heads\":%" PRIu32 ",\"kv_heads\":%" PRIu32
               ",\"head_dim\":%" PRIu32 ",\"window\":%" PRIu32 "}",
               comma(i), k->layers, k->heads, k->kv_heads, k->head_dim, k->window);
    }
    putchar(']');
    json_weights(f);
    printf(",\"kv_numbers_per_position\":%" PRIu64 "}", f->kv_numbers);
}

static void json_tokenizer(const struct facts *f)
{
    if (f->has_text)
        printf("\"tokenizer\":{\"ids\":%" PRIu32 ",\"added_tokens\":%" PRIu32
               ",\"host_patterns\":%" PRIu32 "}",
               f->vocab.header.ids, vocab_count(&f->vocab, VOCAB_ADDED), f->host_patterns);
    else
        fputs("\"tokenizer\":null", stdout);
}

static void json_set_text(const struct facts *f, struct template_set_text text)
{
    cmd_json_string(stdout, template_set_text(&f->templates, text), text.length);
}

static void json_defaults(const struct facts *f)
{
    fputs("\"defaults\":{\"temperature\":", stdout);
    json_float(f->sampling.temperature);
    printf(",\"top_k\":%" PRIu32 ",\"top_p\":", f->sampling.top_k);
    json_float(f->sampling.top_p);
    fputs(",\"min_p\":", stdout);
    json_float(f->sampling.min_p);
    fputs(",\"repeat_penalty\":", stdout);
    json_float(f->sampling.repeat_penalty);
    fputs(",\"stop_ids\":[", stdout);
    for (size_t i = 0; i < f->stop_count; i++)
        printf("%s%" PRIu32, comma(i), f->stops[i]);
    fputs("],\"chat_templates\":[", stdout);
    for (uint32_t i = 0; i < f->templates.header.templates; i++) {
        fputs(comma(i), stdout);
        json_set_text(f, f->templates.templates[i].name);
    }
    fputs("],\"thinking\":", stdout);
    if (f->templates.header.think.length) {
        putchar('[');
        json_set_text(f, f->templates.header.think);
        putchar(',');
        json_set_text(f, f->templates.header.think_done);
        putchar(']');
    } else
        fputs("null", stdout);
    putchar('}');
}

static void json_operand(const struct facts *f, enum plan_kind kind, uint32_t word)
{
    if (is_none(kind, word))
        fputs("null", stdout);
    else if (names_tensor(kind))
        json_text(f->plan.tensors[word].name);
    else if (kind == KIND_ACTIVATION)
        json_text(activation_name(word));
    else if (kind == KIND_NUMBER)
        json_float(number_of(word));
    else
        printf("%" PRIu32, word);
}

static void json_ops(const struct facts *f)
{
    fputs("\"plan\":{\"ops\":[", stdout);
    for (uint32_t i = 0; i < f->plan.counts.ops; i++) {
        const struct plan_op *op = &f->plan.ops[i];
        const struct plan_form *form = &plan_forms[op->code];
        printf("%s{\"op\":\"%s\"", comma(i), form->name);
        for (size_t a = 0; form->args[a].name; a++) {
            printf(",\"%s\":", form->args[a].name);
            json_operand(f, form->args[a].kind, op->args[a]);
        }
        putchar('}');
    }
    putchar(']');
}

static void json_rope(const struct plan *p, const struct plan_rope *rope)
{
    printf("{\"pairs\":%" PRIu32 ",\"magnitude\":", rope->pairs);
    json_float(rope->magnitude);
    fputs(",\"inverse_frequencies\":[", stdout);
    for (uint32_t i = 0; i < rope->pairs; i++) {
        fputs(comma(i), stdout);
        json_float(p->constants[rope->first + i]);
    }
    fputs("]}", stdout);
}

static void json_plan(const struct facts *f)
{
    const struct plan *p = &f->plan;
    json_ops(f);
    fputs(",\"slots\":[", stdout);
    for (uint32_t i = 0; i < p->counts.slots; i++)
        printf("%s{\"offset\":%" PRIu32 ",\"stride\":%" PRIu32 ",\"width\":%" PRIu32 "}", comma(i),
               p->slots[i].offset, p->slots[i].stride, p->slots[i].width);
    fputs("],\"states\":[", stdout);
    for (uint32_t i = 0; i < p->counts.states; i++)
        printf("%s{\"kind\":\"kv\",\"heads\":%" PRIu32 ",\"head_dim\":%" PRIu32
               ",\"window\":%" PRIu32 ",\"position_numbers\":%" PRIu32 "}",
               comma(i), p->states[i].heads, p->states[i].head_dim, p->states[i].window,
               p->states[i].position_numbers);
    fputs("],\"ropes\":[", stdout);
    for (uint32_t i = 0; i < p->counts.ropes; i++) {
        fputs(comma(i), stdout);
        json_rope(p, &p->ropes[i]);
    }
    fputs("]}", stdout);
}

static void json_tensors(const struct facts *f)
{
    fputs("\"tensors\":[", stdout);
    for (uint32_t i = 0; i < f->plan.tensor_count; i++) {
        const struct image_tensor *t = &f->plan.tensors[i];
        printf("%s{\"name\":", comma(i));
        json_text(t->name);
        printf(",\"type\":\"%s\",\"layout\":\"%s\",\"rows\":%" PRIu64 ",\"columns\":%" PRIu64
               ",\"offset\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"count\":%" PRIu32
               ",\"stride\":%" PRIu64 "}",
               type_name((enum tensor_type)t->type),
               t->layout == LAYOUT_VECTOR ? "vector" : "panels", t->rows, t->columns, t->offset,
               t->bytes, t->count, t->stride);
    }
    putchar(']');
}

/* ---- is it JSON? (RFC 8259) ---- */

struct json_reader {
    const char *at, *end;
};

static void skip_blanks(struct json_reader *r)
{
    while (r->at < r->end && *r->at && strchr(" \t\r\n", *r->at))
        r->at++;
}

static bool take(struct json_reader *r, const char *word)
{
    size_t n = strlen(word);
    if ((size_t)(r->end - r->at) < n || memcmp(r->at, word, n))
        return false;
    r->at += n;
    return true;
}

static size_t take_digits(struct json_reader *r)
{
    const char *from = r->at;
    while (r->at < r->end && *r->at >= '0' && *r->at <= '9')
        r->at++;
    return (size_t)(r->at - from);
}

static bool take_number(struct json_reader *r)
{
    take(r, "-");
    if (!take(r, "0") && !take_digits(r))
        return false;
    if (take(r, ".") && !take_digits(r))
        return false;
    if (!take(r, "e") && !take(r, "E"))
        return true;
    if (!take(r, "+"))
        take(r, "-");
    return take_digits(r) > 0;
}

static bool take_escape(struct json_reader *r)
{
    if (!take(r, "u"))
        return r->at < r->end && *r->at && strchr("\"\\/bfnrt", *r->at++);
    for (int i = 0; i < 4; i++, r->at++)
        if (r->at == r->end || !*r->at || !strchr("0123456789abcdefABCDEF", *r->at))
            return false;
    return true;
}

static bool take_string(struct json_reader *r)
{
    if (!take(r, "\""))
        return false;
    while (r->at < r->end && *r->at != '"') {
        if ((unsigned char)*r->at < 0x20)
            return false;
        if (*r->at++ == '\\' && !take_escape(r))
            return false;
    }
    return take(r, "\"");
}

static bool take_value(struct json_reader *r, int depth);

/* Elements of an object or array up to `close`. */
static bool take_elements(struct json_reader *r, const char *close, bool named, int depth)
{
    skip_blanks(r);
    if (take(r, close))
        return true;
    do {
        skip_blanks(r);
        if (named) {
            if (!take_string(r))
                return false;
            skip_blanks(r);
            if (!take(r, ":"))
                return false;
        }
        if (!take_value(r, depth))
            return false;
    } while (take(r, ","));
    return take(r, close);
}

/* A value with the blanks around it. */
static bool take_value(struct json_reader *r, int depth)
{
    bool taken;
    skip_blanks(r);
    if (r->at == r->end || depth == 0)
        return false;
    if (*r->at == '{' || *r->at == '[') {
        bool named = *r->at++ == '{';
        taken = take_elements(r, named ? "}" : "]", named, depth - 1);
    } else if (*r->at == '"')
        taken = take_string(r);
    else
        taken = take(r, "null") || take(r, "true") || take(r, "false") || take_number(r);
    skip_blanks(r);
    return taken;
}

static bool is_json(const char *text, size_t length)
{
    struct json_reader r = {text, text + length};
    return utf8_valid(text, length) == length && take_value(&r, 64) && r.at == r.end;
}

/* As it stands in the image; what is no JSON, as a string. */
static void json_provenance(const struct facts *f)
{
    fputs("\"provenance\":", stdout);
    if (!f->provenance)
        fputs("null", stdout);
    else if (is_json(f->provenance, f->provenance_bytes))
        fwrite(f->provenance, 1, f->provenance_bytes, stdout);
    else
        cmd_json_string(stdout, f->provenance, f->provenance_bytes);
}

static void print_json(const struct facts *f)
{
    char identity[33];
    digest_text(identity, &f->image->header.identity);
    fputs("{\"image\":", stdout);
    json_text(f->image->name);
    printf(",\"identity\":\"%s\",\"format\":%" PRIu32 ",\"numerics\":%" PRIu32 ",\"bytes\":%" PRIu64
           ",\n",
           identity, f->image->header.version, f->image->header.numerics, f->image->length);
    void (*const parts[])(const struct facts *) = {json_model, json_tokenizer, json_defaults,
                                                   json_plan,  json_tensors,   json_provenance};
    json_sections(f->image);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        fputs(",\n", stdout);
        parts[i](f);
    }
    puts("}");
}

static enum stele_status inspect(const struct stele_image *image, struct stele_error *err)
{
    struct facts f = {0};
    enum stele_status status = gather(&f, image, err);
    if (status != STELE_OK)
        return status;
    if (set.json)
        print_json(&f);
    else if (set.plan)
        print_plan(&f);
    else if (set.tensors)
        print_tensors(&f);
    else
        print_summary(&f);
    return stele_image_unchanged(image, err);
}

int cmd_inspect(int argc, char **argv)
{
    struct stele_error err = {0};
    struct stele_image *image = NULL;
    const char *operand;
    size_t count;
    enum stele_status status = cmd_options(options, argc, argv, &operand, 1, &count, &err);
    if (status == STELE_OK && !count)
        status = stele_fail(&err, STELE_USAGE, "no IMAGE is named; `stele help inspect` says more");
    if (status == STELE_OK && set.plan + set.tensors + set.json > 1)
        status = stele_fail(&err, STELE_USAGE, "--plan, --tensors and --json exclude each other");
    if (status == STELE_OK)
        status = stele_image_open(&image, operand, &err);
    if (status == STELE_OK) {
        guard_image(image, "inspect");
        status = inspect(image, &err);
    }
    stele_image_close(image);
    return status == STELE_OK ? STELE_OK : cmd_fail("inspect", &err);
}
