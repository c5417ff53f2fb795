/* SPDX-License-Identifier: Apache-2.0 */
/* A hub: a revision is resolved to its commit once, and everything is asked for by that. The conventions of its own
 * client hold: HF_ENDPOINT, HF_TOKEN and the token file, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "json.h"
#include "source.h"

enum { LISTING_BYTES_MAX = 64 << 20 };

struct hub_name {
    char repository[200]; /* ORG/NAME */
    char revision[200];   /* as asked; "main" */
};

static enum stele_status read_name(struct hub_name *out, const char *reference, struct stele_error *err)
{
    const char *name = reference + 3, *at = strchr(name, '@');
    size_t n = at ? (size_t)(at - name) : strlen(name), slashes = 0;
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-/";
    for (size_t i = 0; i < n; i++)
        slashes += name[i] == '/';
    bool good = n && n < sizeof out->repository && strspn(name, allowed) >= n && slashes <= 1 && name[0] != '/' &&
                name[n - 1] != '/' && !strstr(name, "..") && (!at || (at[1] && strlen(at + 1) < sizeof out->revision));
    if (!good)
        return stele_fail(err, STELE_USAGE, "%s: a model of a hub is written hf:ORG/NAME or hf:ORG/NAME@REVISION",
                          reference);
    snprintf(out->repository, sizeof out->repository, "%.*s", (int)n, name);
    snprintf(out->revision, sizeof out->revision, "%s", at ? at + 1 : "main");
    return STELE_OK;
}

static bool is_true(const char *name)
{
    const char *value = getenv(name);
    return value &&
           (!strcmp(value, "1") || !strcasecmp(value, "on") || !strcasecmp(value, "yes") || !strcasecmp(value, "true"));
}

bool hub_offline(void)
{
    return is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE");
}

/* PATH, or below HF_HOME, which without being set is below the user's cache. */
static char *home_path(const char *variable, const char *name)
{
    const char *set = variable ? getenv(variable) : NULL, *home = getenv("HF_HOME"), *cache = getenv("XDG_CACHE_HOME");
    char *path = NULL;
    int n;
    if (set && *set)
        return strdup(set);
    if (home && *home)
        n = asprintf(&path, "%s/%s", home, name);
    else if (cache && *cache)
        n = asprintf(&path, "%s/huggingface/%s", cache, name);
    else
        n = asprintf(&path, "%s/.cache/huggingface/%s", getenv("HOME") ? getenv("HOME") : "", name);
    return n < 0 ? NULL : path;
}

/* The first line of a small file without blanks around it, "" where there is none. */
static void read_line(char *out, size_t room, const char *path)
{
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
    ssize_t n = fd < 0 ? 0 : read(fd, out, room - 1);
    if (fd >= 0)
        close(fd);
    out[n > 0 ? n : 0] = '\0';
    out[strcspn(out, " \t\r\n")] = '\0';
}

/* HF_TOKEN, else the token file; never shown. */
static enum stele_status read_login(struct source *s, struct stele_error *err)
{
    char token[4096] = "", *path = home_path("HF_TOKEN_PATH", "token");
    const char *set = getenv("HF_TOKEN");
    if (set && *set)
        snprintf(token, sizeof token, "%s", set);
    else
        read_line(token, sizeof token, path);
    free(path);
    token[strcspn(token, " \t\r\n")] = '\0';
    for (const char *c = token; *c; c++)
        if (*c < 0x21 || *c > 0x7e)
            return stele_fail(err, STELE_USAGE, "the hub's token holds a byte that no token has");
    s->login.hint = token[0]
                        ? "; the token of HF_TOKEN, or of HF_HOME's token file, may not read this model"
                        : "; if the model is there, it needs a token: HF_TOKEN, or HF_HOME's token file, can name one";
    if (token[0] && asprintf(&s->login.header, "Authorization: Bearer %s", token) < 0)
        s->login.header = NULL;
    return token[0] && !s->login.header ? stele_fail(err, STELE_SYSTEM, "no memory") : STELE_OK;
}

