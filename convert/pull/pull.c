/* SPDX-License-Identifier: Apache-2.0 */
/* The begun image lies in a folder of its own, TARGET.part (in the store: partial/NAME.part), with the checkpoint's
 * small files beside it. Who works on it holds a lock on the folder; it is removed when the image is complete, and
 * stays where there is something to go on with. */
#include "pull.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "carry.h"
#include "convert.h"
#include "image.h"
#include "provenance.h"
#include "source.h"
#include "store.h"

enum {
    SMALL_BYTES_MAX = 256 << 20,  /* of a file of JSON */
    HEADER_FIRST = 256 << 10,     /* of a shard, asked for at once */
    HEADER_BYTES_MAX = 100 << 20, /* as safetensors.c has it */
    RESTARTS = 3,                 /* because the source changed under us */
};

static const char *const small_files[] = {"config.json",         "generation_config.json",
                                          "tokenizer.json",      "tokenizer_config.json",
                                          "chat_template.jinja", "model.safetensors.index.json"};
enum { SMALL_FILES = sizeof small_files / sizeof *small_files };

struct puller {
    const struct pull_options *options;
    struct pull_result *result;
    struct stele_error *err;
    struct http *http;
    struct source source;
    char *target, *folder, *image; /* image: of the begun one */
    int lock;                      /* on the folder; -1: not held */
    struct remote *remotes;        /* of the shards */
    struct fetch *headers;
    size_t remote_count;
    struct journal journal;
    bool begun;
    char *entry;          /* the store's file that will name the image; NULL: the target is a file of the caller's */
    char converter[1024]; /* version, and the options that change more than the weights' type */
    char key[33];         /* digest of all that decides the image's bytes */
    bool reused;
};

/* ---- the folder ---- */

static char *in_folder(const struct puller *p, const char *name)
{
    char *path;
    return asprintf(&path, "%s/%s", p->folder, name) < 0 ? NULL : path;
}

