/* SPDX-License-Identifier: Apache-2.0 */
#include "http.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

enum { TRIES = 6, TRIES_OF_CONNECTING = 3, BUFFER_BYTES = 512 << 10 };
static const double PAUSE_S = 0.25,
                    PAUSE_MOST_S = 30; /* the first pause, doubled each time; what a server may ask for */

struct http {
    struct http_options options;
    CURLM *multi;
    struct transfer *waiting; /* for their next try */
    struct transfer *ended;
    uint64_t retries;
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void remote_free(struct remote *r)
{
    free(r->name);
    free(r->url);
    free(r->location);
    *r = (struct remote){0};
}

char *http_public_url(const char *url)
{
    CURLU *u = curl_url();
    char *text = NULL, *copy = NULL;
    if (u && !curl_url_set(u, CURLUPART_URL, url, CURLU_NON_SUPPORT_SCHEME)) {
        curl_url_set(u, CURLUPART_USER, NULL, 0);
        curl_url_set(u, CURLUPART_PASSWORD, NULL, 0);
        curl_url_set(u, CURLUPART_QUERY, NULL, 0);
        curl_url_set(u, CURLUPART_FRAGMENT, NULL, 0);
        curl_url_get(u, CURLUPART_URL, &text, 0);
    }
    copy = strdup(text ? text : "the URL");
    curl_free(text);
    curl_url_cleanup(u);
    return copy;
}

/* Whether two URLs have scheme, host and port in common. */
static bool same_origin(const char *a, const char *b)
{
    static const CURLUPart parts[] = {CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT};
    CURLU *x = curl_url(), *y = curl_url();
    bool same = x && y && !curl_url_set(x, CURLUPART_URL, a, 0) && !curl_url_set(y, CURLUPART_URL, b, 0);
    for (size_t i = 0; same && i < sizeof parts / sizeof *parts; i++) {
        char *p = NULL, *q = NULL;
        same = !curl_url_get(x, parts[i], &p, CURLU_DEFAULT_PORT) &&
               !curl_url_get(y, parts[i], &q, CURLU_DEFAULT_PORT) && !strcasecmp(p, q);
        curl_free(p);
        curl_free(q);
    }
    curl_url_cleanup(x);
    curl_url_cleanup(y);
    return same;
}

/* ---- an answer ---- */

/* The value of a header line if it is that of `name`, without blanks around it, cut to fit. */
static bool header_value(char *out, size_t room, const char *line, size_t n, const char *name)
{
    size_t length = strlen(name);
    if (n <= length || line[length] != ':' || strncasecmp(line, name, length))
        return false;
    line += length + 1;
    n -= length + 1;
    for (; n && isspace((unsigned char)*line); n--)
        line++;
    while (n && isspace((unsigned char)line[n - 1]))
        n--;
    snprintf(out, room, "%.*s", (int)n, line);
    return true;
}

static size_t on_header(char *line, size_t one, size_t n, void *context)
{
    struct transfer *t = context;
    char value[HTTP_TAG_MAX];
    (void)one;
    if (n > 5 && !strncmp(line, "HTTP/", 5)) { /* the next answer: a redirect was followed */
        t->tag[0] = t->modified[0] = t->said[0] = '\0';
        t->has_range = false;
        t->retry_after = 0;
        return n;
    }
    if (header_value(value, sizeof value, line, n, "ETag") && strncmp(value, "W/", 2))
        memcpy(t->tag, value, sizeof t->tag);
    header_value(t->modified, sizeof t->modified, line, n, "Last-Modified");
    header_value(t->said, sizeof t->said, line, n, "X-Error-Message");
    header_value(t->checksum, sizeof t->checksum, line, n, "X-Amz-Checksum-Sha256");
    if (header_value(value, sizeof value, line, n, "Retry-After"))
        t->retry_after = strtod(value, NULL);
    if (header_value(value, sizeof value, line, n, "Content-Range"))
        t->has_range = sscanf(value, "bytes %" SCNu64 "-%*u/%" SCNu64, &t->range_from, &t->range_total) == 2;
    return n;
}

static bool stop(struct transfer *t, enum stele_status status, const char *what)
{
    char *url = http_public_url(t->remote->url);
    t->status = stele_fail(&t->err, status, "%s: %s", url ? url : t->remote->name, what);
    free(url);
    return false;
}

/* The file's tag and length, learned from the first answer and compared with every other. */
static bool check_file(struct transfer *t, uint64_t total)
{
    struct remote *r = t->remote;
    const char *tag = t->tag[0] ? t->tag : t->modified;
    if (r->length == UINT64_MAX)
        r->length = total;
    if (!r->tag[0])
        snprintf(r->tag, sizeof r->tag, "%s", tag);
    r->known = true;
    bool other = !r->sha256[0] && tag[0] && strcmp(r->tag, tag); /* where there is a digest, that decides */
    if (other || (total != UINT64_MAX && total != r->length)) {
        r->changed = true;
        return stop(t, STELE_DAMAGED, "the file was changed while it was fetched");
    }
    if (t->length != HTTP_REST && r->length != UINT64_MAX && t->length > r->length - t->from)
        t->length = t->from < r->length ? r->length - t->from : 0;
    return true;
}

/* The head of an answer, before its first byte is taken. False: the try ends here. */
static bool check_answer(struct transfer *t)
{
    struct remote *r = t->remote;
    curl_off_t length = -1;
    char *url = NULL;
    t->answered = true;
    curl_easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &t->code);
    curl_easy_getinfo(t->easy, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    curl_easy_getinfo(t->easy, CURLINFO_EFFECTIVE_URL, &url);
    if (t->method ? t->code < 200 || t->code > 299 : t->code != 200 && t->code != 206) {
        t->refused = true;
        return true;
    }
    if (t->method)
        return true;
    if (!t->direct && url && !r->location && !same_origin(url, r->url))
        r->location = strdup(url);
    if (t->code == 206)
        return t->ranged && t->has_range && t->range_from == t->from + t->received
                   ? check_file(t, t->range_total)
                   : stop(t, STELE_UNREACHABLE, "the server answers another range than the one asked for");
    if (t->ranged && r->known && t->from + t->received)
        return false; /* it served ranges before: tried again */
    r->rangeless = r->rangeless || !r->known;
    t->discard = t->from + t->received;
    return check_file(t, length < 0 ? UINT64_MAX : (uint64_t)length);
}

static size_t on_body(char *data, size_t one, size_t n, void *context)
{
    struct transfer *t = context;
    const size_t whole = n;
    (void)one;
    if (!t->answered && !check_answer(t))
        return 0;
    if (t->refused) {
        size_t room = sizeof t->body - 1 - t->body_bytes, take = n < room ? n : room;
        memcpy(t->body + t->body_bytes, data, take);
        t->body_bytes += take;
        return whole;
    }
    size_t skip = t->discard < n ? (size_t)t->discard : n;
    uint64_t wanted = t->length == HTTP_REST ? UINT64_MAX : t->length - t->received;
    n = n - skip < wanted ? n - skip : (size_t)wanted;
    if (n && !t->take(t, (const uint8_t *)data + skip, n)) {
        t->paused = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    if (t->status != STELE_OK)
        return 0;
    t->discard -= skip;
    t->received += n;
    t->complete = t->length != HTTP_REST && t->received == t->length;
    return t->complete && n + skip < whole ? 0 : whole; /* more than was asked for: the rest is not read */
}

/* ---- a try ---- */

static void set_url(struct http *h, struct transfer *t)
{
    struct remote *r = t->remote;
    const struct http_login *login = r->login;
    t->direct = r->location != NULL;
    curl_easy_setopt(t->easy, CURLOPT_URL, t->direct ? r->location : r->url);
    curl_slist_free_all(t->headers);
    t->headers = NULL;
    if (login && !t->direct && login->header)
        t->headers = curl_slist_append(t->headers, login->header);
    if (login && !t->direct && login->keys) {
        curl_easy_setopt(t->easy, CURLOPT_AWS_SIGV4, login->provider);
        curl_easy_setopt(t->easy, CURLOPT_USERPWD, login->keys);
        t->headers = curl_slist_append(t->headers, "x-amz-content-sha256: UNSIGNED-PAYLOAD");
        if (t->method && !strcmp(t->method, "HEAD"))
            t->headers = curl_slist_append(t->headers, "x-amz-checksum-mode: ENABLED");
        if (login->session)
            t->headers = curl_slist_append(t->headers, login->session);
    }
    curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, t->headers);
    curl_easy_setopt(t->easy, CURLOPT_REDIR_PROTOCOLS_STR, strncasecmp(r->url, "https:", 6) ? "http,https" : "https");
    if (h->options.authorities)
        curl_easy_setopt(t->easy, CURLOPT_CAINFO, h->options.authorities);
}

static void set_range(struct transfer *t)
{
    char range[64];
    uint64_t from = t->from + t->received;
    t->ranged = !t->remote->rangeless;
    if (t->length == HTTP_REST)
        snprintf(range, sizeof range, "%" PRIu64 "-", from);
    else
        snprintf(range, sizeof range, "%" PRIu64 "-%" PRIu64, from, t->from + t->length - 1);
    curl_easy_setopt(t->easy, CURLOPT_RANGE, t->ranged ? range : NULL);
}

static size_t on_send(char *out, size_t one, size_t room, void *context)
{
    struct transfer *t = context;
    (void)one;
    size_t n = t->send_bytes - t->sent < room ? (size_t)(t->send_bytes - t->sent) : room;
    memcpy(out, t->send + t->sent, n);
    t->sent += n;
    return n;
}

static int on_seek(void *context, curl_off_t offset, int origin)
{
    struct transfer *t = context;
    if (origin != SEEK_SET || offset < 0 || (uint64_t)offset > t->send_bytes)
        return CURL_SEEKFUNC_FAIL;
    t->sent = (uint64_t)offset;
    return CURL_SEEKFUNC_OK;
}

/* What is sent goes out from the beginning at each try, and nothing of an earlier answer stays. */
static void set_sending(struct transfer *t)
{
    t->sent = t->received = 0;
    curl_easy_setopt(t->easy, CURLOPT_FOLLOWLOCATION, 0L);
    if (!strcmp(t->method, "HEAD")) {
        curl_easy_setopt(t->easy, CURLOPT_NOBODY, 1L);
        return;
    }
    if (!strcmp(t->method, "POST")) {
        curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, t->send ? (const char *)t->send : "");
        curl_easy_setopt(t->easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)t->send_bytes);
        return;
    }
    curl_easy_setopt(t->easy, CURLOPT_UPLOAD, 1L);
    curl_easy_setopt(t->easy, CURLOPT_READFUNCTION, on_send);
    curl_easy_setopt(t->easy, CURLOPT_READDATA, t);
    curl_easy_setopt(t->easy, CURLOPT_SEEKFUNCTION, on_seek);
    curl_easy_setopt(t->easy, CURLOPT_SEEKDATA, t);
    curl_easy_setopt(t->easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)t->send_bytes);
}

