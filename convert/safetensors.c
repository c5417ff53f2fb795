/* SPDX-License-Identifier: Apache-2.0 */
#include "safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"
#include "numbers.h"

enum { HEADER_BYTES_MAX = 100 << 20 }; /* as the safetensors library has it */

static const struct {
    const char *name;
    enum source_type type;
    unsigned bytes;
} source_types[] = {
    {"F32", SOURCE_F32, 4},    {"F16", SOURCE_F16, 2},    {"BF16", SOURCE_BF16, 2},   {"F64", SOURCE_OTHER, 8},
    {"I64", SOURCE_OTHER, 8},  {"I32", SOURCE_OTHER, 4},  {"I16", SOURCE_OTHER, 2},   {"I8", SOURCE_OTHER, 1},
    {"U64", SOURCE_OTHER, 8},  {"U32", SOURCE_OTHER, 4},  {"U16", SOURCE_OTHER, 2},   {"U8", SOURCE_U8, 1},
    {"BOOL", SOURCE_OTHER, 1}, {"F8_E4M3", SOURCE_OTHER, 1}, {"F8_E5M2", SOURCE_OTHER, 1},
};

static enum stele_status wrong(struct stele_error *err, const struct source_file *file, const char *tensor,
                               const char *what)
{
    return stele_fail(err, STELE_INPUT, "%s: tensor %s: %s", file->name, tensor, what);
}

/* Shape and type of one header entry; *bytes is what they need. */
static enum stele_status read_shape(struct source_tensor *t, const json_t *entry, const struct source_file *file,
                                    uint64_t *bytes, struct stele_error *err)
{
    const char *type = json_string_value(json_object_get(entry, "dtype"));
    const json_t *shape = json_object_get(entry, "shape");
    if (!type || !json_is_array(shape) || json_array_size(shape) > 8)
        return wrong(err, file, t->name, "its dtype or shape is missing or malformed");
    size_t i = 0, n = sizeof source_types / sizeof *source_types;
    while (i < n && strcmp(source_types[i].name, type))
        i++;
    if (i == n)
        return stele_fail(err, STELE_INPUT, "%s: tensor %s: unknown dtype \"%.20s\"", file->name, t->name, type);
    t->type = source_types[i].type;
    snprintf(t->type_name, sizeof t->type_name, "%s", source_types[i].name);
    t->rank = json_array_size(shape);
    *bytes = source_types[i].bytes;
    for (size_t d = 0; d < t->rank; d++)
        if (!json_whole(json_array_get(shape, d), UINT32_MAX, &t->shape[d]) || !size_mul(*bytes, t->shape[d], bytes))
            return wrong(err, file, t->name, "its shape is out of range");
    return STELE_OK;
}

static enum stele_status read_entry(const struct checkpoint *c, struct source_tensor *t, const char *name,
                                    const json_t *entry, const struct source_file *file, uint64_t data_offset,
                                    struct stele_error *err)
{
    *t = (struct source_tensor){.name = strdup(name), .file = file->name, .shard = (size_t)(file - c->files)};
    if (!t->name)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for its header", file->name);
    uint64_t need = 0, from, to, available = file->length - data_offset;
    enum stele_status status = read_shape(t, entry, file, &need, err);
    if (status != STELE_OK)
        return status;
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (json_array_size(offsets) != 2 || !json_whole(json_array_get(offsets, 0), INT64_MAX, &from) || !json_whole(json_array_get(offsets, 1), INT64_MAX, &to) ||
        from > to)
        return wrong(err, file, name, "its data_offsets are missing or malformed");
    if (to > available)
        return stele_fail(err, STELE_INPUT,
                          "%s: tensor %s: its data ends at %" PRIu64 ", but the file holds %" PRIu64
                          " bytes of data; cut short?",
                          file->name, name, to, available);
    if (to - from != need)
        return stele_fail(err, STELE_INPUT,
                          "%s: tensor %s: %" PRIu64 " bytes of data where dtype and shape need %" PRIu64, file->name,
                          name, to - from, need);
    t->at = data_offset + from;
    t->bytes = file->bytes ? file->bytes + t->at : NULL;
    t->length = need;
    return STELE_OK;
}

