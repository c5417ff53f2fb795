/* SPDX-License-Identifier: Apache-2.0 */
#include "source.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "store.h"

static bool has_prefix(const char *word, const char *prefix)
{
    return !strncasecmp(word, prefix, strlen(prefix));
}

static bool has_suffix(const char *word, size_t n, const char *suffix)
{
    size_t length = strlen(suffix);
    return n >= length && !strncmp(word + n - length, suffix, length);
}

bool source_names_image(const char *path, size_t n)
{
    return has_suffix(path, n, ".stele") || has_suffix(path, n, ".stele.zst");
}

bool source_is_template(const char *path)
{
    size_t n = strlen(SOURCE_TEMPLATES);
    return !strncmp(path, SOURCE_TEMPLATES "/", n + 1) && path[n + 1] != '.' && !strchr(path + n + 1, '/') &&
           has_suffix(path, strlen(path), ".jinja");
}

char *source_escape(const char *text)
{
    char *out = malloc(3 * strlen(text) + 1), *to = out;
    for (; out && *text; text++)
        if (strchr("/-._~", *text) || (*text >= '0' && *text <= '9') || (*text >= 'A' && *text <= 'Z') ||
            (*text >= 'a' && *text <= 'z'))
            *to++ = *text;
        else
            to += sprintf(to, "%%%02X", (unsigned char)*text);
    if (out)
        *to = '\0';
    return out;
}

const char *source_authorities(const char *reference)
{
    static const char *const names[] = {"AWS_CA_BUNDLE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"};
    for (size_t i = has_prefix(reference, "s3://") ? 0 : 1; i < sizeof names / sizeof *names; i++) {
        const char *file = getenv(names[i]);
        if (file && *file)
            return file;
    }
    return NULL;
}

/* https://HOST/PATH: a folder, or with a name of a file of weights behind the last slash, its folder and that file. */
static enum stele_status web_open(struct source *s, const char *reference, struct stele_error *err)
{
    size_t n = strcspn(reference, "?#");
    CURLU *u = curl_url();
    bool valid = u && !curl_url_set(u, CURLUPART_URL, reference, 0);
    curl_url_cleanup(u);
    if (!valid)
        return stele_fail(err, STELE_USAGE, "%s: no valid URL", s->name);
    if (reference[n] == '?' && !(s->query = strndup(reference + n, strcspn(reference + n, "#"))))
        return stele_fail(err, STELE_SYSTEM, "%s: no memory", s->name);
    size_t folder = n;
    bool image = source_names_image(reference, n);
    if (image || has_suffix(reference, n, ".safetensors")) {
        while (reference[folder - 1] != '/')
            folder--;
        char *name = curl_easy_unescape(NULL, reference + folder, (int)(n - folder), NULL);
        *(image ? &s->image : &s->single) = name ? strdup(name) : NULL;
        curl_free(name);
    }
    bool slash = reference[folder - 1] == '/';
    if (asprintf(&s->base, "%.*s%s", (int)folder, reference, slash ? "" : "/") < 0)
        s->base = NULL;
    return s->base ? STELE_OK : stele_fail(err, STELE_SYSTEM, "%s: no memory", s->name);
}

enum stele_status source_open(struct source *out, const char *reference, struct http *http, struct stele_error *err)
{
    *out = (struct source){.name = store_name(reference)};
    enum stele_status status;
    if (!out->name)
        status = stele_fail(err, STELE_SYSTEM, "no memory");
    else if (has_prefix(reference, "hf:"))
        status = hub_open(out, reference, http, err);
    else if (has_prefix(reference, "s3://"))
        status = s3_open(out, reference, http, err);
    else
        status = web_open(out, reference, err);
    if (status != STELE_OK)
        source_close(out);
    return status;
}

void source_close(struct source *s)
{
    for (size_t i = 0; i < s->file_count; i++)
        free(s->files[i].name);
    free(s->files);
    free(s->name);
    free(s->revision);
    free(s->base);
    free(s->query);
    free(s->single);
    free(s->image);
    free(s->snapshot);
    free(s->login.header);
    free(s->login.keys);
    free(s->login.provider);
    free(s->login.session);
    *s = (struct source){0};
}

bool source_file(const struct source *s, const char *name, struct remote *out)
{
    const struct listed *listed = NULL;
    *out = (struct remote){.length = UINT64_MAX};
    for (size_t i = 0; s->lists && i < s->file_count; i++)
        if (!strcmp(s->files[i].name, name))
            listed = &s->files[i];
    char *escaped = s->lists && !listed ? NULL : source_escape(name);
    out->name = strdup(name);
    out->login = &s->login;
    if (listed) {
        out->length = listed->length;
        memcpy(out->sha256, listed->sha256, sizeof out->sha256);
        memcpy(out->blob, listed->blob, sizeof out->blob);
    }
    if (!escaped || !out->name || asprintf(&out->url, "%s%s%s", s->base, escaped, s->query ? s->query : "") < 0) {
        out->url = NULL;
        remote_free(out);
    }
    free(escaped);
    return out->url != NULL;
}
