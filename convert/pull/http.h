/* SPDX-License-Identifier: Apache-2.0 */
/* Ranges of files from web servers, and parts of files to them, by libcurl: many at once on one multi handle, each
 * tried again where it makes sense.
 *
 * What is tried again, with growing pauses (or the server's Retry-After): no connection, resets, silence, answers cut
 * short, 408, 429, 5xx. A try goes on behind the bytes that came. What is not: other refusals, which become one
 * sentence.
 *
 * A redirect is followed; where it leads to another host, credentials stay behind, and later requests for the file go
 * there directly until it refuses. From https no redirect leads to http.
 *
 * One thread at a time uses a `struct http`; http_wake alone may be called by any. */
#ifndef CONVERT_PULL_HTTP_H
#define CONVERT_PULL_HTTP_H

#include <curl/curl.h>

#include "error.h"
#include "types.h"

enum { HTTP_TAG_MAX = 160 };
#define HTTP_REST UINT64_MAX /* as a length: up to the end */

/* How requests are signed. Secrets, so that it goes into no sentence. */
struct http_login {
    char *header;          /* a whole line, "Authorization: Bearer ..."; NULL: none */
    char *keys, *provider; /* AWS signatures: "key:secret", "aws:amz:region:s3"; NULL: none */
    char *session;         /* "X-Amz-Security-Token: ..."; NULL: none */
    const char *hint;      /* what to do where it does not suffice */
};

/* A file at a server. */
struct remote {
    char *name; /* for sentences */
    char *url;
    char *location; /* where redirects led on another host; NULL: nowhere */
    const struct http_login *login;
    uint64_t length;        /* UINT64_MAX until an answer has said it */
    bool known;             /* an answer has said what follows, and `length` */
    bool changed;           /* an answer has said something else since */
    bool rangeless;         /* ranges are not served: everything in one answer */
    char tag[HTTP_TAG_MAX]; /* strong ETag, else Last-Modified; empty until an answer has said it */
    char sha256[65];        /* stated by the source; else empty */
    char blob[41];          /* likewise: git's name of the contents */
};

void remote_free(struct remote *remote);

/* Scheme, host and path of a URL, without user, password and query, for sentences and provenance. malloc'ed. */
char *http_public_url(const char *url);

/* One range wanted of a file. All zero but the first lines is a good beginning; http_forget frees what it owns. */
struct transfer {
    struct remote *remote;
    uint64_t from, length; /* HTTP_REST: to the end */
    const char *method;    /* NULL: a range is fetched. "PUT", "POST": `send` goes to the URL, and the answer is taken;
                              "HEAD": only its head is */
    const uint8_t *send;
    uint64_t send_bytes;
    /* Takes n bytes, in order; true, or false for "not now": http_resume says when. */
    bool (*take)(struct transfer *transfer, const uint8_t *bytes, size_t n);
    void *context;

    /* once it has ended */
    enum stele_status status;
    struct stele_error err;
    long code;         /* HTTP status of the last answer, 0 without one */
    uint64_t received; /* bytes taken, of `length` */

    /* http.c's */
    CURL *easy;
    struct curl_slist *headers;
    struct transfer *next;
    uint64_t discard, sent;
    unsigned tries;
    double due; /* of the next try; 0: it runs */
    bool answered, refused, ranged, complete, paused, direct;
    uint64_t before; /* received when this try began */
    char tag[HTTP_TAG_MAX], modified[HTTP_TAG_MAX], checksum[HTTP_TAG_MAX], said[256], body[1024];
    size_t body_bytes;
    char curl_text[CURL_ERROR_SIZE];
    uint64_t range_from, range_total;
    bool has_range;
    double retry_after;
};

struct http_options {
    unsigned connections;
    unsigned timeout_s;      /* of silence, and for a connection */
    const char *authorities; /* file of certificates; NULL: the system's */
};

struct http;
enum stele_status http_open(struct http **out, const struct http_options *options, struct stele_error *err);
void http_close(struct http *http); /* no transfer may be running */

void http_start(struct http *http, struct transfer *transfer);

/* Waits until something happened, at most `ms`. */
enum stele_status http_wait(struct http *http, int ms, struct stele_error *err);

/* A transfer that has ended since, or NULL. */
struct transfer *http_ended(struct http *http);

/* Takes up a transfer that said "not now". */
void http_resume(struct transfer *transfer);

/* Gives a transfer up, if it runs, and frees what it owns. */
void http_forget(struct http *http, struct transfer *transfer);

void http_wake(struct http *http);
uint64_t http_retries(const struct http *http);

/* A whole file, or its first `most` bytes, into malloc'ed memory with a NUL behind it. */
struct fetch {
    struct remote *remote;
    uint64_t from, most; /* HTTP_REST: to the end */
    bool optional;       /* its absence is no error: `bytes` is NULL then */
    const char *method;  /* as in a transfer; `tag` is then the answer's */
    const uint8_t *send;
    uint64_t send_bytes;
    char tag[HTTP_TAG_MAX];
    char checksum[HTTP_TAG_MAX]; /* of the whole object, as an object store states it: SHA-256 in base64; else empty */
    uint8_t *bytes;
    size_t length;
};

/* Fetches all; frees what came where one fails. More than `refuse` bytes of one are STELE_INPUT. */
enum stele_status http_fetch(struct http *http, struct fetch *fetches, size_t n, uint64_t refuse,
                             struct stele_error *err);

/* The text of an XML element in `body`, as object stores answer; "" where there is none. */
void http_element(char *out, size_t room, const char *body, const char *name);

#endif
