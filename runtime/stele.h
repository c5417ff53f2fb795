/* SPDX-License-Identifier: Apache-2.0 */
/* libstele: whatever the command does, a C program can do through this header, and a Python one through ctypes.
 *
 *     image     a mapped model; read-only, shared by any number of sessions, threads and processes
 *     session   keys, values and scratch for sequences over one image; one thread at a time
 *     text      ids of text and back, over an image's vocabulary
 *     chat      conversations as the model reads them, by its own template
 *     generate  the loop: step, draw, stop
 *
 * Calls that can fail return an enum stele_status and fill *err (error.h; NULL is allowed). The library never prints, exits
 * or touches signals. Sizes are in bytes unless a name says otherwise. Ids are below stele_image_info.vocabulary.
 *
 * The surface has a version, which is also the number in libstele.so.1. Within it a program goes on running without being
 * built anew: functions and values of enums are added; none goes, changes its arguments or what it does; no struct grows and
 * no field moves. Structs, but for stele_error and those that come in arrays, end in reserved words: a caller leaves them
 * zero (STELE_USAGE where they are not: the program was built for a later stele), and the library fills in zeros. A new field
 * takes the place of such words, zero meaning what was so before. What does not fit in that is surface 2, whose library can
 * be installed beside this one. */
#ifndef STELE_H
#define STELE_H

#define STELE_SURFACE 1

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- images ---- */

struct stele_image;

/* Maps the image at `path` read-only and checks header and section table; touches no section. Where there is no such file
 * and `path` is a reference (hf:ORG/NAME, s3://, https://), it is the image that the store has of it, which `stele pull`
 * fetched; STELE_UNREACHABLE where it has none.
 * STELE_OK: *out owns the mapping until stele_image_close; views into it live as long.
 * Else: *out is NULL and err->text is one sentence naming file, section and offset. */
STELE_API enum stele_status stele_image_open(struct stele_image **out, const char *path, struct stele_error *err);

/* The same for a reference that the store lacks, while it is fetched: `channel` is one end of a socketpair(2) of type
 * SOCK_SEQPACKET, and a process that the caller started, `stele pull --arrival N REF`, has the other one as its descriptor N.
 * Ops wait until their weights are there, stele_logits until every digest of the image matched, stele_image_unchanged until
 * the store has it; what the writer ended with is returned there, in its words. Until it is in the store such an image is
 * not to be verified or described. `channel` is the image's, and is closed where the call fails. */
STELE_API enum stele_status stele_image_arrive(struct stele_image **out, const char *reference, int channel,
                                               struct stele_error *err);
STELE_API void stele_image_close(struct stele_image *image); /* NULL is allowed */

/* What an image says of itself, unchecked: numbers of a section that is missing or too short are 0. */
struct stele_image_info {
    const char *name;         /* the path it was opened by; lives as long as the image */
    char identity[33];        /* 32 hexadecimal digits: a digest of all but where it came from */
    char text_identity[33];   /* the same of its vocabulary, which makes the same ids of a text; "" where there is none */
    uint32_t format, numerics; /* versions */
    uint64_t bytes;           /* mapped */
    uint32_t vocabulary;      /* ids that the model reads and predicts: rows of its head */
    uint32_t tokens;          /* ids that text is made of; 0 without a vocabulary, else often other than `vocabulary` */
    uint32_t context;         /* positions it was trained for */
    uint32_t layers;
    uint64_t reserved[4];
};
STELE_API struct stele_image_info stele_image_info(const struct stele_image *image);
STELE_API const char *stele_image_name(const struct stele_image *image); /* info.name, and no page is touched */

enum stele_description {
    STELE_DESCRIBE_JSON,    /* all there is, as one object */
    STELE_DESCRIBE_SUMMARY, /* for people; control bytes in names are escaped */
    STELE_DESCRIBE_PLAN,
    STELE_DESCRIBE_TENSORS,
    STELE_DESCRIBE_RESIDENCY, /* which part is in memory; STELE_SYSTEM where the kernel does not say */
};

/* What the image holds as text: *text is malloc'ed UTF-8 with a NUL behind its *bytes, the caller frees it. No weight is
 * read. */
STELE_API enum stele_status stele_image_describe(const struct stele_image *image, enum stele_description form, char **text,
                                                 size_t *bytes, struct stele_error *err);

/* Reads every byte and compares it with the digests in the image. STELE_DAMAGED names section and chunk. */
STELE_API enum stele_status stele_image_verify(const struct stele_image *image, struct stele_error *err);

/* Where an image is not what it was: bytes [offset, offset + bytes) of the file are not all right. */
struct stele_damage {
    const char *section; /* NULL: header, section table, or between sections */
    uint64_t offset, bytes;
    uint64_t reserved[2];
};

