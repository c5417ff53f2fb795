/* SPDX-License-Identifier: Apache-2.0 */
/* An image as one JSON object. */
#include "describe.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "utf8.h"

/* Bytes as a JSON string, quotes included; those that are no UTF-8 become U+FFFD. */
static void json_string(FILE *to, const char *bytes, size_t length)
{
    const unsigned char *s = (const unsigned char *)bytes;
    fputc('"', to);
    for (size_t i = 0, n; i < length; i += n) {
        bool whole;
        n = utf8_part(s + i, length - i, &whole);
        if (!whole)
            fputs("\\ufffd", to);
        else if (s[i] < 0x20 || s[i] == 0x7f)
            fprintf(to, "\\u%04x", s[i]);
        else if (s[i] == '"' || s[i] == '\\')
            fprintf(to, "\\%c", s[i]);
        else
            fwrite(s + i, 1, n, to);
    }
    fputc('"', to);
}

static void json_text(FILE *to, const char *text)
{
    json_string(to, text, strlen(text));
}

/* JSON has no infinity and no NaN. */
static void json_float(FILE *to, float x)
{
    if (isfinite(x))
        fprintf(to, "%.9g", (double)x);
    else
        fputs("null", to);
}

static const char *comma(size_t i)
{
    return i ? "," : "";
}

static void json_sections(FILE *to, const struct image *image)
{
    fputs("\"sections\":[", to);
    for (uint32_t i = 0; i < image->header.sections; i++) {
        const struct image_section *s = &image->sections[i];
        char digest[33];
        digest_text(digest, &s->digest);
        fprintf(to, "%s{\"kind\":%" PRIu32 ",\"name\":\"%s\",\"offset\":%" PRIu64 ",\"bytes\":%" PRIu64
               ",\"digest\":\"%s\"}",
               comma(i), s->kind, section_name(s->kind), s->offset, s->bytes, digest);
    }
    fputc(']', to);
}

static void json_weights(const struct facts *f)
{
    size_t n = 0;
    fputs(",\"weights\":[", f->to);
    for (int type = 0; type < TENSOR_TYPES; type++)
        if (f->matrices[type].tensors)
            fprintf(f->to, "%s{\"type\":\"%s\",\"layout\":\"panels\",\"tensors\":%" PRIu64
                   ",\"bytes\":%" PRIu64 "}",
                   comma(n++), type_name((enum tensor_type)type), f->matrices[type].tensors,
                   f->matrices[type].bytes);
    if (f->vectors.tensors)
        fprintf(f->to, "%s{\"type\":\"f32\",\"layout\":\"vector\",\"tensors\":%" PRIu64
               ",\"bytes\":%" PRIu64 "}",
               comma(n), f->vectors.tensors, f->vectors.bytes);
    fputc(']', f->to);
}

static void json_model(const struct facts *f)
{
    const struct plan_header *n = &f->plan.counts;
    fprintf(f->to, "\"model\":{\"vocabulary\":%" PRIu32 ",\"context\":%" PRIu32 ",\"layers\":%" PRIu32
           ",\"parameters\":%" PRIu64 ",\"attention\":[",
           n->vocabulary, n->context, n->states, f->parameters);
    for (size_t i = 0; i < f->kind_count; i++) {
        const struct attention_kind *k = &f->kinds[i];
        fprintf(f->to, "%s{\"layers\":%" PRIu32 ",\"heads\":%" PRIu32 ",\"kv_heads\":%" PRIu32
               ",\"head_dim\":%" PRIu32 ",\"window\":%" PRIu32 "}",
               comma(i), k->layers, k->heads, k->kv_heads, k->head_dim, k->window);
    }
    fputc(']', f->to);
    json_weights(f);
    fprintf(f->to, ",\"kv_numbers_per_position\":%" PRIu64 "}", f->kv_numbers);
}

static void json_tokenizer(const struct facts *f)
{
    if (f->has_text)
        fprintf(f->to, "\"tokenizer\":{\"ids\":%" PRIu32 ",\"added_tokens\":%" PRIu32
               ",\"host_patterns\":%" PRIu32 "}",
               f->vocab.header.ids, vocab_count(&f->vocab, VOCAB_ADDED), f->host_patterns);
    else
        fputs("\"tokenizer\":null", f->to);
}

static void json_set_text(const struct facts *f, struct template_set_text text)
{
    json_string(f->to, template_set_text(&f->templates, text), text.length);
}

static void json_defaults(const struct facts *f)
{
    fputs("\"defaults\":{\"temperature\":", f->to);
    json_float(f->to, f->sampling.temperature);
    fprintf(f->to, ",\"top_k\":%" PRIu32 ",\"top_p\":", f->sampling.top_k);
    json_float(f->to, f->sampling.top_p);
    fputs(",\"min_p\":", f->to);
    json_float(f->to, f->sampling.min_p);
    fputs(",\"repeat_penalty\":", f->to);
    json_float(f->to, f->sampling.repeat_penalty);
    fputs(",\"stop_ids\":[", f->to);
    for (size_t i = 0; i < f->stop_count; i++)
        fprintf(f->to, "%s%" PRIu32, comma(i), f->stops[i]);
    fputs("],\"chat_templates\":[", f->to);
    for (uint32_t i = 0; i < f->templates.header.templates; i++) {
        fputs(comma(i), f->to);
        json_set_text(f, f->templates.templates[i].name);
    }
    fputs("],\"thinking\":", f->to);
    if (f->templates.header.think.length) {
        fputc('[', f->to);
        json_set_text(f, f->templates.header.think);
        fputc(',', f->to);
        json_set_text(f, f->templates.header.think_done);
        if (f->templates.header.think_next.length) {
            fputc(',', f->to);
            json_set_text(f, f->templates.header.think_next);
        }
        fputc(']', f->to);
    } else
        fputs("null", f->to);
    fputc('}', f->to);
}

