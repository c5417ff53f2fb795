/* SPDX-License-Identifier: Apache-2.0 */
/* An upload of several parts, side by side. One that was cut off is found by its key, and parts are kept whose digest
 * (for a part, an ETag is its MD5) is that of the image's bytes. */
#include "push.h"

#include <errno.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "image.h"
#include "options.h"
#include "source.h"

enum { PARTS_MAX = 10000, BATCH = 64, ANSWER_BYTES_MAX = 64 << 20, ID_MAX = 1024 };

static const char usage[] =
    "usage: stele push IMAGE s3://BUCKET/KEY [options]\n"
    "\n"
    "Checks an image by its digests and uploads it in parts, from its mapping. KEY ends in .stele, or in a slash:\n"
    "then the file's name follows. An upload that was cut off goes on when it is called again with the same\n"
    "--part; the object appears when it is complete. `stele pull s3://BUCKET/KEY` fetches it. Keys, region,\n"
    "endpoint and profile are taken from where Amazon's tools take them.\n"
    "\n"
    "options:\n"
    "  --part SIZE             bytes of a part, 5M to 1G (default 16M; more where 10000 parts are too few)\n"
    "  --connections N         parts at a time, 1 to 64 (default 8)\n"
    "  --timeout SECONDS       of silence until a part is tried again (default 30)\n"
    "\n"
    "exit codes: 0 done, 1 system, 2 usage, 3 input, 4 damaged, 6 unreachable or refused\n";

struct words {
    const char *image, *target;
    uint64_t part;
    uint64_t connections, timeout;
};

struct part {
    char tag[HTTP_TAG_MAX]; /* empty: it is not there yet */
};

struct push {
    struct words words;
    struct stele_error *err;
    struct http *http;
    struct source source;
    char *key_url;       /* of the object */
    size_t bucket_bytes; /* of it, the URL of the bucket */
    char *key;           /* the object's name in the bucket */
    char upload[ID_MAX]; /* as a URL has it */
    const uint8_t *bytes;
    uint64_t length;
    struct part *parts;
    size_t count;
};

/* One request; the answer is malloc'ed. `query` follows the object's URL, or the bucket's where `of_bucket`. */
static enum stele_status ask(struct push *p, const char *method, bool of_bucket, const char *query, const char *send,
                             char **answer)
{
    char *url = NULL;
    *answer = NULL;
    if (asprintf(&url, "%.*s%s", (int)(of_bucket ? p->bucket_bytes : strlen(p->key_url)), p->key_url, query) < 0)
        return stele_fail(p->err, STELE_SYSTEM, "no memory");
    struct remote remote = {
        .name = p->source.name, .url = url, .login = &p->source.login, .length = UINT64_MAX, .rangeless = true};
    struct fetch fetch = {.remote = &remote,
                          .most = HTTP_REST,
                          .method = method,
                          .send = (const uint8_t *)send,
                          .send_bytes = send ? strlen(send) : 0};
    enum stele_status status = http_fetch(p->http, &fetch, 1, ANSWER_BYTES_MAX, p->err);
    *answer = (char *)fetch.bytes;
    free(url);
    free(remote.location);
    return status;
}

/* ---- an upload that was begun ---- */

static void set_upload(struct push *p, const char *id)
{
    char *escaped = curl_easy_escape(NULL, id, 0);
    snprintf(p->upload, sizeof p->upload, "%s", escaped ? escaped : "");
    curl_free(escaped);
}

/* The last upload that was begun for the key. */
static enum stele_status find_upload(struct push *p)
{
    char *answer, *query = NULL, *escaped = curl_easy_escape(NULL, p->key, 0), key[ID_MAX], id[ID_MAX];
    if (!escaped || asprintf(&query, "?prefix=%s&uploads=", escaped) < 0)
        query = NULL;
    curl_free(escaped);
    enum stele_status status =
        query ? ask(p, NULL, true, query, NULL, &answer) : stele_fail(p->err, STELE_SYSTEM, "no memory");
    free(query);
    if (status == STELE_UNREACHABLE && strstr(p->err->text, "AccessDenied"))
        return STELE_OK; /* who may upload may still not be allowed to look */
    if (status != STELE_OK)
        return status;
    for (char *at = answer; (at = strstr(at, "<Upload>")); at++) {
        http_element(key, sizeof key, at, "Key");
        http_element(id, sizeof id, at, "UploadId");
        if (!strcmp(key, p->key))
            set_upload(p, id);
    }
    free(answer);
    return STELE_OK;
}

static uint64_t part_bytes(const struct push *p, size_t i)
{
    uint64_t at = i * p->words.part;
    return p->length - at < p->words.part ? p->length - at : p->words.part;
}

static bool has_digest(const struct push *p, size_t i, const char *tag)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    char text[2 * EVP_MAX_MD_SIZE + 1] = "";
    unsigned n = 0;
    if (!EVP_Digest(p->bytes + i * p->words.part, part_bytes(p, i), digest, &n, EVP_md5(), NULL))
        return false;
    for (unsigned j = 0; j < n; j++)
        sprintf(text + 2 * j, "%02x", digest[j]);
    return strlen(tag) >= 32 && strstr(tag, text);
}

