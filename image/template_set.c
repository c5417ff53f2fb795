/* SPDX-License-Identifier: Apache-2.0 */
#include "template_set.h"

#include <inttypes.h>

static bool inside(uint64_t offset, uint64_t bytes, uint64_t length)
{
    return offset <= length && bytes <= length - offset;
}

static enum stele_status check_text(struct template_set_text text, const char *what, uint64_t length,
                                    struct stele_error *err)
{
    if (inside(text.offset, text.length, length))
        return STELE_OK;
    return stele_fail(err, STELE_INPUT, "templates section: %s: %" PRIu32 " bytes at %" PRIu32 " lie beyond its %" PRIu64,
                      what, text.length, text.offset, length);
}

static enum stele_status check_records(const struct template_set *s, uint64_t length, struct stele_error *err)
{
    enum stele_status status = check_text(s->header.think, "thinking mark", length, err);
    if (status == STELE_OK)
        status = check_text(s->header.think_done, "thinking mark", length, err);
    if (status == STELE_OK)
        status = check_text(s->header.think_next, "thinking mark", length, err);
    for (uint32_t i = 0; i < s->header.templates && status == STELE_OK; i++) {
        const struct template_set_template *t = &s->templates[i];
        status = check_text(t->name, "name of a template", length, err);
        if (status == STELE_OK && (t->offset % 8 || !inside(t->offset, t->length, length)))
            status = stele_fail(err, STELE_INPUT, "templates section: template %" PRIu32 ": %" PRIu32 " bytes at %" PRIu32
                                " do not lie in its %" PRIu64, i, t->length, t->offset, length);
    }
    for (uint32_t i = 0; i < s->header.tokens && status == STELE_OK; i++) {
        status = check_text(s->tokens[i].name, "name of a token", length, err);
        if (status == STELE_OK)
            status = check_text(s->tokens[i].text, "text of a token", length, err);
    }
    return status;
}

enum stele_status template_set_open(struct template_set *out, const uint8_t *section, uint64_t length,
                                    struct stele_error *err)
{
    struct template_set s = {.base = section};
    if (length < sizeof s.header)
        return stele_fail(err, STELE_INPUT, "templates section: %" PRIu64 " bytes, shorter than its header", length);
    memcpy(&s.header, section, sizeof s.header);
    const struct template_set_header *h = &s.header;
    if (!h->templates || h->templates > TEMPLATE_SET_MAX || h->tokens > TEMPLATE_SET_MAX ||
        !inside(sizeof *h, (uint64_t)(h->templates + h->tokens) * 16, length))
        return stele_fail(err, STELE_INPUT, "templates section: %" PRIu32 " templates and %" PRIu32 " tokens in %" PRIu64
                          " bytes", h->templates, h->tokens, length);
    s.templates = (const struct template_set_template *)(section + sizeof *h);
    s.tokens = (const struct template_set_token *)(s.templates + h->templates);
    *out = s;
    return check_records(&s, length, err);
}

uint32_t template_set_find(const struct template_set *s, const char *name)
{
    uint32_t i = 0;
    for (; i < s->header.templates; i++) {
        struct template_set_text t = s->templates[i].name;
        if (t.length == strlen(name) && !memcmp(template_set_text(s, t), name, t.length))
            break;
    }
    return i;
}

enum stele_status template_set_program(const struct template_set *s, uint32_t index, struct template_program *out,
                                       struct stele_error *err)
{
    const struct template_set_template *t = &s->templates[index];
    return template_open(out, s->base + t->offset, t->length, err);
}