static int by_place(const void *a, const void *b)
{
    const struct source_tensor *x = a, *y = b;
    return x->at != y->at ? (x->at < y->at ? -1 : 1) : x->length < y->length ? -1 : x->length > y->length;
}

/* The tensors of a file, those from index `first` on, must cover its data without holes and overlaps: the format says so,
 * and where they do not, something is not what its name says. */
static enum stele_status check_tiling(struct checkpoint *c, const struct source_file *file, size_t first,
                                      uint64_t data, struct stele_error *err)
{
    if (c->tensor_count > first)
        qsort(c->tensors + first, c->tensor_count - first, sizeof *c->tensors, by_place);
    for (size_t i = first; i < c->tensor_count; data += c->tensors[i++].length)
        if (c->tensors[i].at != data)
            return stele_fail(err, STELE_INPUT, "%s: tensor %s: its data does not begin where that of the one before ends",
                              file->name, c->tensors[i].name);
    if (data != file->length)
        return stele_fail(err, STELE_INPUT, "%s: %" PRIu64 " bytes at its end belong to no tensor", file->name,
                          file->length - data);
    return STELE_OK;
}

/* Adds the tensors of one file. */
static enum stele_status read_header(struct checkpoint *c, const struct source_file *file, struct stele_error *err)
{
    uint64_t length = 0;
    if (file->header_length >= 8)
        memcpy(&length, file->header, 8);
    if (file->header_length < 8 || length > HEADER_BYTES_MAX || length > file->header_length - 8)
        return stele_fail(err, STELE_INPUT,
                          "%s: no safetensors file: its header of %" PRIu64 " bytes does not fit into %" PRIu64,
                          file->name, length, file->length);
    json_t *header;
    enum stele_status status = json_read_bytes(&header, (const char *)file->header + 8, length, file->name, err);
    if (status != STELE_OK)
        return status;
    size_t more = json_object_size(header), first = c->tensor_count;
    struct source_tensor *tensors = realloc(c->tensors, (c->tensor_count + more + 1) * sizeof *tensors);
    if (!tensors)
        status = stele_fail(err, STELE_SYSTEM, "%s: no memory for %zu tensors", file->name, more);
    else
        c->tensors = tensors;
    const char *name;
    json_t *entry;
    if (status == STELE_OK && !json_is_object(header))
        status = stele_fail(err, STELE_INPUT, "%s: its header is no object", file->name);
    json_object_foreach(header, name, entry) {
        if (status != STELE_OK)
            break;
        if (strcmp(name, "__metadata__"))
            status = read_entry(c, &c->tensors[c->tensor_count++], name, entry, file, 8 + length, err);
    }
    json_decref(header);
    return status == STELE_OK ? check_tiling(c, file, first, 8 + length, err) : status;
}

static enum stele_status map_shard(struct source_file *file, const char *directory, struct stele_error *err)
{
    char *path;
    if (asprintf(&path, "%s/%s", directory, file->name) < 0)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory", file->name);
    struct stat st;
    enum stele_status status = STELE_OK;
    file->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file->fd < 0 || fstat(file->fd, &st))
        status = stele_fail(err, errno == ENOENT ? STELE_INPUT : STELE_SYSTEM, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode) || st.st_size < 8)
        status = stele_fail(err, STELE_INPUT, "%s: no safetensors file", path);
    else {
        void *bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, file->fd, 0);
        if (bytes == MAP_FAILED)
            status = stele_fail(err, STELE_SYSTEM, "%s: cannot map it: %s", path, strerror(errno));
        else {
            file->bytes = file->header = bytes;
            file->length = file->header_length = (uint64_t)st.st_size;
            file->mtime = st.st_mtim;
        }
    }
    free(path);
    return status;
}