/* Parts that the upload has, if they are the image's. */
static enum stele_status find_parts(struct push *p)
{
    for (size_t from = 0;;) {
        char query[2 * ID_MAX], *answer, word[ID_MAX], tag[HTTP_TAG_MAX];
        snprintf(query, sizeof query, "?part-number-marker=%zu&uploadId=%s", from, p->upload);
        enum stele_status status = ask(p, NULL, false, query, NULL, &answer);
        if (status != STELE_OK)
            return status;
        size_t last = from;
        for (char *at = answer; (at = strstr(at, "<Part>")); at++) {
            http_element(word, sizeof word, at, "PartNumber");
            http_element(tag, sizeof tag, at, "ETag");
            size_t i = strtoul(word, NULL, 10);
            last = i > last ? i : last;
            if (i && i <= p->count && has_digest(p, i - 1, tag))
                snprintf(p->parts[i - 1].tag, sizeof p->parts[i - 1].tag, "\"%.32s\"", tag + strspn(tag, "\"&quot;"));
        }
        bool more = strstr(answer, "<IsTruncated>true") && last > from;
        free(answer);
        from = last;
        if (!more)
            return STELE_OK;
    }
}

static enum stele_status begin_upload(struct push *p)
{
    char *answer, id[ID_MAX];
    enum stele_status status = ask(p, "POST", false, "?uploads=", NULL, &answer);
    if (status != STELE_OK)
        return status;
    http_element(id, sizeof id, answer, "UploadId");
    free(answer);
    set_upload(p, id);
    return id[0] ? STELE_OK : stele_fail(p->err, STELE_UNREACHABLE, "%s: the store begins no upload", p->source.name);
}

/* ---- parts ---- */

static enum stele_status send_batch(struct push *p, const size_t *which, size_t n)
{
    struct remote remotes[BATCH] = {{0}};
    struct fetch fetches[BATCH] = {{0}};
    enum stele_status status = STELE_OK;
    for (size_t i = 0; i < n; i++) {
        if (asprintf(&remotes[i].url, "%s?partNumber=%zu&uploadId=%s", p->key_url, which[i] + 1, p->upload) < 0) {
            remotes[i].url = NULL;
            status = stele_fail(p->err, STELE_SYSTEM, "no memory");
        }
        remotes[i].login = &p->source.login;
        fetches[i] = (struct fetch){.remote = &remotes[i],
                                    .most = HTTP_REST,
                                    .method = "PUT",
                                    .send = p->bytes + which[i] * p->words.part,
                                    .send_bytes = part_bytes(p, which[i])};
    }
    if (status == STELE_OK)
        status = http_fetch(p->http, fetches, n, ANSWER_BYTES_MAX, p->err);
    for (size_t i = 0; i < n; i++) {
        if (status == STELE_OK && !fetches[i].tag[0])
            status = stele_fail(p->err, STELE_UNREACHABLE, "%s: the store gives part %zu no ETag", p->source.name,
                                which[i] + 1);
        memcpy(p->parts[which[i]].tag, fetches[i].tag, sizeof fetches[i].tag);
        free(fetches[i].bytes);
        free(remotes[i].url);
        free(remotes[i].location);
    }
    return status;
}

static enum stele_status send_parts(struct push *p)
{
    size_t which[BATCH], n = 0;
    enum stele_status status = STELE_OK;
    for (size_t i = 0; status == STELE_OK && i < p->count; i++) {
        if (!p->parts[i].tag[0])
            which[n++] = i;
        if (n && (n == BATCH || i + 1 == p->count)) {
            status = send_batch(p, which, n);
            n = 0;
        }
    }
    return status;
}

static enum stele_status complete(struct push *p)
{
    char *text = NULL, *answer, query[2 * ID_MAX];
    size_t length;
    FILE *to = open_memstream(&text, &length);
    if (!to)
        return stele_fail(p->err, STELE_SYSTEM, "no memory");
    fputs("<CompleteMultipartUpload>", to);
    for (size_t i = 0; i < p->count; i++)
        fprintf(to, "<Part><PartNumber>%zu</PartNumber><ETag>%s</ETag></Part>", i + 1, p->parts[i].tag);
    fputs("</CompleteMultipartUpload>", to);
    fclose(to);
    snprintf(query, sizeof query, "?uploadId=%s", p->upload);
    enum stele_status status = ask(p, "POST", false, query, text, &answer);
    if (status == STELE_OK && !strstr(answer, "CompleteMultipartUploadResult")) { /* errors come with status 200 too */
        char code[80], message[300];
        http_element(code, sizeof code, answer, "Code");
        http_element(message, sizeof message, answer, "Message");
        status = stele_fail(p->err, STELE_UNREACHABLE, "%s: the store does not complete the upload (%s: %s)",
                            p->source.name, code, message);
    }
    free(answer);
    free(text);
    return status;
}