/* The same, telling how far it is: `progress` (NULL is allowed) is called after each 2 MiB or less. *damage (NULL is
 * allowed) is filled where STELE_DAMAGED is returned. */
STELE_API enum stele_status stele_image_verify_watched(const struct stele_image *image,
                                                       void (*progress)(void *context, uint64_t done, uint64_t bytes),
                                                       void *context, struct stele_damage *damage, struct stele_error *err);

/* Reads the whole image into the page cache, front to back, so that large pages are left behind; `anew`: what is there
 * already is dropped first, as far as no process has it mapped. `progress` as above. */
STELE_API enum stele_status stele_image_warm(const struct stele_image *image, bool anew,
                                             void (*progress)(void *context, uint64_t done, uint64_t bytes), void *context,
                                             struct stele_error *err);

/* Whether the file is still the one that was opened; to be asked before an answer is trusted. */
STELE_API enum stele_status stele_image_unchanged(const struct stele_image *image, struct stele_error *err);

/* For a handler of SIGBUS, and safe there: what an access at `address` says. STELE_OK: it is none of the image's;
 * STELE_DAMAGED: the file is shorter than it was; STELE_SYSTEM: reading it failed. */
STELE_API enum stele_status stele_image_fault(const struct stele_image *image, const void *address);

/* ---- GPUs ---- */

struct stele_gpu {
    char name[256];
    uint64_t bytes, free_bytes;
    uint32_t major, minor;  /* compute capability */
    double bus;             /* bytes a second from pinned memory, measured */
    double memory;          /* bytes a second that a kernel reads of its memory, measured */
    double products;        /* int8 multiply-adds a second of the tensor cores, measured; and with the scales of q8, which */
    double products_scaled; /* exact results take: the most that a prefill could reach */
    const char *map;        /* how it reaches an image on a disk's file system: "host", "register" or "ring" */
    char why[512];          /* why in none of the ways before that one; "" where it is the first */
    uint64_t reserved[4];
};

/* How many GPUs there are. STELE_SYSTEM: why none can be used. */
STELE_API enum stele_status stele_gpus(uint32_t *count, struct stele_error *err);

/* Looks at GPU `index`, which takes a fraction of a second. */
STELE_API enum stele_status stele_gpu_look(struct stele_gpu *out, uint32_t index, struct stele_error *err);

/* ---- sessions ---- */

struct stele_session;

enum stele_kv { STELE_KV_DEFAULT = 0, STELE_KV_F32 = 1, STELE_KV_F16 = 2 };

/* All zero is a good default. */
struct stele_options {
    uint32_t threads;    /* 0: the CPUs of the affinity mask, as far as the control group's quota goes */
    uint32_t context;    /* positions; 0: what the model was trained for; more than that is refused */
    uint32_t sequences;  /* 0: one */
    uint32_t chunk;      /* rows of a step at most; 0: 512, of an image that arrives 2048 */
    enum stele_kv kv;    /* default: f32 for f32 images, else f16 */
    const char *kernels; /* NULL: the fastest that the CPU runs; "generic", "avx2", "avx512", "neon" */
    const char *device;  /* NULL or "cpu"; "cuda", "cuda:1": a GPU; "auto": a GPU where one can be used */
    uint64_t vram;       /* bytes of weights that a GPU may keep; 0: as it has room for */
    uint64_t reserved[4];
};

/* Confines the calling thread, and threads that start from it, those of sessions too, to the CPUs of a list as "0-3,8".
 * STELE_USAGE: it is no list, or names a CPU that the process may not use. */
STELE_API enum stele_status stele_confine(const char *cpus, struct stele_error *err);

/* Reserves keys, values and scratch; memory is touched as it fills. The image must outlive the session. `options` NULL: all
 * zero. */
STELE_API enum stele_status stele_session_open(struct stele_session **out, const struct stele_image *image,
                                               const struct stele_options *options, struct stele_error *err);
STELE_API void stele_session_close(struct stele_session *session); /* NULL is allowed */

/* A part of a sequence to compute: ids of the positions [first, first + count). Positions below `first` were computed
 * before. Rows from index logits_from on (count: none) have logits. */
struct stele_slice {
    uint32_t sequence;
    uint32_t first;
    uint32_t count;
    uint32_t logits_from;
    const uint32_t *ids;
};

/* Computes the slices, of together at most stele_session_info.chunk rows. STELE_USAGE: an id or position out of range;
 * STELE_DAMAGED: keys or values that the KV type does not hold. */
STELE_API enum stele_status stele_step(struct stele_session *session, const struct stele_slice *slices, size_t n,
                                       struct stele_error *err);

/* Logits of the last step: rows [from, from + count) of those that have them, slice by slice, into
 * out[count][vocabulary]. STELE_DAMAGED where one is not finite: names position and the first op that made it. */