/* Whether the descriptor is still what the path names: who had the lock before may have removed it. */
static bool still_there(int fd, const char *path)
{
    struct stat a, b;
    return !fstat(fd, &a) && !stat(path, &b) && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

static enum stele_status lock_folder(struct puller *p)
{
    bool waited = false;
    for (;;) {
        if (mkdir(p->folder, 0777) && errno != EEXIST)
            return stele_fail(p->err, STELE_SYSTEM, "%s: cannot make it: %s", p->folder, strerror(errno));
        p->lock = open(p->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
        if (p->lock < 0 && errno == ENOENT)
            continue;
        if (p->lock < 0)
            return stele_fail(p->err, STELE_SYSTEM, "%s: %s", p->folder, strerror(errno));
        if (flock(p->lock, LOCK_EX | LOCK_NB)) {
            if (errno == EWOULDBLOCK && !waited)
                fprintf(stderr, "stele pull: another pull writes this image; waiting for it\n");
            waited = true;
            while (flock(p->lock, LOCK_EX) && errno == EINTR)
                ;
        }
        if (still_there(p->lock, p->folder))
            return STELE_OK;
        close(p->lock);
        p->lock = -1;
    }
}

static void remove_from_folder(const struct puller *p, const char *name)
{
    char *path = in_folder(p, name);
    if (path)
        unlink(path);
    free(path);
}

static void clear_small(const struct puller *p);

/* Gives the folder back; what a later pull can go on with stays. */
static void leave_folder(struct puller *p, bool keep)
{
    if (p->lock < 0)
        return;
    if (!keep) {
        clear_small(p);
        remove_from_folder(p, "image");
        rmdir(p->folder);
    }
    close(p->lock);
    p->lock = -1;
}

static enum stele_status write_small(struct puller *p, const char *name, const uint8_t *bytes, size_t length)
{
    char *path = in_folder(p, name);
    int fd = path ? open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666) : -1;
    bool done = fd >= 0;
    for (size_t at = 0; done && at < length;) {
        ssize_t n = write(fd, bytes + at, length - at);
        done = n > 0 || errno == EINTR;
        at += n > 0 ? (size_t)n : 0;
    }
    if (fd >= 0 && close(fd))
        done = false;
    enum stele_status status =
        done ? STELE_OK
             : stele_fail(p->err, STELE_SYSTEM, "%s: cannot write it: %s", path ? path : name, strerror(errno));
    free(path);
    return status;
}

/* ---- the checkpoint's small files ---- */

/* The names of those that the source may have: config.json first. malloc'ed; the names are the caller's to leave alone.
 */
static const char **small_names(struct puller *p, size_t *count)
{
    const char **names = calloc(SMALL_FILES + p->source.file_count, sizeof *names);
    *count = names ? SMALL_FILES : 0;
    if (names)
        memcpy(names, small_files, sizeof small_files);
    for (size_t i = 0; names && i < p->source.file_count; i++)
        if (source_is_template(p->source.files[i].name))
            names[(*count)++] = p->source.files[i].name;
    return names;
}

/* Removes the small files of an earlier pull. */
static void clear_small(const struct puller *p)
{
    for (size_t i = 0; i < SMALL_FILES; i++)
        remove_from_folder(p, small_files[i]);
    char *templates = in_folder(p, SOURCE_TEMPLATES);
    struct dirent **entries = NULL;
    int n = templates ? scandir(templates, &entries, NULL, NULL) : 0;
    for (int i = 0; i < n; i++) {
        char *name;
        if (asprintf(&name, SOURCE_TEMPLATES "/%s", entries[i]->d_name) >= 0) {
            remove_from_folder(p, name);
            free(name);
        }
        free(entries[i]);
    }
    free(entries);
    if (templates)
        rmdir(templates);
    free(templates);
}

/* A file's digest, if its source states one. */
static enum stele_status check_small(struct puller *p, const struct fetch *f)
{
    const struct remote *r = f->remote;
    const char *stated = r->sha256[0] ? r->sha256 : r->blob;
    unsigned char digest[EVP_MAX_MD_SIZE];
    char text[2 * EVP_MAX_MD_SIZE + 1] = "", begin[32];
    unsigned n = 0;
    int length = snprintf(begin, sizeof begin, "blob %zu", f->length) + 1;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    bool done = context && EVP_DigestInit_ex(context, r->sha256[0] ? EVP_sha256() : EVP_sha1(), NULL) &&
                (r->sha256[0] || EVP_DigestUpdate(context, begin, (size_t)length)) &&
                EVP_DigestUpdate(context, f->bytes, f->length) && EVP_DigestFinal_ex(context, digest, &n);
    EVP_MD_CTX_free(context);
    if (!stated[0])
        return STELE_OK;
    if (!done)
        return stele_fail(p->err, STELE_SYSTEM, "%s: cannot compute its digest", r->name);
    for (unsigned i = 0; i < n; i++)
        sprintf(text + 2 * i, "%02x", digest[i]);
    if (!strcmp(text, stated))
        return STELE_OK;
    return stele_fail(p->err, STELE_DAMAGED,
                      "%s: its bytes have the digest %s, but the source states %s; nothing was kept", r->name, text,
                      stated);
}

static enum stele_status write_all_small(struct puller *p, const struct fetch *fetches, size_t n)
{
    enum stele_status status = STELE_OK;
    char *templates = in_folder(p, SOURCE_TEMPLATES);
    for (size_t i = 0; status == STELE_OK && i < n; i++) {
        const char *name = fetches[i].remote->name;
        if (templates && source_is_template(name))
            mkdir(templates, 0777); /* what is wrong with it is said of the file */
        if (fetches[i].bytes)
            status = check_small(p, &fetches[i]);
        if (status == STELE_OK && fetches[i].bytes)
            status = write_small(p, name, fetches[i].bytes, fetches[i].length);
    }
    free(templates);
    return status;
}

static enum stele_status fetch_small(struct puller *p)
{
    size_t count, n = 0;
    const char **names = small_names(p, &count);
    struct remote *remotes = calloc(count + 1, sizeof *remotes);
    struct fetch *fetches = calloc(count + 1, sizeof *fetches);
    enum stele_status status = STELE_OK;
    if (!names || !remotes || !fetches)
        status = stele_fail(p->err, STELE_SYSTEM, "no memory for the list of files");
    clear_small(p);
    for (size_t i = 0; status == STELE_OK && i < count; i++)
        if (source_file(&p->source, names[i], &remotes[n])) {
            fetches[n] = (struct fetch){.remote = &remotes[n], .most = HTTP_REST, .optional = i > 0};
            n++;
        }
    if (status == STELE_OK && (!n || strcmp(remotes[0].name, "config.json")))
        status =
            stele_fail(p->err, STELE_INPUT,
                       "%s: there is no config.json; a checkpoint in Hugging Face layout is needed", p->source.name);
    if (status == STELE_OK)
        status = http_fetch(p->http, fetches, n, SMALL_BYTES_MAX, p->err);
    if (status == STELE_OK)
        status = write_all_small(p, fetches, n);
    for (size_t i = 0; i < n; i++) {
        free(fetches[i].bytes);
        remote_free(&remotes[i]);
    }
    free(names);
    free(remotes);
    free(fetches);
    return status;
}

/* ---- the shards' headers ---- */

/* What a header says of its own length; what is no header is left to safetensors.c. */
static uint64_t header_length(const struct fetch *f)
{
    uint64_t length = 0;
    if (f->length >= 8)
        memcpy(&length, f->bytes, 8);
    return length > HEADER_BYTES_MAX ? 0 : 8 + length;
}

/* The rest of the headers that did not come whole. */
static enum stele_status fetch_rest(struct puller *p)
{
    struct fetch *rest = calloc(p->remote_count, sizeof *rest);
    size_t n = 0;
    enum stele_status status = rest ? STELE_OK : stele_fail(p->err, STELE_SYSTEM, "no memory for the headers");
    for (size_t i = 0; status == STELE_OK && i < p->remote_count; i++)
        if (header_length(&p->headers[i]) > p->headers[i].length && p->headers[i].length < p->remotes[i].length)
            rest[n++] = (struct fetch){.remote = &p->remotes[i],
                                       .from = p->headers[i].length,
                                       .most = header_length(&p->headers[i]) - p->headers[i].length};
    if (status == STELE_OK)
        status = http_fetch(p->http, rest, n, HEADER_BYTES_MAX, p->err);
    for (size_t i = 0; status == STELE_OK && i < n; i++) {
        struct fetch *f = &p->headers[rest[i].remote - p->remotes];
        uint8_t *whole = realloc(f->bytes, f->length + rest[i].length + 1);
        if (whole) {
            memcpy(whole + f->length, rest[i].bytes, rest[i].length);
            f->bytes = whole;
            f->length += rest[i].length;
        } else
            status = stele_fail(p->err, STELE_SYSTEM, "no memory for the headers");
        free(rest[i].bytes);
    }
    free(rest);
    return status;
}

/* SHA-256 in base64 as hexadecimal digits; "" where it is something else, such as the checksum of an object's parts. */
static void checksum_text(char out[65], const char *base64)
{
    uint8_t bytes[48];
    out[0] = '\0';
    if (strlen(base64) != 44 || base64[43] != '=' || EVP_DecodeBlock(bytes, (const uint8_t *)base64, 44) != 33)
        return;
    for (size_t i = 0; i < 32; i++)
        sprintf(out + 2 * i, "%02x", bytes[i]);
}

/* What an object store states of whole objects. Who may not ask for heads does without. */
static enum stele_status ask_checksums(struct puller *p)
{
    struct fetch *heads = calloc(p->remote_count, sizeof *heads);
    struct stele_error ignored;
    if (!heads)
        return stele_fail(p->err, STELE_SYSTEM, "no memory for %zu files", p->remote_count);
    for (size_t i = 0; i < p->remote_count; i++)
        heads[i] = (struct fetch){.remote = &p->remotes[i], .most = HTTP_REST, .method = "HEAD"};
    if (http_fetch(p->http, heads, p->remote_count, SMALL_BYTES_MAX, &ignored) == STELE_OK)
        for (size_t i = 0; i < p->remote_count; i++) {
            checksum_text(p->remotes[i].sha256, heads[i].checksum);
            free(heads[i].bytes);
        }
    free(heads);
    return STELE_OK;
}

static enum stele_status fetch_headers(void *context, struct source_file *files, size_t count, struct stele_error *err)
{
    struct puller *p = context;
    p->remotes = calloc(count, sizeof *p->remotes);
    p->headers = calloc(count, sizeof *p->headers);
    if (!p->remotes || !p->headers)
        return stele_fail(err, STELE_SYSTEM, "no memory for %zu files", count);
    for (; p->remote_count < count; p->remote_count++) {
        if (!source_file(&p->source, files[p->remote_count].name, &p->remotes[p->remote_count]))
            return stele_fail(err, STELE_INPUT, "%s: %s is not there", p->source.name, files[p->remote_count].name);
        p->headers[p->remote_count] = (struct fetch){.remote = &p->remotes[p->remote_count], .most = HEADER_FIRST};
    }
    enum stele_status status = p->source.checksums ? ask_checksums(p) : STELE_OK;
    if (status == STELE_OK)
        status = http_fetch(p->http, p->headers, count, HEADER_BYTES_MAX + 8, err);
    if (status == STELE_OK)
        status = fetch_rest(p);
    for (size_t i = 0; status == STELE_OK && i < count; i++) {
        files[i].header = p->headers[i].bytes;
        files[i].header_length = p->headers[i].length;
        files[i].length = p->remotes[i].length;
        if (files[i].length == UINT64_MAX)
            status = stele_fail(err, STELE_UNREACHABLE, "%s: its server does not say how long it is", files[i].name);
    }
    return status;
}

/* Whether the source has a file of that name: it lists it, or it answers. */
static enum stele_status has_file(struct puller *p, const char *name, bool *has)
{
    struct remote remote;
    struct fetch fetch = {.remote = &remote, .most = 8, .optional = true};
    *has = source_file(&p->source, name, &remote);
    if (!*has || p->source.lists)
        return remote_free(&remote), STELE_OK;
    enum stele_status status = http_fetch(p->http, &fetch, 1, SMALL_BYTES_MAX, p->err);
    *has = fetch.bytes != NULL;
    free(fetch.bytes);
    remote_free(&remote);
    return status;
}

static enum stele_status open_checkpoint(void *context, struct checkpoint *out, struct stele_error *err)
{
    struct puller *p = context;
    const char *single = p->source.single;
    bool whole = false;
    enum stele_status status = single ? STELE_OK : has_file(p, "model.safetensors", &whole);
    if (status == STELE_OK)
        status = checkpoint_open_headers(out, p->folder, whole ? "model.safetensors" : single, fetch_headers, p, err);
    if (status != STELE_OK)
        return status;
    for (size_t i = 0; i < out->tensor_count; i++) /* places in one file become places in the stream */
        for (size_t f = 0; f < out->tensors[i].shard; f++)
            out->tensors[i].at += p->remotes[f].length;
    return STELE_OK;
}

/* ---- the image ---- */

static void hash_text(XXH3_state_t *state, const char *text)
{
    XXH3_128bits_update(state, text, strlen(text) + 1);
}

/* A digest of all that decides the image's bytes. */
static bool digest_source(struct image_digest *out, const struct puller *p, const struct convert_section *sections,
                          size_t count)
{
    XXH3_state_t *state = XXH3_createState();
    XXH128_canonical_t bytes;
    if (!state)
        return false;
    XXH3_128bits_reset(state);
    hash_text(state, STELE_VERSION);
    XXH3_128bits_update(state, &p->options->weights, sizeof p->options->weights);
    for (size_t i = 0; p->options->ignored_keys[i]; i++)
        hash_text(state, p->options->ignored_keys[i]);
    for (size_t i = 0; i < count; i++) {
        XXH3_128bits_update(state, &sections[i].length, sizeof sections[i].length);
        if (sections[i].bytes)
            XXH3_128bits_update(state, sections[i].bytes, sections[i].length);
    }
    for (size_t i = 0; i < p->remote_count; i++) {
        hash_text(state, p->remotes[i].name);
        hash_text(state, p->remotes[i].sha256[0] ? p->remotes[i].sha256 : p->remotes[i].tag);
        XXH3_128bits_update(state, &p->remotes[i].length, sizeof p->remotes[i].length);
    }
    XXH128_canonicalFromHash(&bytes, XXH3_128bits_digest(state));
    memcpy(out->bytes, bytes.digest, sizeof bytes.digest);
    XXH3_freeState(state);
    return true;
}

static const char *weights_word(const struct puller *p)
{
    return p->options->weights < 0 ? "source" : type_name((enum tensor_type)p->options->weights);
}

/* The path of an image of the store. */
static char *stored_path(const char *identity)
{
    char file[64];
    snprintf(file, sizeof file, "%s.stele", identity);
    return store_path("images", file);
}

/* Whether the store has the image, made by this converter of that source (key), or of that commit: then its path is the
 * result's. */
static bool stored(struct puller *p, const char *key, const char *revision)
{
    struct store_entry entry;
    struct image *image;
    struct stele_error ignored;
    char identity[33];
    if (!p->entry || p->options->replace || strlen(p->converter) + 1 == sizeof p->converter ||
        !store_read(&entry, p->entry) || (key && strcmp(entry.source, key)) ||
        (revision && strcmp(entry.revision, revision)) || strcmp(entry.converter, p->converter))
        return false;
    char *path = stored_path(entry.identity);
    bool there = path && image_open(&image, path, &ignored) == STELE_OK;
    if (there) {
        digest_text(identity, &image->header.identity);
        there = !strcmp(identity, entry.identity);
        image_close(image);
    }
    if (there)
        p->result->path = path;
    else
        free(path);
    return there;
}

/* Writes the entry that names the image, whole or not at all. */
static bool write_entry(const struct puller *p, const char *identity)
{
    char *path = store_path("refs", p->entry), *begun = NULL;
    if (!path || asprintf(&begun, "%s.%ld", path, (long)getpid()) < 0)
        begun = NULL;
    FILE *to = begun ? fopen(begun, "we") : NULL;
    bool done = to && fprintf(to, "identity %s\nname %s\nweights %s\nrevision %s\nconverter %s\nsource %s\n", identity,
                              p->source.name, weights_word(p), p->source.revision ? p->source.revision : "",
                              p->converter, p->key) > 0;
    done = to && !fflush(to) && !fsync(fileno(to)) && done;
    if (to && fclose(to))
        done = false;
    done = done && !rename(begun, path);
    if (begun && !done)
        unlink(begun);
    free(begun);
    free(path);
    return done;
}

/* Takes a finished image into the store: below its identity, then named. `stele gc` does not come between. */
static enum stele_status shelve(struct puller *p)
{
    struct image *image;
    char identity[33], *images = store_path("images", ""), *path = NULL;
    enum stele_status status = image_open(&image, p->target, p->err);
    if (status == STELE_OK) {
        digest_text(identity, &image->header.identity);
        image_close(image);
        path = stored_path(identity);
        int lock = images ? open(images, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
        bool done = lock >= 0 && !flock(lock, LOCK_EX) && path && !rename(p->target, path) && write_entry(p, identity);
        if (!done)
            status = stele_fail(p->err, STELE_SYSTEM, "%s: cannot take the image into the store: %s",
                                images ? images : "", strerror(errno));
        if (lock >= 0)
            close(lock);
    }
    free(images);
    if (status == STELE_OK)
        p->result->path = path;
    else
        free(path);
    return status;
}

static enum stele_status begin_image(void *context, struct image_writer **out, const struct convert_section *sections,
                                     size_t count, uint64_t weights_bytes, struct stele_error *err)
{
    struct puller *p = context;
    struct image_digest source;
    bool other;
    if (!digest_source(&source, p, sections, count))
        return stele_fail(err, STELE_SYSTEM, "no memory for a digest");
    digest_text(p->key, &source);
    if (stored(p, p->key, NULL)) {
        p->reused = true;
        return stele_fail(err, STELE_SYSTEM, "the store has it"); /* ends the conversion, and is no error */
    }
    enum stele_status status = image_resume(out, p->target, p->options->replace || p->entry, p->image, err);
    if (status != STELE_OK)
        return status;
    int fd = image_descriptor(*out);
    if (journal_read(&p->journal, fd, &source, &other) && p->journal.at) {
        fprintf(stderr, "stele pull: going on with what an earlier pull has fetched\n");
        p->begun = true;
        return STELE_OK;
    }
    if (other)
        fprintf(stderr, "stele pull: the source, or what is asked for, is another than an earlier pull began with; "
                        "starting over\n");
    journal_begin(&p->journal, &source);
    if (ftruncate(fd, 0))
        status = stele_fail(err, STELE_SYSTEM, "%s: cannot write it: %s", p->image, strerror(errno));
    for (size_t i = 0; i < count; i++)
        weights_bytes += sections[i].length;
    if (status == STELE_OK)
        status = image_reserve(*out, weights_bytes, err);
    p->begun = true;
    return status;
}

static struct stream_options stream_options(const struct puller *p)
{
    return (struct stream_options){
        .http = p->http,
        .files = p->remotes,
        .file_count = p->remote_count,
        .threads = p->options->threads,
        .memory = p->options->memory,
        .chunk = p->options->chunk,
        .connections = p->options->connections,
        .progress = p->options->progress,
        .whole = p->options->whole,
        .context = p->options->context,
        .channel = p->options->channel,
    };
}

static void whole(void *context)
{
    const struct puller *p = context;
    p->options->whole(p->options->context);
}

static enum stele_status stream_into(void *context, struct emitter *emitter, struct image_writer *writer,
                                     uint64_t align, struct stele_error *err)
{
    struct puller *p = context;
    const struct stream_options options = stream_options(p);
    return stream_weights(&options, emitter, writer, align, &p->journal, &p->result->stream, err);
}

/* The provenance: the shards by the digest, or the tag, that their source states. */
static enum stele_status say_where_from(void *context, char **out, const struct convert_options *options,
                                        const struct checkpoint *checkpoint, struct stele_error *err)
{
    struct puller *p = context;
    json_t *origin = json_pack("{s:s, s:s*}", "reference", p->source.name, "revision", p->source.revision);
    json_t *files = provenance_small_files(options->source);
    bool done = origin && files;
    for (size_t i = 0; done && i < checkpoint->file_count; i++) {
        const struct remote *r = i < p->remote_count ? &p->remotes[i] : NULL;
        json_t *file = json_pack("{s:s, s:I}", "name", checkpoint->files[i].name, "bytes",
                                 (json_int_t)checkpoint->files[i].length);
        done = file && !json_array_append_new(files, file);
        if (done && r && r->sha256[0])
            done = !json_object_set_new(file, "sha256", json_string(r->sha256));
        else if (done && r && r->tag[0])
            done = !json_object_set_new(file, "tag", json_string(r->tag));
    }
    enum stele_status status = provenance_text(out, options, done ? files : NULL, origin, err);
    json_decref(files);
    json_decref(origin);
    return status;
}

/* ---- a finished image ---- */

static enum stele_status place_image(struct puller *p)
{
    bool replace = p->options->replace || p->entry;
    if (!renameat2(AT_FDCWD, p->image, AT_FDCWD, p->target, replace ? 0 : RENAME_NOREPLACE))
        return STELE_OK;
    return errno == EEXIST ? stele_fail(p->err, STELE_USAGE, "%s: exists; -f replaces it", p->target)
                           : stele_fail(p->err, STELE_SYSTEM, "%s: cannot write it: %s", p->target, strerror(errno));
}

static enum stele_status fetch_begun(struct puller *p, const struct carry *carry, int fd)
{
    struct image_digest source;
    bool other;
    if (!digest_source(&source, p, NULL, 0))
        return stele_fail(p->err, STELE_SYSTEM, "no memory for a digest");
    digest_text(p->key, &source);
    if (stored(p, p->key, NULL)) {
        p->reused = true;
        return STELE_OK;
    }
    p->begun = true;
    if (journal_read(&p->journal, fd, &source, &other) && p->journal.at)
        fprintf(stderr, "stele pull: going on with what an earlier pull has fetched\n");
    else {
        journal_begin(&p->journal, &source);
        if (ftruncate(fd, 0))
            return stele_fail(p->err, STELE_SYSTEM, "%s: cannot write it: %s", p->image, strerror(errno));
        if (fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)carry->index.image_bytes) && errno != EOPNOTSUPP)
            return stele_fail(p->err, STELE_SYSTEM, "%s: cannot reserve the %" PRIu64 " bytes of the image: %s",
                              p->target, carry->index.image_bytes, strerror(errno));
    }
    const struct stream_options options = stream_options(p);
    enum stele_status status = carry_image(carry, &options, fd, p->image, &p->journal, &p->result->stream, p->err);
    return status == STELE_OK ? place_image(p) : status;
}

