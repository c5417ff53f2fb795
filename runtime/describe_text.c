/* SPDX-License-Identifier: Apache-2.0 */
/* An image for people. Names and metadata come from whoever made it: their control bytes are escaped. */
#include "describe.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>

/* Text of a stranger: control bytes, also C1 in UTF-8, as \xNN; newlines stay if `lines`. */
static void put_text(FILE *to, const char *text, size_t length, bool lines)
{
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        bool c1 = c == 0xc2 && i + 1 < length && ((unsigned char)text[i + 1] & 0xe0) == 0x80;
        if ((c < 0x20 || c == 0x7f || c1) && !(lines && c == '\n'))
            fprintf(to, "\\x%02x", c);
        else
            fputc(c, to);
    }
}

static void put_name(FILE *to, const char *name)
{
    put_text(to, name, strlen(name), false);
}

/* "key          value" */
__attribute__((format(printf, 3, 4))) static void put_fact(FILE *to, const char *key, const char *format, ...)
{
    fprintf(to, "%-14s ", key);
    va_list args;
    va_start(args, format);
    vfprintf(to, format, args);
    va_end(args);
    fputc('\n', to);
}

static void print_sections(FILE *to, const struct image *image)
{
    fputs("\nsection              offset            bytes  digest\n", to);
    for (uint32_t i = 0; i < image->header.sections; i++) {
        const struct image_section *s = &image->sections[i];
        char digest[33];
        digest_text(digest, &s->digest);
        fprintf(to, "%-14s %12" PRIu64 " %16" PRIu64 "  %s\n", section_name(s->kind), s->offset,
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
        put_fact(f->to, "attention",
                 "%" PRIu32 " layers: %" PRIu32 " heads on %" PRIu32 " key-value heads of %" PRIu32
                 "%s",
                 k->layers, k->heads, k->kv_heads, k->head_dim, window);
    }
}

static void print_model(const struct facts *f)
{
    const struct plan_header *n = &f->plan.counts;
    fputc('\n', f->to);
    put_fact(f->to, "vocabulary", "%" PRIu32, n->vocabulary);
    put_fact(f->to, "context", "%" PRIu32 " positions", n->context);
    put_fact(f->to, "layers", "%" PRIu32, n->states);
    print_attention(f);
    put_fact(f->to, "parameters", "%" PRIu64 ", rows that pad joined matrices included", f->parameters);
    for (int type = 0; type < TENSOR_TYPES; type++)
        if (f->matrices[type].tensors)
            put_fact(f->to, "weights", "%s, %" PRIu64 " bytes in %" PRIu64 " matrices",
                     type_name((enum tensor_type)type), f->matrices[type].bytes,
                     f->matrices[type].tensors);
    if (f->vectors.tensors)
        put_fact(f->to, "weights", "f32, %" PRIu64 " bytes in %" PRIu64 " vectors", f->vectors.bytes,
                 f->vectors.tensors);
    put_fact(f->to, "state", "%" PRIu64 " bytes a position with --kv f32, %" PRIu64 " with f16",
             f->kv_numbers * 4, f->kv_numbers * 2);
}

static void print_tokenizer(const struct facts *f)
{
    if (!f->has_text) {
        put_fact(f->to, "tokenizer", "none: takes --ids");
        return;
    }
    put_fact(f->to, "tokenizer", "%" PRIu32 " ids, %" PRIu32 " added tokens", f->vocab.header.ids,
             vocab_count(&f->vocab, VOCAB_ADDED));
    if (f->host_patterns)
        put_fact(f->to, "", "%" PRIu32 " patterns run by the host's Oniguruma", f->host_patterns);
}

/* A field that is 0 is off. */
static void put_sampling(FILE *to, const char *key, double value)
{
    if (value != 0)
        put_fact(to, key, "%.9g", value);
    else
        put_fact(to, key, "off");
}

static void put_set_text(const struct facts *f, struct template_set_text text)
{
    put_text(f->to, template_set_text(&f->templates, text), text.length, false);
}

static void print_defaults(const struct facts *f)
{
    fputc('\n', f->to);
    put_fact(f->to, "temperature", "%.9g%s", (double)f->sampling.temperature,
             f->sampling.temperature == 0 ? " (greedy)" : "");
    put_sampling(f->to, "top-k", (double)f->sampling.top_k);
    put_sampling(f->to, "top-p", (double)f->sampling.top_p);
    put_sampling(f->to, "min-p", (double)f->sampling.min_p);
    put_sampling(f->to, "repeat-penalty", (double)f->sampling.repeat_penalty);
    fprintf(f->to, "%-14s", "stop ids");
    for (size_t i = 0; i < f->stop_count; i++)
        fprintf(f->to, " %" PRIu32, f->stops[i]);
    fputs(f->stop_count ? "\n" : " none\n", f->to);
    for (uint32_t i = 0; i < f->templates.header.templates; i++) {
        fprintf(f->to, "%-14s ", i ? "" : "chat template");
        put_set_text(f, f->templates.templates[i].name);
        fputc('\n', f->to);
    }
    if (!f->templates.header.templates)
        put_fact(f->to, "chat template", "none");
    if (f->templates.header.think.length) {
        fprintf(f->to, "%-14s ", "thinking");
        put_set_text(f, f->templates.header.think);
        fputs(" ... ", f->to);
        if (f->templates.header.think_next.length) {
            put_set_text(f, f->templates.header.think_next);
            fputs(" ... ", f->to);
        }
        put_set_text(f, f->templates.header.think_done);
        fputc('\n', f->to);
    }
}

static void print_provenance(const struct facts *f)
{
    if (!f->provenance)
        return;
    fputs("\nprovenance ", f->to);
    put_text(f->to, f->provenance, f->provenance_bytes, true);
    fputc('\n', f->to);
}

void describe_summary(const struct facts *f)
{
    char identity[33];
    digest_text(identity, &f->image->header.identity);
    fprintf(f->to, "%-14s ", "image");
    put_name(f->to, f->image->name);
    fputc('\n', f->to);
    put_fact(f->to, "identity", "%s", identity);
    put_fact(f->to, "format", "%" PRIu32, f->image->header.version);
    put_fact(f->to, "numerics", "%" PRIu32, f->image->header.numerics);
    put_fact(f->to, "bytes", "%" PRIu64, f->image->length);
    print_sections(f->to, f->image);
    print_model(f);
    print_tokenizer(f);
    print_defaults(f);
    print_provenance(f);
}

void describe_tensors(const struct facts *f)
{
    for (uint32_t i = 0; i < f->plan.tensor_count; i++) {
        const struct image_tensor *t = &f->plan.tensors[i];
        fprintf(f->to, "%-4s %8" PRIu64 " x %-8" PRIu64 " offset %12" PRIu64 " bytes %12" PRIu64 "  ",
               type_name((enum tensor_type)t->type), t->rows, t->columns, t->offset, t->bytes);
        if (t->count > 1)
            fprintf(f->to, "x %" PRIu32 ", stride %" PRIu64 "  ", t->count, t->stride);
        put_name(f->to, t->name);
        fputc('\n', f->to);
    }
}

static void print_operand(const struct facts *f, enum plan_kind kind, uint32_t word)
{
    if (describe_none(kind, word)) {
        fputs("none", f->to);
        return;
    }
    switch (kind) {
    case KIND_SLOT:
    case KIND_SLOT_OR_NONE:
        fprintf(f->to, "slot:%" PRIu32, word);
        break;
    case KIND_MATRIX:
    case KIND_BANK:
    case KIND_VECTOR:
    case KIND_VECTOR_OR_NONE:
        put_name(f->to, f->plan.tensors[word].name);
        break;
    case KIND_STATE:
        fprintf(f->to, "state:%" PRIu32, word);
        break;
    case KIND_ROPE:
    case KIND_ROPE_OR_NONE:
        fprintf(f->to, "rope:%" PRIu32, word);
        break;
    case KIND_COLUMN:
    case KIND_COUNT:
        fprintf(f->to, "%" PRIu32, word);
        break;
    case KIND_ROUTING:
        fprintf(f->to, "routing:%" PRIu32, word);
        break;
    case KIND_ACTIVATION:
        fputs(describe_activation(word), f->to);
        break;
    case KIND_NUMBER:
        fprintf(f->to, "%.9g", (double)describe_number(word));
        break;
    }
}

void describe_plan(const struct facts *f)
{
    const struct plan *p = &f->plan;
    for (uint32_t i = 0; i < p->counts.ops; i++) {
        const struct plan_form *form = &plan_forms[p->ops[i].code];
        fprintf(f->to, "op %-4" PRIu32 " %-9s", i, form->name);
        for (size_t a = 0; form->args[a].name; a++) {
            fprintf(f->to, " %s=", form->args[a].name);
            print_operand(f, form->args[a].kind, p->ops[i].args[a]);
        }
        fputc('\n', f->to);
    }
    for (uint32_t i = 0; i < p->counts.slots; i++)
        fprintf(f->to, "slot %" PRIu32 ": %" PRIu32 " numbers a row, from %" PRIu32 " on, stride %" PRIu32
               "\n",
               i, p->slots[i].width, p->slots[i].offset, p->slots[i].stride);
    for (uint32_t i = 0; i < p->counts.states; i++)
        fprintf(f->to, "state %" PRIu32 ": %" PRIu32 " key-value heads of %" PRIu32 ", window %" PRIu32
               ", %" PRIu32 " numbers a position\n",
               i, p->states[i].heads, p->states[i].head_dim, p->states[i].window,
               p->states[i].position_numbers);
    for (uint32_t i = 0; i < p->counts.ropes; i++) {
        const struct plan_rope *r = &p->ropes[i];
        fprintf(f->to, "rope %" PRIu32 ": %" PRIu32
               " pairs, inverse frequencies %.9g to %.9g, magnitude %.9g\n",
               i, r->pairs, (double)p->constants[r->first],
               (double)p->constants[r->first + r->pairs - 1], (double)r->magnitude);
    }
}

/* ---- residency ---- */

enum { BAR = 40 };

/* "NAME  bytes  97 %  ####+..": each sign a 40th of the part, all of it, some of it or nothing of it in memory. */
static void print_resident(const struct facts *f, const char *name, uint64_t offset, uint64_t bytes)
{
    char bar[BAR + 1] = "";
    for (uint64_t i = 0; i < BAR; i++) {
        uint64_t from = bytes / BAR * i + bytes % BAR * i / BAR, to = bytes / BAR * (i + 1) + bytes % BAR * (i + 1) / BAR;
        uint64_t in = residency_bytes(&f->residency, offset + from, to - from);
        bar[i] = in == to - from ? '#' : in ? '+' : '.';
    }
    fprintf(f->to, "%12" PRIu64 " %5.1f %%  %-40s  ", bytes,
            bytes ? 100.0 * (double)residency_bytes(&f->residency, offset, bytes) / (double)bytes : 100.0, bar);
    put_name(f->to, name);
    fputc('\n', f->to);
}

void describe_residency(const struct facts *f)
{
    const struct image *image = f->image;
    uint64_t all = residency_bytes(&f->residency, 0, image->length), weights;
    const uint8_t *begin = image_section(image, SECTION_WEIGHTS, &weights);
    put_fact(f->to, "in memory", "%" PRIu64 " of %" PRIu64 " bytes, %.1f %%", all, image->length,
             100.0 * (double)all / (double)image->length);
    put_fact(f->to, "large pages", "%" PRIu64 " bytes are mapped 2 MiB at a time, the rest by small pages",
             f->residency.large_bytes);
    fputs("\n       bytes  in memory  (# all of a 40th, + some, . nothing)          section\n", f->to);
    for (uint32_t i = 0; i < image->header.sections; i++)
        print_resident(f, section_name(image->sections[i].kind), image->sections[i].offset, image->sections[i].bytes);
    fputs("\n                                                                     tensor\n", f->to);
    for (uint32_t i = 0; begin && i < f->plan.tensor_count; i++)
        print_resident(f, f->plan.tensors[i].name, (uint64_t)(begin - image->bytes) + f->plan.tensors[i].offset,
                       f->plan.tensors[i].bytes);
}