STELE_API enum stele_status stele_logits(struct stele_session *session, size_t from, size_t count, float *out,
                                         struct stele_error *err);

/* Makes sequence `to` a branch of the first `positions` of sequence `from`, which were computed: its text goes on behind
 * them. They lie in memory once; as long as the branch is one, `from` cannot compute them anew (STELE_USAGE), and `to` not
 * at all. A branch of no positions begins anew. */
STELE_API enum stele_status stele_branch(struct stele_session *session, uint32_t to, uint32_t from, uint32_t positions,
                                         struct stele_error *err);

struct stele_session_info {
    uint32_t vocabulary; /* rows of the head */
    uint32_t context;
    uint32_t chunk;
    uint32_t threads;
    const char *kernels;
    const char *kv; /* "f32" or "f16" */
    uint64_t kv_bytes, scratch_bytes; /* reserved */
    uint64_t experts, experts_used;   /* of all layers; those that a row was sent to so far */
    double first_op; /* CLOCK_MONOTONIC seconds when the first op began; 0 before */
    const char *device;  /* "cpu", or the GPU's name */
    const char *map;     /* how a GPU reaches the weights: "host", "register", "remap", "ring"; NULL: it is the CPU */
    uint64_t vram_bytes; /* of weights that it keeps */
    double upload;       /* seconds that bringing these took, once all are there; 0 before */
    uint64_t gpu_scratch_bytes; /* what scratch_bytes is, or would be, on a GPU */
    uint64_t reserved[1];
};
STELE_API struct stele_session_info stele_session_info(const struct stele_session *session);

/* ---- scoring ---- */

/* A continuation of an item's prompt, of one id at least. */
struct stele_branch_ids {
    const uint32_t *ids;
    size_t count;
    double logprob; /* out: of its ids together, behind the prompt */
};

struct stele_item {
    const uint32_t *prompt; /* one id at least */
    size_t prompt_count;
    struct stele_branch_ids *branches;
    size_t branch_count;
};

/* Computes ids once, as a beginning that items of stele_score share; they replace those of the last call. Takes sequence 0
 * of the session. */
STELE_API enum stele_status stele_keep(struct stele_session *session, const uint32_t *ids, size_t count,
                                       struct stele_error *err);

/* Fills in the branches' logprob: the prompts, less what is kept of them, and then the branches as branches of them, as many
 * in a step as chunk and sequences allow, so a session of few sequences is slow at this; 3 are needed. The result is the
 * same bits in any company. STELE_USAGE: prompt and branch are longer than the context, or an id is out of range. */
STELE_API enum stele_status stele_score(struct stele_session *session, struct stele_item *items, size_t n,
                                        struct stele_error *err);

/* ---- probabilities ---- */

/* Natural logarithms of the probabilities that a row of logits gives to ids: out[i] is that of ids[i]. STELE_USAGE: an id
 * is out of range. */
STELE_API enum stele_status stele_logprobs(const struct stele_session *session, const float *row, const uint32_t *ids,
                                           size_t count, float *out, struct stele_error *err);

/* The ids of a row's largest logits, largest first, of equal ones the lower id first. Returns how many: `count`, or the
 * vocabulary where that is less. */
STELE_API size_t stele_top(const struct stele_session *session, const float *row, uint32_t *ids, size_t count);

/* ---- text ---- */

/* What these calls allocate is NULL where they fail. */

enum stele_text_flags {
    STELE_TEXT_BARE = 1,  /* without what the post-processor adds */
    STELE_TEXT_PLAIN = 2, /* added tokens spelled in the text are plain text */
};

/* Ids of UTF-8 text into *ids (malloc'ed, the caller frees). STELE_INPUT: text that is no UTF-8, or an image without a
 * vocabulary. */
STELE_API enum stele_status stele_tokenize(const struct stele_image *image, const char *text, size_t bytes,
                                           unsigned flags, uint32_t **ids, size_t *count, struct stele_error *err);

/* Text of ids into *text (malloc'ed, not NUL-terminated, the caller frees). */
STELE_API enum stele_status stele_detokenize(const struct stele_image *image, const uint32_t *ids, size_t count,
                                             bool skip_special, char **text, size_t *bytes, struct stele_error *err);

/* The bytes that one token stands for by itself into *piece (malloc'ed, not NUL-terminated, the caller frees); they need
 * not be UTF-8. An id beyond the vocabulary has none. */
STELE_API enum stele_status stele_token_text(const struct stele_image *image, uint32_t id, char **piece, size_t *bytes,
                                             struct stele_error *err);

STELE_API bool stele_has_text(const struct stele_image *image); /* a vocabulary is there */

/* ---- conversations ---- */