static enum stele_status fetch_image(struct puller *p)
{
    struct carry carry = {0};
    p->remotes = calloc(1, sizeof *p->remotes);
    p->headers = calloc(1, sizeof *p->headers);
    if (!p->remotes || !p->headers)
        return stele_fail(p->err, STELE_SYSTEM, "no memory");
    if (!source_file(&p->source, p->source.image, &p->remotes[0]))
        return stele_fail(p->err, STELE_UNREACHABLE, "%s: it is not there", p->source.name);
    p->remote_count = 1;
    int fd = open(p->image, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    enum stele_status status =
        fd >= 0 ? carry_open(&carry, p->http, &p->remotes[0], p->err)
                : stele_fail(p->err, STELE_SYSTEM, "%s: cannot write it: %s", p->image, strerror(errno));
    if (status == STELE_OK)
        status = fetch_begun(p, &carry, fd);
    if (fd >= 0)
        close(fd);
    carry_close(&carry);
    return status;
}

/* ---- the whole ---- */

/* A local snapshot takes seconds. */
static void no_progress(void *context, uint64_t done, uint64_t total)
{
    (void)context;
    (void)done;
    (void)total;
}

static enum stele_status compile(struct puller *p)
{
    struct convert_arrival arrival = {.provenance = say_where_from, .whole = whole, .context = p};
    struct convert_options options = {
        .verb = "pull",
        .source = p->source.snapshot ? p->source.snapshot : p->folder,
        .target = p->target,
        .weights = p->options->weights,
        .replace = p->options->replace || p->entry,
        .no_template = p->options->no_template,
        .threads = p->options->threads,
        .ignored_keys = p->options->ignored_keys,
        .progress = no_progress,
        .arrival = &arrival,
    };
    if (p->source.snapshot)
        return convert_checkpoint(&options, p->err);
    arrival.open = open_checkpoint;
    arrival.begin = begin_image;
    arrival.weights = stream_into;
    if (p->source.image)
        return fetch_image(p);
    enum stele_status status = fetch_small(p);
    return status == STELE_OK ? convert_checkpoint(&options, p->err) : status;
}

static void forget_shards(struct puller *p)
{
    for (size_t i = 0; i < p->remote_count; i++) {
        remote_free(&p->remotes[i]);
        free(p->headers[i].bytes);
    }
    free(p->remotes);
    free(p->headers);
    p->remotes = NULL;
    p->headers = NULL;
    p->remote_count = 0;
}

static bool source_changed(const struct puller *p)
{
    for (size_t i = 0; i < p->remote_count; i++)
        if (p->remotes[i].changed)
            return true;
    return false;
}

/* Compiles, again if the source changes meanwhile; not under who computes from what came before. */
static enum stele_status compile_steadily(struct puller *p)
{
    enum stele_status status = compile(p);
    for (int i = 0; i < RESTARTS && status != STELE_OK && source_changed(p) && p->options->channel < 0; i++) {
        fprintf(stderr, "stele pull: %s; starting over\n", p->err->text);
        forget_shards(p);
        status = compile(p);
    }
    return status;
}

/* Makes the folders of the store. */
static enum stele_status make_store(struct puller *p)
{
    static const char *const folders[] = {"images", "refs", "partial"};
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        char *path = store_path(folders[i], "");
        if (!path)
            return stele_fail(p->err, STELE_USAGE, "there is no place for a store: neither STELE_HOME nor HOME is set");
        for (char *c = path + 1; *c; c++)
            if (*c == '/') {
                *c = '\0';
                if (mkdir(path, 0777) && errno != EEXIST) {
                    enum stele_status status =
                        stele_fail(p->err, STELE_SYSTEM, "%s: cannot make it: %s", path, strerror(errno));
                    free(path);
                    return status;
                }
                *c = '/';
            }
        free(path);
    }
    return STELE_OK;
}