static enum stele_status add_file(struct checkpoint *c, const char *name, struct stele_error *err)
{
    for (size_t i = 0; i < c->file_count; i++)
        if (!strcmp(c->files[i].name, name))
            return STELE_OK;
    if (!*name || strchr(name, '/') || strstr(name, ".."))
        return stele_fail(err, STELE_INPUT, "model.safetensors.index.json: \"%.200s\" is no file name", name);
    struct source_file *files = realloc(c->files, (c->file_count + 1) * sizeof *files);
    char *copy = strdup(name);
    if (files)
        c->files = files;
    if (!files || !copy) {
        free(copy);
        return stele_fail(err, STELE_SYSTEM, "%s: no memory", name);
    }
    c->files[c->file_count++] = (struct source_file){.name = copy, .fd = -1};
    return STELE_OK;
}

/* The shards of an index: every file that a tensor is said to be in. */
static enum stele_status add_index(struct checkpoint *c, const json_t *index, struct stele_error *err)
{
    json_t *map = json_object_get(index, "weight_map"), *file;
    if (!json_is_object(map) || !json_object_size(map))
        return stele_fail(err, STELE_INPUT, "model.safetensors.index.json: it has no weight_map");
    const char *tensor;
    json_object_foreach(map, tensor, file) {
        if (!json_is_string(file) || strlen(json_string_value(file)) != json_string_length(file))
            return stele_fail(err, STELE_INPUT, "model.safetensors.index.json: tensor %s: its file is no name", tensor);
        enum stele_status status = add_file(c, json_string_value(file), err);
        if (status != STELE_OK)
            return status;
    }
    return STELE_OK;
}

static bool exists(const char *directory, const char *name)
{
    char *path;
    if (asprintf(&path, "%s/%s", directory, name) < 0)
        return false;
    bool there = !access(path, F_OK);
    free(path);
    return there;
}

static enum stele_status find_files(struct checkpoint *c, const char *single, struct stele_error *err)
{
    static const char index_name[] = "model.safetensors.index.json";
    if (single || exists(c->directory, "model.safetensors"))
        return add_file(c, single ? single : "model.safetensors", err);
    if (!exists(c->directory, index_name)) {
        static const char *const others[] = {"pytorch_model.bin", "pytorch_model.bin.index.json",
                                             "adapter_model.safetensors"};
        for (size_t i = 0; i < sizeof others / sizeof *others; i++)
            if (exists(c->directory, others[i]))
                return stele_fail(err, STELE_INPUT, "%s: %s is not supported; a checkpoint in model.safetensors is needed",
                                  c->directory, others[i]);
        return stele_fail(err, STELE_INPUT, "%s: neither model.safetensors nor %s is there", c->directory, index_name);
    }
    char *path;
    if (asprintf(&path, "%s/%s", c->directory, index_name) < 0)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory", c->directory);
    json_t *index;
    enum stele_status status = json_read_file(&index, path, err);
    free(path);
    if (status != STELE_OK)
        return status;
    status = add_index(c, index, err);
    json_decref(index);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct source_tensor *)a)->name, ((const struct source_tensor *)b)->name);
}

static enum stele_status map_shards(void *context, struct source_file *files, size_t count, struct stele_error *err)
{
    enum stele_status status = STELE_OK;
    for (size_t i = 0; status == STELE_OK && i < count; i++)
        status = map_shard(&files[i], context, err);
    return status;
}

enum stele_status checkpoint_open(struct checkpoint *out, const char *directory, struct stele_error *err)
{
    return checkpoint_open_headers(out, directory, NULL, map_shards, (void *)(uintptr_t)directory, err);
}

