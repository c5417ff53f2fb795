/* SPDX-License-Identifier: Apache-2.0 */
#include "provenance.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "json.h"

static bool add_file(json_t *list, const char *name, const uint8_t *bytes, uint64_t length)
{
    char text[33];
    struct image_digest digest = digest_chunk(bytes, length);
    digest_text(text, &digest);
    return !json_array_append_new(list, json_pack("{s:s, s:I, s:s}", "name", name, "bytes", (json_int_t)length, "xxh3",
                                                  text));
}

/* A small file of the checkpoint, if it is there. */
static bool add_small(json_t *list, const char *directory, const char *name)
{
    char *path;
    if (asprintf(&path, "%s/%s", directory, name) < 0)
        return false;
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    free(path);
    if (fd < 0)
        return true;
    bool done = true;
    if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size) {
        void *bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        done = bytes != MAP_FAILED && add_file(list, name, bytes, (uint64_t)st.st_size);
        if (bytes != MAP_FAILED)
            munmap(bytes, (size_t)st.st_size);
    }
    close(fd);
    return done;
}

json_t *provenance_small_files(const char *directory)
{
    static const char *const small[] = {"config.json",           "generation_config.json",
                                        "tokenizer.json",        "tokenizer_config.json",
                                        "chat_template.jinja",   "model.safetensors.index.json"};
    json_t *files = json_array();
    for (size_t i = 0; files && i < sizeof small / sizeof *small; i++)
        if (!add_small(files, directory, small[i])) {
            json_decref(files);
            return NULL;
        }
    return files;
}

enum stele_status provenance_text(char **out, const struct convert_options *options, json_t *files, json_t *origin,
                                  struct stele_error *err)
{
    json_t *ignored = json_array(), *root = NULL;
    bool done = files && ignored;
    for (size_t i = 0; done && options->ignored_keys && options->ignored_keys[i]; i++)
        done = !json_array_append_new(ignored, json_string(options->ignored_keys[i]));
    if (done)
        root = json_pack("{s:s, s:s, s:b, s:O, s:O, s:O*}", "converter", "stele " STELE_VERSION, "weights",
                         options->weights < 0 ? "source" : type_name((enum tensor_type)options->weights),
                         "no_template", options->no_template, "files", files, "ignored_keys", ignored, "source", origin);
    *out = root ? json_dumps(root, JSON_INDENT(1) | JSON_SORT_KEYS) : NULL;
    json_decref(root);
    json_decref(ignored);
    return *out ? STELE_OK : stele_fail(err, STELE_SYSTEM, "no memory for the provenance");
}

enum stele_status provenance_build(char **out, const struct convert_options *options,
                                   const struct checkpoint *checkpoint, struct stele_error *err)
{
    json_t *files = provenance_small_files(options->source);
    bool done = files != NULL;
    for (size_t i = 0; done && i < checkpoint->file_count; i++)
        done = add_file(files, checkpoint->files[i].name, checkpoint->files[i].bytes, checkpoint->files[i].length);
    enum stele_status status = provenance_text(out, options, done ? files : NULL, NULL, err);
    json_decref(files);
    return status;
}