static void try(struct http *h, struct transfer *t)
{
    t->answered = t->refused = t->paused = false;
    t->code = 0;
    t->discard = t->body_bytes = 0;
    t->due = 0;
    t->before = t->received;
    t->curl_text[0] = '\0';
    if (t->easy)
        curl_easy_reset(t->easy);
    else
        t->easy = curl_easy_init();
    CURL *e = t->easy;
    curl_easy_setopt(e, CURLOPT_PRIVATE, t);
    curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(e, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(e, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(e, CURLOPT_ERRORBUFFER, t->curl_text);
    curl_easy_setopt(e, CURLOPT_USERAGENT, "stele/" STELE_VERSION);
    curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(e, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(e, CURLOPT_MAXREDIRS, 8L);
    curl_easy_setopt(e, CURLOPT_BUFFERSIZE, (long)BUFFER_BYTES);
    curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT, (long)h->options.timeout_s);
    curl_easy_setopt(e, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(e, CURLOPT_LOW_SPEED_TIME, (long)h->options.timeout_s);
    set_url(h, t);
    if (t->method)
        set_sending(t);
    else
        set_range(t);
    curl_multi_add_handle(h->multi, e);
}

static bool never_connected(CURLcode result)
{
    return result == CURLE_COULDNT_RESOLVE_HOST || result == CURLE_COULDNT_RESOLVE_PROXY ||
           result == CURLE_COULDNT_CONNECT;
}

static bool worth_another_try(const struct transfer *t, CURLcode result)
{
    if (t->answered && t->refused)
        return t->code == 408 || t->code == 429 || t->code >= 500;
    switch (result) {
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
    case CURLE_TOO_MANY_REDIRECTS:
    case CURLE_OUT_OF_MEMORY:
        return false;
    default:
        return true;
    }
}

void http_element(char *out, size_t room, const char *body, const char *name)
{
    char tag[32];
    snprintf(tag, sizeof tag, "<%s>", name);
    const char *at = strstr(body, tag);
    out[0] = '\0';
    if (at)
        snprintf(out, room, "%.*s", (int)strcspn(at + strlen(tag), "<"), at + strlen(tag));
}

static void explain(struct transfer *t, CURLcode result)
{
    char what[900], code[80], message[300];
    const char *hint = t->remote->login ? t->remote->login->hint : NULL;
    if (t->answered && t->refused) {
        t->body[t->body_bytes] = '\0';
        http_element(code, sizeof code, t->body, "Code");
        http_element(message, sizeof message, t->body, "Message");
        bool words = code[0] || t->said[0];
        snprintf(what, sizeof what, "the server refuses with status %ld%s%s%s%s%s%s%s", t->code, words ? " (" : "",
                 code, code[0] && message[0] ? ": " : "", message, t->said, words ? ")" : "",
                 t->code == 401 || t->code == 403 ? hint ? hint : "" : "");
    } else if (t->answered && result == CURLE_WRITE_ERROR)
        snprintf(what, sizeof what, "the server has stopped to serve ranges");
    else if (result == CURLE_OK)
        snprintf(what, sizeof what, "the answer is cut short after %" PRIu64 " bytes, at each try",
                 t->from + t->received);
    else
        snprintf(what, sizeof what, "%s", t->curl_text[0] ? t->curl_text : curl_easy_strerror(result));
    stop(t, result == CURLE_OUT_OF_MEMORY ? STELE_SYSTEM : STELE_UNREACHABLE, what);
}

static void end(struct http *h, struct transfer *t)
{
    t->next = h->ended;
    h->ended = t;
}

static void pause_and_retry(struct http *h, struct transfer *t)
{
    double pause = PAUSE_S * (double)(1u << t->tries) * (0.75 + 0.5 * (double)(random() % 1024) / 1024);
    pause = t->retry_after > pause ? t->retry_after : pause;
    t->due = now() + (pause < PAUSE_MOST_S ? pause : PAUSE_MOST_S);
    t->tries++;
    h->retries++;
    t->next = h->waiting;
    h->waiting = t;
}

/* A try has ended: so has the transfer, or there will be another. */
static void settle(struct http *h, struct transfer *t, CURLcode result)
{
    curl_multi_remove_handle(h->multi, t->easy);
    if (!t->answered && result == CURLE_OK)
        check_answer(t); /* without a body */
    bool taken = result == CURLE_OK && !t->refused,
         to_the_end = t->remote->length == UINT64_MAX || t->method || t->from + t->received == t->remote->length;
    bool whole =
        t->complete || (t->length == t->received && !t->refused) || (t->length == HTTP_REST && taken && to_the_end);
    if (t->status == STELE_OK && !whole) {
        if (t->refused && t->direct && t->code < 500) { /* a signed address that is no longer good: ask for another */
            free(t->remote->location);
            t->remote->location = NULL;
        } else if (!worth_another_try(t, result)) {
            explain(t, result);
            end(h, t);
            return;
        }
        t->tries = t->received > t->before ? 0 : t->tries;
        if (t->tries + 1 < (never_connected(result) ? TRIES_OF_CONNECTING : TRIES)) {
            pause_and_retry(h, t);
            return;
        }
        explain(t, result);
    }
    end(h, t);
}

/* ---- running ---- */

enum stele_status http_open(struct http **out, const struct http_options *options, struct stele_error *err)
{
    struct http *h = *out = calloc(1, sizeof *h);
    if (h && !curl_global_init(CURL_GLOBAL_DEFAULT))
        h->multi = curl_multi_init();
    if (!h || !h->multi) {
        free(h);
        *out = NULL;
        return stele_fail(err, STELE_SYSTEM, "cannot start libcurl");
    }
    h->options = *options;
    curl_multi_setopt(h->multi, CURLMOPT_MAXCONNECTS, (long)options->connections + 4);
    curl_multi_setopt(h->multi, CURLMOPT_PIPELINING, (long)CURLPIPE_NOTHING); /* a range, a connection; HTTP/2 too */
    return STELE_OK;
}

void http_close(struct http *h)
{
    if (!h)
        return;
    curl_multi_cleanup(h->multi);
    free(h);
}

void http_start(struct http *h, struct transfer *t)
{
    t->status = STELE_OK;
    t->received = 0;
    t->tries = 0;
    t->complete = false;
    if (t->length)
        try(h, t);
    else
        end(h, t);
}

/* Starts the tries that are due; the milliseconds until the next is, at most `ms`. */
static int start_due(struct http *h, int ms)
{
    double at = now();
    for (struct transfer **link = &h->waiting, *t; (t = *link);)
        if (t->due <= at) {
            *link = t->next;
            try(h, t);
        } else {
            int left = (int)((t->due - at) * 1000) + 1;
            ms = left < ms ? left : ms;
            link = &t->next;
        }
    return ms;
}

enum stele_status http_wait(struct http *h, int ms, struct stele_error *err)
{
    int running, left;
    ms = start_due(h, ms);
    CURLMcode code = curl_multi_perform(h->multi, &running);
    bool some = h->ended != NULL;
    for (CURLMsg *m; (m = curl_multi_info_read(h->multi, &left));) {
        struct transfer *t;
        curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &t);
        settle(h, t, m->data.result);
        some = true;
    }
    if (!code && !some)
        code = curl_multi_poll(h->multi, NULL, 0, ms, NULL);
    return code ? stele_fail(err, STELE_SYSTEM, "libcurl: %s", curl_multi_strerror(code)) : STELE_OK;
}

struct transfer *http_ended(struct http *h)
{
    struct transfer *t = h->ended;
    if (t)
        h->ended = t->next;
    return t;
}

void http_resume(struct transfer *t)
{
    if (!t->paused)
        return;
    t->paused = false;
    curl_easy_pause(t->easy, CURLPAUSE_CONT);
}

static void unlink_from(struct transfer **link, const struct transfer *t)
{
    for (; *link; link = &(*link)->next)
        if (*link == t) {
            *link = t->next;
            return;
        }
}

void http_forget(struct http *h, struct transfer *t)
{
    unlink_from(&h->waiting, t);
    unlink_from(&h->ended, t);
    if (t->easy) {
        curl_multi_remove_handle(h->multi, t->easy); /* nothing where it has ended */
        curl_easy_cleanup(t->easy);
        t->easy = NULL;
    }
    curl_slist_free_all(t->headers);
    t->headers = NULL;
}

void http_wake(struct http *h)
{
    curl_multi_wakeup(h->multi);
}

uint64_t http_retries(const struct http *h)
{
    return h->retries;
}

/* Runs n transfers to their ends, at most `connections` at once. */
static enum stele_status run_all(struct http *h, struct transfer *transfers, size_t n, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    size_t started = 0, done = 0;
    while (done < n && status == STELE_OK) {
        for (; started < n && started - done < h->options.connections; started++)
            http_start(h, &transfers[started]);
        status = http_wait(h, 1000, err);
        while (http_ended(h))
            done++;
    }
    return status;
}

/* ---- into memory ---- */

struct buffer {
    struct fetch *fetch;
    size_t room;
    uint64_t refuse;
};

static bool take_into_buffer(struct transfer *t, const uint8_t *bytes, size_t n)
{
    struct buffer *b = t->context;
    struct fetch *f = b->fetch;
    f->length = t->received ? f->length : 0;
    if (n > b->refuse - f->length)
        return !stop(t, STELE_INPUT, "the file is larger than any of its kind should be");
    if (f->length + n + 1 > b->room) {
        size_t room = f->length + n + 1 + b->room;
        uint8_t *more = realloc(f->bytes, room);
        if (!more)
            return !stop(t, STELE_SYSTEM, "no memory for it");
        f->bytes = more;
        b->room = room;
    }
    memcpy(f->bytes + f->length, bytes, n);
    f->length += n;
    f->bytes[f->length] = '\0';
    return true;
}

/* What a transfer's end means for its fetch. */
static enum stele_status end_fetch(const struct transfer *t, struct fetch *f, struct stele_error *err)
{
    memcpy(f->tag, t->tag, sizeof f->tag);
    memcpy(f->checksum, t->checksum, sizeof f->checksum);
    bool empty = t->code == 416 && !f->from, absent = t->code == 404 || t->code == 410;
    if (t->status == STELE_OK || empty) {
        f->bytes = f->bytes ? f->bytes : calloc(1, 1);
        return f->bytes ? STELE_OK : stele_fail(err, STELE_SYSTEM, "%s: no memory for it", f->remote->name);
    }
    free(f->bytes);
    f->bytes = NULL;
    f->length = 0;
    if (absent && f->optional)
        return STELE_OK;
    *err = t->err;
    return t->status;
}

enum stele_status http_fetch(struct http *h, struct fetch *fetches, size_t n, uint64_t refuse, struct stele_error *err)
{
    struct transfer *transfers = calloc(n + 1, sizeof *transfers);
    struct buffer *buffers = calloc(n + 1, sizeof *buffers);
    enum stele_status status = STELE_OK;
    if (!transfers || !buffers)
        status = stele_fail(err, STELE_SYSTEM, "no memory to fetch files");
    for (size_t i = 0; status == STELE_OK && i < n; i++) {
        fetches[i].bytes = NULL;
        fetches[i].length = 0;
        buffers[i] = (struct buffer){.fetch = &fetches[i], .refuse = refuse};
        transfers[i] = (struct transfer){.remote = fetches[i].remote,
                                         .from = fetches[i].from,
                                         .length = fetches[i].most,
                                         .method = fetches[i].method,
                                         .send = fetches[i].send,
                                         .send_bytes = fetches[i].send_bytes,
                                         .take = take_into_buffer,
                                         .context = &buffers[i]};
    }
    if (status == STELE_OK)
        status = run_all(h, transfers, n, err);
    for (size_t i = 0; transfers && i < n; i++) {
        http_forget(h, &transfers[i]);
        struct stele_error own;
        enum stele_status one = end_fetch(&transfers[i], &fetches[i], &own);
        if (status == STELE_OK && one != STELE_OK) {
            status = one;
            *err = own;
        }
    }
    for (size_t i = 0; status != STELE_OK && i < n; i++) {
        free(fetches[i].bytes);
        fetches[i].bytes = NULL;
    }
    free(transfers);
    free(buffers);
    return status;
}