enum stele_status checkpoint_open_headers(struct checkpoint *out, const char *directory, const char *single,
                                          source_headers *headers, void *context, struct stele_error *err)
{
    *out = (struct checkpoint){.directory = directory};
    enum stele_status status = find_files(out, single, err);
    if (status == STELE_OK)
        status = headers(context, out->files, out->file_count, err);
    for (size_t i = 0; status == STELE_OK && i < out->file_count; i++)
        status = read_header(out, &out->files[i], err);
    if (status == STELE_OK) {
        qsort(out->tensors, out->tensor_count, sizeof *out->tensors, by_name);
        for (size_t i = 1; status == STELE_OK && i < out->tensor_count; i++)
            if (!by_name(&out->tensors[i - 1], &out->tensors[i]))
                status = stele_fail(err, STELE_INPUT, "%s: tensor %s is in %s and in %s", directory,
                                    out->tensors[i].name, out->tensors[i - 1].file, out->tensors[i].file);
    }
    if (status != STELE_OK)
        checkpoint_close(out);
    return status;
}

void checkpoint_close(struct checkpoint *c)
{
    for (size_t i = 0; i < c->tensor_count; i++)
        free(c->tensors[i].name);
    for (size_t i = 0; i < c->file_count; i++) {
        if (c->files[i].bytes)
            munmap((void *)(uintptr_t)c->files[i].bytes, c->files[i].length);
        if (c->files[i].fd >= 0)
            close(c->files[i].fd);
        free(c->files[i].name);
    }
    free(c->tensors);
    free(c->files);
    *c = (struct checkpoint){0};
}

enum stele_status checkpoint_unchanged(const struct checkpoint *c, struct stele_error *err)
{
    for (size_t i = 0; i < c->file_count; i++) {
        const struct source_file *f = &c->files[i];
        struct stat st;
        if (fstat(f->fd, &st) || (uint64_t)st.st_size != f->length || st.st_mtim.tv_sec != f->mtime.tv_sec ||
            st.st_mtim.tv_nsec != f->mtime.tv_nsec)
            return stele_fail(err, STELE_DAMAGED, "%s: the file was changed while it was converted", f->name);
    }
    return STELE_OK;
}

struct source_tensor *checkpoint_find(const struct checkpoint *c, const char *name)
{
    struct source_tensor key = {.name = (char *)(uintptr_t)name};
    return c->tensor_count ? bsearch(&key, c->tensors, c->tensor_count, sizeof key, by_name) : NULL;
}

static bool has_shape(const struct source_tensor *t, size_t rank, const uint64_t *shape)
{
    return t->type == SOURCE_U8 && t->rank == rank && !memcmp(t->shape, shape, rank * sizeof *shape);
}

bool source_join_mxfp4(struct source_tensor *blocks, const struct source_tensor *scales, uint64_t experts, uint64_t rows,
                       uint64_t columns)
{
    const uint64_t shape[] = {experts, rows, columns / GROUP, GROUP / 2};
    if (columns % GROUP || !has_shape(blocks, 4, shape) || !has_shape(scales, 3, shape))
        return false;
    blocks->type = SOURCE_MXFP4;
    blocks->scales = scales->bytes;
    blocks->scale_tensor = scales;
    blocks->rank = 2;
    blocks->shape[0] = experts * rows;
    blocks->shape[1] = columns;
    return true;
}

/* Exact: an integer of at most four bits times a power of two. */
static float read_mxfp4(const struct source_tensor *t, uint64_t index)
{
    unsigned code = *source_bytes(t, index / 2) >> (index % 2 ? 4 : 0) & 15, scale = t->scales[index / GROUP];
    return scale == 255 ? NAN : (float)integer_of_e2m1(code) * float_of_e8m0((uint8_t)scale);
}

void source_read(float *out, const struct source_tensor *t, uint64_t from, size_t n)
{
    if (t->type == SOURCE_F32) {
        memcpy(out, source_bytes(t, from * 4), n * 4);
        return;
    }
    if (t->type == SOURCE_MXFP4) {
        for (size_t i = 0; i < n; i++)
            out[i] = read_mxfp4(t, from + i);
        return;
    }
    const uint8_t *bytes = source_bytes(t, from * 2);
    for (size_t i = 0; i < n; i++) {
        uint16_t half; /* data may lie at any byte */
        memcpy(&half, bytes + i * 2, 2);
        out[i] = t->type == SOURCE_BF16 ? float_of_bf16(half) : float_of_f16(half);
    }
}
