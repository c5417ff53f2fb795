/* SPDX-License-Identifier: Apache-2.0 */
/* A reference to a model somewhere else, and what it stands for: files at URLs, how to ask for them, and what their
 * source states about them.
 *
 *     hf:ORG/NAME[@REVISION]   a hub (hub.c)
 *     s3://BUCKET/PREFIX       an object store (s3.c)
 *     https://HOST/...         a folder, or a single .safetensors with its config.json beside it
 *
 * At both of the latter, a name that ends in .stele or .stele.zst is a finished image. */
#ifndef CONVERT_PULL_SOURCE_H
#define CONVERT_PULL_SOURCE_H

#include "http.h"

struct listed {
    char *name;
    uint64_t length;
    char sha256[65]; /* empty: none is stated */
    char blob[41];   /* likewise, git's name of the contents: SHA-1 over "blob", the length and the bytes */
};

struct source {
    char *name;     /* the reference without secrets, for sentences, provenance and the store */
    char *revision; /* of a hub: the commit that it stood for when it was asked; else NULL */
    char *base;     /* URL of the folder, with a slash at its end */
    char *query;    /* behind each URL; NULL: nothing */
    char *single;   /* name of the only file of weights; NULL: as a checkpoint has them */
    char *image;    /* name of a finished image, plain or packed; NULL: it is a checkpoint */
    char *snapshot; /* a local folder that holds the checkpoint; NULL: none */
    struct http_login login;
    struct listed *files; /* all there are, where the source lists them */
    size_t file_count;
    bool lists;
    bool checksums; /* an object's head may state its SHA-256 (s3.c) */
};

/* Asks what a reference stands for. `http` may be NULL where nothing may be asked (offline): then only what the hub's
 * local cache has is found, and of an object store only the address. */
enum stele_status source_open(struct source *out, const char *reference, struct http *http, struct stele_error *err);
void source_close(struct source *source);

/* Certificates that a reference's kind is to be trusted by, from the environment; NULL: the system's. */
const char *source_authorities(const char *reference);

/* The file of that name; remote_free gives it back. False: the source lists its files and not this one (or no memory).
 */
bool source_file(const struct source *source, const char *name, struct remote *out);

/* Whether a listed path is one of the templates beside chat_template.jinja: SOURCE_TEMPLATES/NAME.jinja. */
#define SOURCE_TEMPLATES "additional_chat_templates"
bool source_is_template(const char *path);

/* Each kind's part of source_open. */
enum stele_status hub_open(struct source *out, const char *reference, struct http *http, struct stele_error *err);
enum stele_status s3_open(struct source *out, const char *reference, struct http *http, struct stele_error *err);

/* HF_HUB_OFFLINE. */
bool hub_offline(void);

/* Whether n bytes of a path end as the name of an image does. */
bool source_names_image(const char *path, size_t n);

/* A part of a URL's path, escaped but for slashes. malloc'ed. */
char *source_escape(const char *text);

#endif