static bool names_tensor(enum plan_kind kind)
{
    return kind == KIND_MATRIX || kind == KIND_BANK || kind == KIND_VECTOR ||
           kind == KIND_VECTOR_OR_NONE;
}

static void json_operand(const struct facts *f, enum plan_kind kind, uint32_t word)
{
    if (describe_none(kind, word))
        fputs("null", f->to);
    else if (names_tensor(kind))
        json_text(f->to, f->plan.tensors[word].name);
    else if (kind == KIND_ACTIVATION)
        json_text(f->to, describe_activation(word));
    else if (kind == KIND_NUMBER)
        json_float(f->to, describe_number(word));
    else
        fprintf(f->to, "%" PRIu32, word);
}

static void json_ops(const struct facts *f)
{
    fputs("\"plan\":{\"ops\":[", f->to);
    for (uint32_t i = 0; i < f->plan.counts.ops; i++) {
        const struct plan_op *op = &f->plan.ops[i];
        const struct plan_form *form = &plan_forms[op->code];
        fprintf(f->to, "%s{\"op\":\"%s\"", comma(i), form->name);
        for (size_t a = 0; form->args[a].name; a++) {
            fprintf(f->to, ",\"%s\":", form->args[a].name);
            json_operand(f, form->args[a].kind, op->args[a]);
        }
        fputc('}', f->to);
    }
    fputc(']', f->to);
}

static void json_rope(FILE *to, const struct plan *p, const struct plan_rope *rope)
{
    fprintf(to, "{\"pairs\":%" PRIu32 ",\"magnitude\":", rope->pairs);
    json_float(to, rope->magnitude);
    fputs(",\"inverse_frequencies\":[", to);
    for (uint32_t i = 0; i < rope->pairs; i++) {
        fputs(comma(i), to);
        json_float(to, p->constants[rope->first + i]);
    }
    fputs("]}", to);
}

static void json_plan(const struct facts *f)
{
    const struct plan *p = &f->plan;
    json_ops(f);
    fputs(",\"slots\":[", f->to);
    for (uint32_t i = 0; i < p->counts.slots; i++)
        fprintf(f->to, "%s{\"offset\":%" PRIu32 ",\"stride\":%" PRIu32 ",\"width\":%" PRIu32 "}", comma(i),
               p->slots[i].offset, p->slots[i].stride, p->slots[i].width);
    fputs("],\"states\":[", f->to);
    for (uint32_t i = 0; i < p->counts.states; i++)
        fprintf(f->to, "%s{\"kind\":\"kv\",\"heads\":%" PRIu32 ",\"head_dim\":%" PRIu32
               ",\"window\":%" PRIu32 ",\"position_numbers\":%" PRIu32 "}",
               comma(i), p->states[i].heads, p->states[i].head_dim, p->states[i].window,
               p->states[i].position_numbers);
    fputs("],\"ropes\":[", f->to);
    for (uint32_t i = 0; i < p->counts.ropes; i++) {
        fputs(comma(i), f->to);
        json_rope(f->to, p, &p->ropes[i]);
    }
    fputs("]}", f->to);
}

static void json_tensors(const struct facts *f)
{
    fputs("\"tensors\":[", f->to);
    for (uint32_t i = 0; i < f->plan.tensor_count; i++) {
        const struct image_tensor *t = &f->plan.tensors[i];
        fprintf(f->to, "%s{\"name\":", comma(i));
        json_text(f->to, t->name);
        fprintf(f->to, ",\"type\":\"%s\",\"layout\":\"%s\",\"rows\":%" PRIu64 ",\"columns\":%" PRIu64
               ",\"offset\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"count\":%" PRIu32
               ",\"stride\":%" PRIu64 "}",
               type_name((enum tensor_type)t->type),
               t->layout == LAYOUT_VECTOR ? "vector" : "panels", t->rows, t->columns, t->offset,
               t->bytes, t->count, t->stride);
    }
    fputc(']', f->to);
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
    fputs("\"provenance\":", f->to);
    if (!f->provenance)
        fputs("null", f->to);
    else if (is_json(f->provenance, f->provenance_bytes))
        fwrite(f->provenance, 1, f->provenance_bytes, f->to);
    else
        json_string(f->to, f->provenance, f->provenance_bytes);
}

void describe_json(const struct facts *f)
{
    char identity[33];
    digest_text(identity, &f->image->header.identity);
    fputs("{\"image\":", f->to);
    json_text(f->to, f->image->name);
    fprintf(f->to, ",\"identity\":\"%s\",\"format\":%" PRIu32 ",\"numerics\":%" PRIu32 ",\"bytes\":%" PRIu64
           ",\n",
           identity, f->image->header.version, f->image->header.numerics, f->image->length);
    void (*const parts[])(const struct facts *) = {json_model, json_tokenizer, json_defaults,
                                                   json_plan,  json_tensors,   json_provenance};
    json_sections(f->to, f->image);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        fputs(",\n", f->to);
        parts[i](f);
    }
    fputs("}\n", f->to);
}