/* What a chat template is run over; all that is zero was not given. The messages are those of `json`, `system` put in
 * front and `user` behind, one at least. */
struct stele_chat {
    const char *json;             /* a list of messages, or an object with `messages`, `tools`, `documents` */
    size_t json_bytes;
    const char *json_name;        /* of the text in sentences: its file */
    const char *system;
    const char *user;
    size_t system_bytes, user_bytes;
    const char *const *arguments; /* "NAME=JSON": what the template reads; also add_generation_prompt, true unless said or
                                   * something is continued, and continue_final_message */
    size_t argument_count;
    const char *template_name;    /* else "tool_use" where there are tools and such a template, else "default" */
    const struct tm *now;         /* what the template takes for the time; NULL: the local time */
    uint64_t reserved[4];
};

/* A conversation as the model reads it, and for each byte whether it is content: what messages, tools and arguments
 * brought, not the template. */
struct stele_rendered {
    char *text;       /* UTF-8, not NUL-terminated; owned */
    uint8_t *content; /* [bytes], 0 or 1; owned */
    size_t bytes;
    bool thinking;    /* it ends where the model is thinking: behind the mark that begins it */
    uint64_t reserved[2];
};

/* To the byte what transformers' apply_chat_template gives. STELE_USAGE: what is asked for fits no template (no messages,
 * nothing to continue); STELE_INPUT: JSON that is malformed, or the template refuses: its own sentence, or what in it went
 * wrong. *out is then all zero. */
STELE_API enum stele_status stele_render(struct stele_rendered *out, const struct stele_image *image,
                                         const struct stele_chat *chat, struct stele_error *err);
STELE_API void stele_rendered_free(struct stele_rendered *rendered);

/* Ids of a rendered conversation. Control tokens that content spells are text; with `trust_content` they are read as
 * transformers reads them. *ids is malloc'ed, the caller frees it. */
STELE_API enum stele_status stele_tokenize_rendered(const struct stele_image *image, const struct stele_rendered *rendered,
                                                    bool trust_content, uint32_t **ids, size_t *count,
                                                    struct stele_error *err);

STELE_API bool stele_has_template(const struct stele_image *image); /* the model has a chat template */

/* ---- generation ---- */

/* Sampling in transformers' order: repetition penalty, temperature, top-k, top-p, min-p. A field that is 0 is off;
 * temperature 0 is greedy, ties going to the lower id. */
struct stele_sampling {
    float temperature;
    float top_p;
    float min_p;
    float repeat_penalty;
    uint32_t top_k;
    uint64_t seed;
    uint64_t reserved[2];
};

/* The sampling that the model's makers set (seed 0). */
STELE_API struct stele_sampling stele_default_sampling(const struct stele_image *image);

/* Ids that end a text; a view into the image. */
STELE_API const uint32_t *stele_stop_ids(const struct stele_image *image, size_t *count);

enum stele_finish { STELE_FINISH_STOP, STELE_FINISH_LENGTH, STELE_FINISH_CONTEXT, STELE_FINISH_CALLER };

struct stele_generation {
    const uint32_t *prompt;
    size_t prompt_count;        /* at least 1, at most the context */
    uint64_t tokens_max;        /* UINT64_MAX: until end of text or a full context */
    struct stele_sampling sampling;
    const char *const *stops;   /* texts that end the answer, themselves left out */
    size_t stop_count;
    bool text;                  /* deliver text; else only ids (an image without a vocabulary) */
    bool thinking;              /* what the model writes between its thinking marks goes to `think`, not to `deliver` */
    bool thinking_begun;        /* the prompt ends inside them: stele_rendered.thinking */

    /* Called with each token as it is drawn (NULL: nobody is; ids of end of text are not delivered) and the text that has become certain,
     * which may be empty: it is UTF-8, never cut in a character. Returning false ends the generation. */
    bool (*deliver)(void *context, const uint32_t *ids, size_t count, const char *text, size_t bytes);
    bool (*think)(void *context, const char *text, size_t bytes); /* NULL: it is dropped */
    void *context;
    uint64_t reserved[6];
};

struct stele_result {
    enum stele_finish finish;
    uint64_t tokens; /* drawn, that of end of text included */
    double prefill_begin, prefill_end, first_token, end; /* CLOCK_MONOTONIC seconds; 0 where it did not come to it */
    uint64_t reserved[4];
};

/* Runs sequence 0 of the session from position 0. A full context is STELE_FULL after everything was delivered. */
STELE_API enum stele_status stele_generate(struct stele_session *session, const struct stele_generation *generation,
                                           struct stele_result *result, struct stele_error *err);

STELE_API const char *stele_version(void);      /* "0.1.0" */
STELE_API unsigned stele_surface_version(void); /* STELE_SURFACE of the library that runs */

#ifdef __cplusplus
}
#endif

#endif
