/* SPDX-License-Identifier: Apache-2.0 */
/* The tensors of a checkpoint: `model.safetensors`, or the shards that `model.safetensors.index.json` names.
 * Format: https://github.com/huggingface/safetensors ("Format"): 8 bytes length, JSON header, data.
 * Files are mapped, and bytes are read where they lie; or headers are handed in and the rest arrives (convert/pull). */
#ifndef CONVERT_SAFETENSORS_H
#define CONVERT_SAFETENSORS_H

#include <stddef.h>
#include <time.h>

#include "error.h"
#include "types.h"

enum source_type {
    SOURCE_F32,
    SOURCE_F16,
    SOURCE_BF16,
    SOURCE_MXFP4, /* two tensors of SOURCE_U8, joined by source_join_mxfp4() */
    SOURCE_U8,    /* bytes, whose meaning the model's family knows; no numbers by themselves */
    SOURCE_OTHER, /* readable header, numbers that stele has no use for; refused where a tensor is wanted */
};

/* The bytes of a checkpoint that arrives: byte `at` of all its files, one behind the other, is bytes[at % size] while it
 * is there. The memory is mapped twice in a row, so that a piece of up to `size` bytes is never cut. */
struct source_window {
    const uint8_t *bytes;
    uint64_t size;
};

struct source_tensor {
    char *name;
    const char *file;   /* base name of its shard */
    size_t shard;       /* its index */
    enum source_type type;
    char type_name[12]; /* as the header spells it */
    size_t rank;
    uint64_t shape[8];
    uint64_t at;          /* where its bytes begin: in its file; in all files where there is a window */
    const uint8_t *bytes; /* in the mapping; NULL: in the window */
    const struct source_window *window;
    const uint8_t *scales; /* of SOURCE_MXFP4: E8M0, one for 32 numbers */
    const struct source_tensor *scale_tensor; /* likewise: what they are read from */
    uint64_t length;
    bool used; /* set by whoever takes it; what nobody takes is reported */
};

struct source_file {
    char *name; /* base name */
    const uint8_t *bytes;  /* the mapping; NULL where there is none */
    const uint8_t *header; /* its first bytes: length, JSON */
    uint64_t length, header_length;
    struct timespec mtime;
    int fd;
};

struct checkpoint {
    const char *directory;
    struct source_file *files;
    size_t file_count;
    struct source_tensor *tensors; /* ascending by name */
    size_t tensor_count;
};

/* Opens the checkpoint in `directory` (which must live as long). STELE_INPUT names file, tensor and what is wrong. */
enum stele_status checkpoint_open(struct checkpoint *out, const char *directory, struct stele_error *err);
void checkpoint_close(struct checkpoint *checkpoint);

/* Fills in `header`, `header_length` and `length` of the files, whose names are known. The headers are the caller's. */
typedef enum stele_status source_headers(void *context, struct source_file *files, size_t count, struct stele_error *err);

/* The same for files that are elsewhere: the one named `single`, or where it is NULL those that the index in `directory`
 * names. */
enum stele_status checkpoint_open_headers(struct checkpoint *out, const char *directory, const char *single,
                                          source_headers *headers, void *context, struct stele_error *err);

/* STELE_OK if no file was changed since it was opened; else STELE_DAMAGED naming it. */
enum stele_status checkpoint_unchanged(const struct checkpoint *checkpoint, struct stele_error *err);

/* Bytes of a tensor from `offset` on. */
static inline const uint8_t *source_bytes(const struct source_tensor *t, uint64_t offset)
{
    return t->window ? t->window->bytes + (t->at + offset) % t->window->size : t->bytes + offset;
}

/* The tensor of that name, or NULL. */
struct source_tensor *checkpoint_find(const struct checkpoint *checkpoint, const char *name);

/* Makes of the bytes [experts][rows][columns / 32][16] of `blocks`, two E2M1 codes each, and of those
 * [experts][rows][columns / 32] of `scales` one tensor of numbers, [experts * rows][columns], in place of blocks. False, and
 * nothing is changed, where they are not such tensors. */
bool source_join_mxfp4(struct source_tensor *blocks, const struct source_tensor *scales, uint64_t experts, uint64_t rows,
                       uint64_t columns);

/* n numbers of a tensor from index `from` on, widened exactly. */
void source_read(float *out, const struct source_tensor *tensor, uint64_t from, size_t n);

#endif