/* ---- the whole ---- */

static enum stele_status read_words(struct words *w, int argc, char **argv, struct stele_error *err)
{
    const struct program_option options[] = {
        {"part", 0, TAKES_SIZE, TO_NUMBER(w->part), 5 << 20, 1 << 30},
        {"connections", 0, TAKES_COUNT, TO_NUMBER(w->connections), 1, 64},
        {"timeout", 0, TAKES_COUNT, TO_NUMBER(w->timeout), 1, 3600},
        {0},
    };
    enum stele_status status = options_read(options, "push", usage, argc, argv, err);
    if (status != STELE_OK)
        return status;
    if (optind + 2 != argc || strncmp(argv[optind + 1], "s3://", 5))
        return stele_fail(err, STELE_USAGE, "an IMAGE and s3://BUCKET/KEY are needed; `stele help push` says more");
    w->image = argv[optind];
    w->target = argv[optind + 1];
    return STELE_OK;
}

/* The object's URL and key, and how to sign. */
static enum stele_status find_target(struct push *p)
{
    const char *slash = strrchr(p->words.image, '/'), *name = slash ? slash + 1 : p->words.image;
    size_t n = strlen(p->words.target);
    char *reference = NULL;
    bool folder = n && p->words.target[n - 1] == '/';
    if (asprintf(&reference, "%s%s", p->words.target, folder ? name : "") < 0)
        return stele_fail(p->err, STELE_SYSTEM, "no memory");
    const char *key = strchr(reference + 5, '/');
    enum stele_status status = STELE_OK;
    if (!key || strlen(key) < 8 || strcmp(key + strlen(key) - 6, ".stele"))
        status = stele_fail(p->err, STELE_USAGE, "%s: the key must end in .stele, so that it can be pulled", reference);
    if (status == STELE_OK)
        status = source_open(&p->source, reference, NULL, p->err);
    if (status == STELE_OK) {
        p->key = strdup(key + 1);
        char *name_escaped = source_escape(p->source.image), *key_escaped = source_escape(key + 1);
        if (!p->key || !name_escaped || !key_escaped || asprintf(&p->key_url, "%s%s", p->source.base, name_escaped) < 0)
            p->key_url = NULL;
        else
            p->bucket_bytes = strlen(p->key_url) - strlen(key_escaped);
        free(name_escaped);
        free(key_escaped);
        status = p->key_url ? STELE_OK : stele_fail(p->err, STELE_SYSTEM, "no memory");
    }
    free(reference);
    return status;
}

static enum stele_status upload(struct push *p)
{
    while ((p->length + p->words.part - 1) / p->words.part > PARTS_MAX)
        p->words.part *= 2;
    p->count = (size_t)((p->length + p->words.part - 1) / p->words.part);
    p->parts = calloc(p->count, sizeof *p->parts);
    if (!p->parts)
        return stele_fail(p->err, STELE_SYSTEM, "no memory for %zu parts", p->count);
    enum stele_status status = find_upload(p);
    if (status == STELE_OK && p->upload[0]) {
        fprintf(stderr, "stele push: going on with an upload that was begun\n");
        status = find_parts(p);
    } else if (status == STELE_OK)
        status = begin_upload(p);
    if (status == STELE_OK)
        status = send_parts(p);
    return status == STELE_OK ? complete(p) : status;
}

static void on_sigbus(int number)
{
    static const char text[] = "stele push: the image was cut short or cannot be read\n";
    (void)number;
    ssize_t ignored = write(STDERR_FILENO, text, sizeof text - 1);
    (void)ignored;
    _exit(STELE_DAMAGED);
}

int push(int argc, char **argv)
{
    struct stele_error err = {0};
    struct push p = {.err = &err, .words = {.part = 16 << 20, .connections = 8, .timeout = 30}};
    struct image *image = NULL;
    signal(SIGBUS, on_sigbus);
    signal(SIGPIPE, SIG_IGN);
    enum stele_status status = read_words(&p.words, argc, argv, &err);
    struct http_options options = {.connections = (unsigned)p.words.connections,
                                   .timeout_s = (unsigned)p.words.timeout,
                                   .authorities = source_authorities("s3://")};
    if (status == STELE_OK)
        status = image_open(&image, p.words.image, &err);
    if (status == STELE_OK)
        status = image_verify(image, &(struct image_watch){0}, &err);
    if (status == STELE_OK)
        status = http_open(&p.http, &options, &err);
    if (status == STELE_OK)
        status = find_target(&p);
    if (status == STELE_OK) {
        p.bytes = image->bytes;
        p.length = image->length;
        status = upload(&p);
    }
    if (status == STELE_OK)
        status = image_unchanged(image, &err);
    if (status != STELE_OK)
        fprintf(stderr, "stele push: %s\n", err.text);
    http_close(p.http);
    source_close(&p.source);
    image_close(image);
    free(p.key_url);
    free(p.key);
    free(p.parts);
    return (int)status;
}