/* ---- the hub's local cache ---- */

static char *cache_folder(const struct hub_name *name)
{
    const char *variable = getenv("HF_HUB_CACHE") ? "HF_HUB_CACHE" : "HUGGINGFACE_HUB_CACHE",
               *slash = strchr(name->repository, '/');
    char *hub = home_path(variable, "hub"), *path = NULL;
    int n = !hub    ? -1
            : slash ? asprintf(&path, "%s/models--%.*s--%s", hub, (int)(slash - name->repository), name->repository,
                               slash + 1)
                    : asprintf(&path, "%s/models--%s", hub, name->repository);
    free(hub);
    return n < 0 ? NULL : path;
}

static bool in_folder(const char *folder, const char *name)
{
    char *path;
    if (asprintf(&path, "%s/%s", folder, name) < 0)
        return false;
    bool there = !access(path, R_OK);
    free(path);
    return there;
}

/* Whether a snapshot has all files of weights. */
static bool has_weights(const char *folder)
{
    char *path;
    struct stele_error ignored;
    json_t *index = NULL, *file;
    const char *tensor;
    if (in_folder(folder, "model.safetensors"))
        return true;
    if (asprintf(&path, "%s/model.safetensors.index.json", folder) < 0)
        return false;
    bool all = json_read_file(&index, path, &ignored) == STELE_OK;
    free(path);
    json_t *map = json_object_get(index, "weight_map");
    all = all && json_object_size(map) > 0;
    json_object_foreach(map, tensor, file) all =
        all && json_is_string(file) && in_folder(folder, json_string_value(file));
    json_decref(index);
    return all;
}

static bool wanted_small(const char *name)
{
    static const char *const names[] = {"config.json", "generation_config.json", "tokenizer.json",
                                        "tokenizer_config.json", "chat_template.jinja"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(name, names[i]))
            return true;
    return false;
}

/* The snapshot of the commit, if it has whatever a conversion needs. */
static void find_snapshot(struct source *s, const struct hub_name *name)
{
    char *folder = cache_folder(name), *path = NULL;
    if (folder && asprintf(&path, "%s/snapshots/%s", folder, s->revision) < 0)
        path = NULL;
    bool whole = path && in_folder(path, "config.json") && has_weights(path);
    for (size_t i = 0; whole && i < s->file_count; i++)
        whole = !(wanted_small(s->files[i].name) || source_is_template(s->files[i].name)) ||
                in_folder(path, s->files[i].name);
    if (whole)
        s->snapshot = path;
    else
        free(path);
    free(folder);
}

static bool is_commit(const char *text)
{
    return strlen(text) == 40 && strspn(text, "0123456789abcdef") == 40;
}

static enum stele_status open_offline(struct source *s, const struct hub_name *name, struct stele_error *err)
{
    char *folder = cache_folder(name), *path = NULL, commit[64] = "";
    if (folder && asprintf(&path, "%s/refs/%s", folder, name->revision) >= 0)
        read_line(commit, sizeof commit, strstr(name->revision, "..") ? NULL : path);
    free(path);
    free(folder);
    if (!commit[0] && is_commit(name->revision))
        snprintf(commit, sizeof commit, "%s", name->revision);
    if (is_commit(commit) && (s->revision = strdup(commit)))
        find_snapshot(s, name);
    if (s->snapshot)
        return STELE_OK;
    return stele_fail(err, STELE_UNREACHABLE,
                      "%s: HF_HUB_OFFLINE is set, and the hub's local cache does not have it whole", s->name);
}

/* ---- the hub itself ---- */

