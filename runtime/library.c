/* SPDX-License-Identifier: Apache-2.0 */
/* The parts of stele.h that only hand on: images, text, defaults. */
#include "stele.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arrival.h"
#include "cpus.h"
#include "image.h"
#include "library.h"
#include "plan.h"
#include "residency.h"
#include "store.h"

const char *stele_version(void)
{
    return STELE_VERSION;
}

unsigned stele_surface_version(void)
{
    return STELE_SURFACE;
}

enum stele_status library_check_reserved(const char *what, const uint64_t *words, size_t n, struct stele_error *err)
{
    for (size_t i = 0; i < n; i++)
        if (words[i])
            return stele_fail(err, STELE_USAGE, "%s: a reserved word is not zero; the program was built for a later stele",
                              what);
    return STELE_OK;
}

enum stele_status stele_confine(const char *cpus, struct stele_error *err)
{
    return cpus_confine(cpus, err);
}

static const struct image *inner(const struct stele_image *image)
{
    return (const struct image *)image;
}

/* The image of the store that a reference names; its name is not trusted. */
static enum stele_status open_stored(struct image **out, const char *reference, struct stele_error *err)
{
    char *path, wanted[33], identity[33];
    enum stele_status status = store_find(reference, &path, wanted, err);
    if (status == STELE_OK)
        status = image_open(out, path, err);
    if (status == STELE_OK) {
        digest_text(identity, &(*out)->header.identity);
        if (strcmp(identity, wanted)) {
            image_close(*out);
            *out = NULL;
            status = stele_fail(err, STELE_DAMAGED, "%s: not the image that its name says; `stele pull` fetches it anew", path);
        }
    }
    free(path);
    return status;
}

enum stele_status stele_image_open(struct stele_image **out, const char *path, struct stele_error *err)
{
    struct image *image = NULL;
    bool stored = store_is_reference(path) && access(path, F_OK);
    enum stele_status status = stored ? open_stored(&image, path, err) : image_open(&image, path, err);
    *out = (struct stele_image *)image;
    return status;
}

enum stele_status stele_image_arrive(struct stele_image **out, const char *reference, int channel, struct stele_error *err)
{
    struct image *image = NULL;
    enum stele_status status = image_arrive(&image, reference, channel, err);
    if (status == STELE_OK && !image)
        status = open_stored(&image, reference, err);
    *out = (struct stele_image *)image;
    return status;
}

void stele_image_close(struct stele_image *image)
{
    image_close((struct image *)image);
}

enum stele_status stele_image_verify(const struct stele_image *image, struct stele_error *err)
{
    struct image_watch watch = {0};
    return image_verify(inner(image), &watch, err);
}

enum stele_status stele_image_verify_watched(const struct stele_image *image,
                                             void (*progress)(void *context, uint64_t done, uint64_t bytes), void *context,
                                             struct stele_damage *damage, struct stele_error *err)
{
    struct image_watch watch = {.progress = progress, .context = context};
    enum stele_status status = image_verify(inner(image), &watch, err);
    if (status == STELE_DAMAGED && damage)
        *damage = (struct stele_damage){.section = watch.section, .offset = watch.offset, .bytes = watch.bytes};
    return status;
}

enum stele_status stele_image_warm(const struct stele_image *image, bool anew,
                                   void (*progress)(void *context, uint64_t done, uint64_t bytes), void *context,
                                   struct stele_error *err)
{
    return image_warm(inner(image), anew, progress, context, err);
}

enum stele_status stele_image_unchanged(const struct stele_image *image, struct stele_error *err)
{
    return image_unchanged(inner(image), err);
}

enum stele_status stele_image_fault(const struct stele_image *image, const void *address)
{
    const struct image *i = inner(image);
    const uint8_t *at = address;
    struct stat st;
    if (at < i->bytes || at >= i->bytes + i->length)
        return STELE_OK;
    return !fstat(i->fd, &st) && (uint64_t)st.st_size < i->length ? STELE_DAMAGED : STELE_SYSTEM;
}

const char *stele_image_name(const struct stele_image *image)
{
    return inner(image)->name;
}

/* Copies the header of a section; zeros where the section is missing or too short. */
static void read_header(const struct image *image, enum section_kind kind, void *header, size_t size)
{
    uint64_t bytes;
    const uint8_t *section = image_section(image, kind, &bytes);
    memset(header, 0, size);
    if (section && bytes >= size)
        memcpy(header, section, size);
}

struct stele_image_info stele_image_info(const struct stele_image *opened)
{
    const struct image *image = inner(opened);
    struct plan_header plan;
    struct vocab_header vocab;
    read_header(image, SECTION_PLAN, &plan, sizeof plan);
    read_header(image, SECTION_TOKENIZER, &vocab, sizeof vocab);
    struct stele_image_info info = {
        .name = image->name,
        .format = image->header.version,
        .numerics = image->header.numerics,
        .bytes = image->length,
        .vocabulary = plan.vocabulary,
        .tokens = vocab.ids,
        .context = plan.context,
        .layers = plan.states,
    };
    digest_text(info.identity, &image->header.identity);
    for (uint32_t i = 0; i < image->header.sections; i++)
        if (image->sections[i].kind == SECTION_TOKENIZER)
            digest_text(info.text_identity, &image->sections[i].digest);
    return info;
}