static enum stele_status choose_paths(struct puller *p)
{
    struct stat st;
    enum stele_status status = STELE_OK;
    int n = snprintf(p->converter, sizeof p->converter, "stele " STELE_VERSION "%s",
                     p->options->no_template ? " --no-template" : "");
    for (size_t i = 0; p->options->ignored_keys[i] && n < (int)sizeof p->converter; i++)
        n += snprintf(p->converter + n, sizeof p->converter - n, " --ignore-key %s", p->options->ignored_keys[i]);
    if (p->options->target) {
        if (!p->options->replace && !lstat(p->options->target, &st))
            return stele_fail(p->err, STELE_USAGE, "%s: exists; -f replaces it", p->options->target);
        p->target = strdup(p->options->target);
    } else {
        status = make_store(p);
        char *name = store_name(p->options->reference);
        p->entry = name ? store_reference_file(name, weights_word(p)) : NULL;
        p->target = p->entry ? store_path("partial", p->entry) : NULL;
        free(name);
        if (status == STELE_OK && p->entry && strlen(p->entry) > 240)
            status = stele_fail(p->err, STELE_USAGE, "%s: too long a name for the store; -o IMAGE names a file",
                                p->options->reference);
    }
    if (!p->target || asprintf(&p->folder, "%s.part", p->target) < 0)
        p->folder = NULL;
    p->image = p->folder ? in_folder(p, "image") : NULL;
    return status != STELE_OK ? status : p->image ? STELE_OK : stele_fail(p->err, STELE_SYSTEM, "no memory");
}

