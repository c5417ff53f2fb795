/* SPDX-License-Identifier: Apache-2.0 */
/* An object store: requests are signed by curl (AWS signature 4). The conventions of Amazon's tools hold:
 * AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, AWS_PROFILE with
 * ~/.aws/credentials and
 * ~/.aws/config. Without keys requests are not signed. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "source.h"

enum { VALUE_MAX = 4096, LISTING_BYTES_MAX = 64 << 20 };

/* What a request needs to know. */
struct settings {
    char key[VALUE_MAX], secret[VALUE_MAX], session[VALUE_MAX], region[VALUE_MAX], endpoint[VALUE_MAX],
        style[VALUE_MAX];
};

static const struct {
    const char *variables[3]; /* of the environment, the first one set counts */
    const char *name;         /* in a file of settings */
    size_t at;
} fields[] = {
    {{"AWS_ACCESS_KEY_ID"}, "aws_access_key_id", offsetof(struct settings, key)},
    {{"AWS_SECRET_ACCESS_KEY"}, "aws_secret_access_key", offsetof(struct settings, secret)},
    {{"AWS_SESSION_TOKEN"}, "aws_session_token", offsetof(struct settings, session)},
    {{"AWS_REGION", "AWS_DEFAULT_REGION"}, "region", offsetof(struct settings, region)},
    {{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"}, "endpoint_url", offsetof(struct settings, endpoint)},
    {{NULL}, "addressing_style", offsetof(struct settings, style)},
};

static char *field_of(struct settings *s, size_t i)
{
    return (char *)s + fields[i].at;
}

/* Text between blanks; ends it in place. */
static char *trimmed(char *text)
{
    text += strspn(text, " \t\r\n");
    for (size_t n = strlen(text); n && strchr(" \t\r\n", text[n - 1]); n--)
        text[n - 1] = '\0';
    return text;
}

/* Takes what is not yet set from the section of the profile. In ~/.aws/config, sections are called "profile NAME". */
static void read_file(struct settings *s, const char *path, const char *profile)
{
    char line[VALUE_MAX], header[300], other[300];
    FILE *file = path ? fopen(path, "re") : NULL;
    bool inside = false;
    snprintf(header, sizeof header, "[%s]", profile);
    snprintf(other, sizeof other, "[profile %s]", profile);
    while (file && fgets(line, sizeof line, file)) {
        char *text = trimmed(line), *equals = strchr(text, '=');
        if (*text == '[')
            inside = !strcmp(text, header) || !strcmp(text, other);
        if (!inside || !equals || *text == '#')
            continue;
        *equals = '\0';
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
            if (!strcmp(trimmed(text), fields[i].name) && !*field_of(s, i))
                snprintf(field_of(s, i), VALUE_MAX, "%s", trimmed(equals + 1));
    }
    if (file)
        fclose(file);
}

static void read_settings(struct settings *s)
{
    static const char *const files[][2] = {{"AWS_SHARED_CREDENTIALS_FILE", "credentials"},
                                           {"AWS_CONFIG_FILE", "config"}};
    const char *profile = getenv("AWS_PROFILE"), *home = getenv("HOME");
    memset(s, 0, sizeof *s);
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        for (size_t v = 0; fields[i].variables[v] && !*field_of(s, i); v++) {
            const char *value = getenv(fields[i].variables[v]);
            snprintf(field_of(s, i), VALUE_MAX, "%s", value ? value : "");
        }
    bool keys = s->key[0] && s->secret[0]; /* then those of a profile are not mixed in */
    for (size_t i = 0; i < 2; i++) {
        const char *set = getenv(files[i][0]);
        char *path = set && *set ? strdup(set) : NULL;
        if (!path && asprintf(&path, "%s/.aws/%s", home ? home : "", files[i][1]) < 0)
            path = NULL;
        struct settings before = *s;
        read_file(s, path, profile && *profile ? profile : "default");
        if (keys)
            memcpy(s, &before, offsetof(struct settings, region));
        free(path);
    }
    if (!s->region[0])
        strcpy(s->region, "us-east-1");
}

/* ---- the address ---- */

struct place {
    char bucket[256];
    char prefix[1200]; /* without a slash at its end */
};

static enum stele_status read_place(struct place *out, const char *reference, struct stele_error *err)
{
    const char *bucket = reference + 5, *slash = strchr(bucket, '/');
    size_t n = slash ? (size_t)(slash - bucket) : strlen(bucket);
    bool good = n >= 3 && n <= 63 &&
                strspn(bucket, "abcdefghijklmnopqrstuvwxyz0123456789.-_ABCDEFGHIJKLMNOPQRSTUVWXYZ") >= n &&
                (!slash || strlen(slash + 1) < sizeof out->prefix);
    if (!good)
        return stele_fail(err, STELE_USAGE, "%s: a folder of an object store is written s3://BUCKET/PREFIX", reference);
    snprintf(out->bucket, sizeof out->bucket, "%.*s", (int)n, bucket);
    snprintf(out->prefix, sizeof out->prefix, "%s", slash ? slash + 1 : "");
    for (n = strlen(out->prefix); n && out->prefix[n - 1] == '/'; n--)
        out->prefix[n - 1] = '\0';
    return STELE_OK;
}

/* The URL of the bucket, with a slash at its end: path style, or the bucket as a host's name where that is asked for
 * and at Amazon. */
static char *bucket_url(const struct settings *s, const char *bucket)
{
    char *url = NULL, endpoint[VALUE_MAX + 64];
    bool amazon = !s->endpoint[0];
    if (amazon)
        snprintf(endpoint, sizeof endpoint, "https://s3.%s.amazonaws.com", s->region);
    else
        snprintf(endpoint, sizeof endpoint, "%s%s", strstr(s->endpoint, "://") ? "" : "https://", s->endpoint);
    for (size_t n = strlen(endpoint); n && endpoint[n - 1] == '/'; n--)
        endpoint[n - 1] = '\0';
    const char *host = strstr(endpoint, "://") + 3;
    bool named = !strcmp(s->style, "virtual") || (amazon && strcmp(s->style, "path") && !strchr(bucket, '.'));
    int n = named ? asprintf(&url, "%.*s%s.%s/", (int)(host - endpoint), endpoint, bucket, host)
                  : asprintf(&url, "%s/%s/", endpoint, bucket);
    return n < 0 ? NULL : url;
}

static enum stele_status read_login(struct source *s, const struct settings *settings, struct stele_error *err)
{
    s->login.hint = settings->key[0]
                        ? "; look at the keys, the region and the clock"
                        : "; no keys are set: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, do";
    if (!settings->key[0] || !settings->secret[0])
        return STELE_OK;
    bool done =
        asprintf(&s->login.keys, "%s:%s", settings->key, settings->secret) > 0 &&
        asprintf(&s->login.provider, "aws:amz:%s:s3", settings->region) > 0 &&
        (!settings->session[0] || asprintf(&s->login.session, "X-Amz-Security-Token: %s", settings->session) > 0);
    return done ? STELE_OK : stele_fail(err, STELE_SYSTEM, "no memory");
}

/* ---- the listing ---- */

static bool add_listed(struct source *s, const char *name, size_t n, uint64_t length)
{
    struct listed *more = realloc(s->files, (s->file_count + 1) * sizeof *more);
    s->files = more ? more : s->files;
    char *copy = strndup(name, n);
    if (!more || !copy) {
        free(copy);
        return false;
    }
    s->files[s->file_count++] = (struct listed){.name = copy, .length = length};
    return true;
}

/* The objects of one page, as ListObjectsV2 gives them; names with XML entities are none that a checkpoint has. */
static bool read_listing(struct source *s, const char *xml, const char *prefix)
{
    for (const char *at = xml; (at = strstr(at, "<Key>"));) {
        at += 5;
        size_t n = strcspn(at, "<"), skip = strlen(prefix);
        const char *size = strstr(at, "<Size>");
        uint64_t length = size ? strtoull(size + 6, NULL, 10) : UINT64_MAX;
        if (n > skip && !strncmp(at, prefix, skip) && !memchr(at + skip, '/', n - skip) &&
            !add_listed(s, at + skip, n - skip, length))
            return false;
    }
    return true;
}

/* Lists what lies below the prefix. Who may read objects may still not be allowed to list them: then they are tried by
 * name. */
static enum stele_status list(struct source *s, const char *bucket, const char *prefix, struct http *http,
                              struct stele_error *err)
{
    char *url = NULL, *escaped = curl_easy_escape(NULL, prefix, 0);
    if (!escaped || asprintf(&url, "%s?delimiter=%%2F&list-type=2&prefix=%s", bucket, escaped) < 0)
        url = NULL;
    curl_free(escaped);
    struct remote remote = {.name = s->name, .url = url, .login = &s->login, .length = UINT64_MAX, .rangeless = true};
    struct fetch fetch = {.remote = &remote, .most = HTTP_REST};
    enum stele_status status = url ? http_fetch(http, &fetch, 1, LISTING_BYTES_MAX, err)
                                   : stele_fail(err, STELE_SYSTEM, "%s: no memory", s->name);
    bool denied = status == STELE_UNREACHABLE && strstr(err->text, "AccessDenied");
    if (status == STELE_OK && !strstr((const char *)fetch.bytes, "<IsTruncated>true")) {
        s->lists = true;
        if (!read_listing(s, (const char *)fetch.bytes, prefix))
            status = stele_fail(err, STELE_SYSTEM, "%s: no memory for its list of files", s->name);
        else if (!s->file_count)
            status = stele_fail(err, STELE_UNREACHABLE, "%s: there is nothing below this prefix", s->name);
    }
    free(fetch.bytes);
    free(url);
    return denied ? STELE_OK : status;
}

enum stele_status s3_open(struct source *s, const char *reference, struct http *http, struct stele_error *err)
{
    struct settings settings;
    struct place place;
    enum stele_status status = read_place(&place, reference, err);
    if (status != STELE_OK)
        return status;
    if (source_names_image(place.prefix, strlen(place.prefix))) { /* its folder is the prefix */
        char *slash = strrchr(place.prefix, '/');
        s->image = strdup(slash ? slash + 1 : place.prefix);
        *(slash ? slash : place.prefix) = '\0';
    }
    s->checksums = true;
    read_settings(&settings);
    char *bucket = bucket_url(&settings, place.bucket), *prefix = NULL, *escaped = source_escape(place.prefix);
    if (asprintf(&prefix, "%s%s", place.prefix, place.prefix[0] ? "/" : "") < 0)
        prefix = NULL;
    if (!bucket || !escaped || !prefix ||
        asprintf(&s->base, "%s%s%s", bucket, escaped, place.prefix[0] ? "/" : "") < 0) {
        s->base = NULL;
        status = stele_fail(err, STELE_SYSTEM, "%s: no memory", s->name);
    }
    if (status == STELE_OK)
        status = read_login(s, &settings, err);
    memset(&settings, 0, sizeof settings);
    if (status == STELE_OK && http)
        status = list(s, bucket, prefix, http, err);
    free(bucket);
    free(prefix);
    free(escaped);
    return status;
}