/* ---- text ---- */

enum stele_status library_open_tokenizer(struct tokenizer *out, const struct image *image, struct stele_error *err)
{
    uint64_t bytes;
    const uint8_t *section = image_section(image, SECTION_TOKENIZER, &bytes);
    if (!section)
        return stele_fail(err, STELE_INPUT, "%s: its checkpoint had no tokenizer, so it takes --ids instead of text",
                          image->name);
    return tokenizer_open(out, section, bytes, err);
}

enum stele_status stele_tokenize(const struct stele_image *image, const char *text, size_t bytes, unsigned flags,
                                 uint32_t **ids, size_t *count, struct stele_error *err)
{
    struct tokenizer t;
    *ids = NULL;
    *count = 0;
    if (flags & ~(STELE_TEXT_BARE | STELE_TEXT_PLAIN))
        return stele_fail(err, STELE_USAGE, "stele_tokenize: unknown flags %x", flags);
    enum stele_status status = library_open_tokenizer(&t, inner(image), err);
    unsigned own = (flags & STELE_TEXT_BARE ? TOKENIZER_BARE : 0u) | (flags & STELE_TEXT_PLAIN ? TOKENIZER_PLAIN : 0u);
    return status == STELE_OK ? tokenizer_encode(&t, text, NULL, bytes, own, ids, count, err) : status;
}

enum stele_status stele_detokenize(const struct stele_image *image, const uint32_t *ids, size_t count, bool skip_special,
                                   char **text, size_t *bytes, struct stele_error *err)
{
    struct tokenizer t;
    *text = NULL;
    *bytes = 0;
    enum stele_status status = library_open_tokenizer(&t, inner(image), err);
    return status == STELE_OK ? tokenizer_decode(&t, ids, count, skip_special, text, bytes, err) : status;
}

enum stele_status stele_token_text(const struct stele_image *image, uint32_t id, char **piece, size_t *bytes,
                                   struct stele_error *err)
{
    struct tokenizer t;
    *piece = NULL;
    *bytes = 0;
    enum stele_status status = library_open_tokenizer(&t, inner(image), err);
    return status == STELE_OK ? tokenizer_piece(&t, id, piece, bytes, err) : status;
}

bool stele_has_text(const struct stele_image *image)
{
    uint64_t bytes;
    return image_section(inner(image), SECTION_TOKENIZER, &bytes) != NULL;
}

/* ---- defaults ---- */

/* The section, or zeros where it is missing or too short: all of it is optional. */
static struct image_defaults read_defaults(const struct stele_image *image, const uint32_t **stops)
{
    struct image_defaults d = {0};
    uint64_t bytes;
    const uint8_t *section = image_section(inner(image), SECTION_DEFAULTS, &bytes);
    if (section && bytes >= sizeof d)
        memcpy(&d, section, sizeof d);
    if (d.stops > (bytes - sizeof d) / sizeof **stops || bytes < sizeof d)
        d.stops = 0;
    *stops = d.stops ? (const uint32_t *)(section + sizeof d) : NULL;
    return d;
}

static bool within(float x, float low, float high)
{
    return x >= low && x <= high;
}

enum stele_status library_check_defaults(const struct image *image, struct stele_error *err)
{
    uint64_t bytes;
    struct image_defaults d;
    const uint8_t *section = image_section(image, SECTION_DEFAULTS, &bytes);
    if (!section || bytes < sizeof d)
        return STELE_OK; /* counts as none */
    memcpy(&d, section, sizeof d);
    if (d.stops != (bytes - sizeof d) / sizeof(uint32_t) || bytes % sizeof(uint32_t))
        return stele_fail(err, STELE_INPUT, "%s: defaults: %" PRIu64 " bytes for %" PRIu32 " stop ids", image->name, bytes,
                          d.stops);
    if (d.reserved || d.reserved2)
        return stele_fail(err, STELE_INPUT, "%s: defaults: a reserved field is not zero: made by a later stele?",
                          image->name);
    if (!within(d.temperature, 0, 1e6f) || !within(d.top_p, 0, 1) || !within(d.min_p, 0, 1) ||
        !within(d.repeat_penalty, 0, 0x1p20f) || d.top_k > INT32_MAX)
        return stele_fail(err, STELE_INPUT, "%s: defaults: temperature %g, top-k %" PRIu32
                          ", top-p %g, min-p %g, repeat penalty %g: out of range", image->name, (double)d.temperature,
                          d.top_k, (double)d.top_p, (double)d.min_p, (double)d.repeat_penalty);
    return STELE_OK;
}

bool stele_has_template(const struct stele_image *image)
{
    uint64_t bytes;
    return image_section(inner(image), SECTION_TEMPLATES, &bytes) != NULL;
}

struct stele_sampling stele_default_sampling(const struct stele_image *image)
{
    const uint32_t *stops;
    struct image_defaults d = read_defaults(image, &stops);
    return (struct stele_sampling){.temperature = d.temperature,
                                   .top_p = d.top_p,
                                   .min_p = d.min_p,
                                   .repeat_penalty = d.repeat_penalty,
                                   .top_k = d.top_k};
}

const uint32_t *stele_stop_ids(const struct stele_image *image, size_t *count)
{
    const uint32_t *stops;
    *count = read_defaults(image, &stops).stops;
    return stops;
}