/* What else can be said of a source that does not answer: what the store has of it. */
static void say_what_there_is(struct puller *p)
{
    struct store_entry entry;
    struct stele_error text = *p->err;
    if (p->entry && store_read(&entry, p->entry))
        stele_fail(p->err, text.status, "%.800s; the store has it%s%.40s as %s, which `stele run` takes", text.text,
                   entry.revision[0] ? " of revision " : "", entry.revision, entry.weights);
}

static enum stele_status pull_into(struct puller *p)
{
    enum stele_status status = lock_folder(p);
    if (status != STELE_OK)
        return status;
    p->reused = p->source.revision && stored(p, NULL, p->source.revision);
    if (p->source.image && p->options->weights >= 0)
        status = stele_fail(p->err, STELE_USAGE, "%s: a finished image has its weights; --weights cannot change them",
                            p->source.name);
    else
        status = p->reused ? STELE_OK : compile_steadily(p);
    if (p->reused)
        status = STELE_OK;
    else if (status == STELE_OK && p->entry)
        status = shelve(p);
    bool keep = status != STELE_OK && status != STELE_DAMAGED && status != STELE_INPUT && p->begun && p->journal.at;
    leave_folder(p, keep);
    if (keep) {
        struct stele_error text = *p->err;
        stele_fail(p->err, text.status, "%.900s; what came is kept, the same command goes on with it", text.text);
    }
    return status;
}

enum stele_status pull(const struct pull_options *options, struct pull_result *result, struct stele_error *err)
{
    struct puller p = {.options = options, .result = result, .err = err, .lock = -1};
    struct http_options http = {.connections = options->connections,
                                .timeout_s = options->timeout_s,
                                .authorities = source_authorities(options->reference)};
    *result = (struct pull_result){0};
    enum stele_status status = choose_paths(&p);
    if (status == STELE_OK)
        status = http_open(&p.http, &http, err);
    if (status == STELE_OK)
        status = source_open(&p.source, options->reference, p.http, err);
    if (status == STELE_OK)
        status = pull_into(&p);
    if (status == STELE_UNREACHABLE)
        say_what_there_is(&p);
    if (status == STELE_OK && !p.entry) {
        result->path = p.target;
        p.target = NULL;
    }
    result->reused = p.reused;
    if (p.http)
        result->retries = http_retries(p.http);
    forget_shards(&p);
    source_close(&p.source);
    http_close(p.http);
    free(p.target);
    free(p.folder);
    free(p.image);
    free(p.entry);
    return status;
}