static enum stele_status read_listing(struct source *s, const json_t *root, struct stele_error *err)
{
    const char *commit = json_string_value(json_object_get(root, "sha"));
    const json_t *siblings = json_object_get(root, "siblings");
    if (!commit || !is_commit(commit) || !json_is_array(siblings))
        return stele_fail(err, STELE_INPUT, "%s: the hub's answer names no commit or no files", s->name);
    s->revision = strdup(commit);
    s->files = calloc(json_array_size(siblings) + 1, sizeof *s->files);
    s->lists = true;
    if (!s->revision || !s->files)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for its list of files", s->name);
    for (size_t i = 0; i < json_array_size(siblings); i++) {
        const json_t *file = json_array_get(siblings, i), *lfs = json_object_get(file, "lfs");
        const char *path = json_string_value(json_object_get(file, "rfilename"));
        const char *sha256 = json_string_value(json_object_get(lfs, "sha256"));
        const char *blob = lfs ? NULL : json_string_value(json_object_get(file, "blobId"));
        struct listed *listed = &s->files[s->file_count];
        if (!path || (strchr(path, '/') &&
                      !source_is_template(path))) /* nothing else that a conversion reads lies in a folder */
            continue;
        listed->length = UINT64_MAX;
        json_whole(json_object_get(lfs ? lfs : file, "size"), (uint64_t)1 << 53, &listed->length);
        if (sha256 && strlen(sha256) == 64 && strspn(sha256, "0123456789abcdef") == 64)
            memcpy(listed->sha256, sha256, 65);
        if (blob && is_commit(blob))
            memcpy(listed->blob, blob, 41);
        listed->name = strdup(path);
        if (!listed->name)
            return stele_fail(err, STELE_SYSTEM, "%s: no memory for its list of files", s->name);
        s->file_count++;
    }
    return STELE_OK;
}

static enum stele_status ask(struct source *s, const struct hub_name *name, const char *endpoint, struct http *http,
                             struct stele_error *err)
{
    char *revision = curl_easy_escape(NULL, name->revision, 0), *url = NULL;
    if (!revision ||
        asprintf(&url, "%s/api/models/%s/revision/%s?blobs=true", endpoint, name->repository, revision) < 0)
        url = NULL;
    curl_free(revision);
    struct remote remote = {.name = s->name, .url = url, .login = &s->login, .length = UINT64_MAX};
    struct fetch fetch = {.remote = &remote, .most = HTTP_REST};
    json_t *root = NULL;
    enum stele_status status = url ? http_fetch(http, &fetch, 1, LISTING_BYTES_MAX, err)
                                   : stele_fail(err, STELE_SYSTEM, "%s: no memory", s->name);
    if (status == STELE_OK)
        status = json_read_bytes(&root, (const char *)fetch.bytes, fetch.length, "the hub's answer", err);
    if (status == STELE_OK)
        status = read_listing(s, root, err);
    json_decref(root);
    free(fetch.bytes);
    free(url);
    free(remote.location);
    if (status == STELE_OK && asprintf(&s->base, "%s/%s/resolve/%s/", endpoint, name->repository, s->revision) < 0) {
        s->base = NULL;
        status = stele_fail(err, STELE_SYSTEM, "%s: no memory", s->name);
    }
    return status;
}

enum stele_status hub_open(struct source *s, const char *reference, struct http *http, struct stele_error *err)
{
    struct hub_name name;
    const char *endpoint = getenv("HF_ENDPOINT");
    char trimmed[1024];
    enum stele_status status = read_name(&name, reference, err);
    if (status != STELE_OK)
        return status;
    if (hub_offline())
        return open_offline(s, &name, err);
    snprintf(trimmed, sizeof trimmed, "%s", endpoint && *endpoint ? endpoint : "https://huggingface.co");
    for (size_t n = strlen(trimmed); n && trimmed[n - 1] == '/'; n--)
        trimmed[n - 1] = '\0';
    status = read_login(s, err);
    if (status == STELE_OK)
        status = ask(s, &name, trimmed, http, err);
    if (status == STELE_OK)
        find_snapshot(s, &name);
    return status;
}
