/* SPDX-License-Identifier: Apache-2.0 */
/* What the verbs that run a model share: opening the image and how its session is set up. */
#ifndef RUNTIME_CMD_SESSION_H
#define RUNTIME_CMD_SESSION_H

#include "cmd.h"
#include "stele.h"

struct cmd_session {
    uint64_t context, threads, chunk, vram;
    const char *device;
    int kv;
    bool verify;
};

extern struct cmd_session cmd_session;

/* Lines of an option table. */
#define CMD_CONTEXT_OPTION                                                                                                \
    {"--context", OPTION_COUNT, &cmd_session.context, "N",                                                                \
     "positions at most (default: what the model was trained for)", 1, 4294967295, NULL}
#define CMD_SESSION_OPTIONS                                                                                               \
    {"--kv", OPTION_CHOICE, &cmd_session.kv, NULL, "keys and values (default f32 for f32 images, else f16)", 0, 0,        \
     "f32|f16"},                                                                                                          \
    {"--chunk", OPTION_COUNT, &cmd_session.chunk, "N",                                                                   \
     "tokens of a step at most (default 512; of a model that arrives 2048)", 1, 65536, NULL},                            \
    {"--threads", OPTION_COUNT, &cmd_session.threads, "N", "default: the CPUs this process may use", 1, 256, NULL},       \
    {"--cpus", OPTION_CPUS, NULL, "LIST", "use these CPUs only, as \"0-3,8\"", 0, 0, NULL},                               \
    {"--device", OPTION_TEXT, &cmd_session.device, "NAME", "cpu (the default), cuda, cuda:N, or auto: a GPU where one is",\
     0, 0, NULL},                                                                                                         \
    {"--vram", OPTION_COUNT, &cmd_session.vram, "BYTES", "weights that a GPU keeps at most (default: as it has room for)", \
     1, 18446744073709551615.0, NULL},                                                                                    \
    {"--verify", OPTION_FLAG, &cmd_session.verify, NULL, "check every byte of the image first", 0, 0, NULL}

/* Opens the image, sets its guard for sentences of `verb`, and verifies it where that is asked for. What a reference names
 * and the store lacks is fetched. */
enum stele_status cmd_open_image(struct stele_image **out, const char *operand, const char *verb, struct stele_error *err);

/* Starts `stele-pull` for a reference and opens what it writes, at once; with --verify, when the store has it. */
enum stele_status cmd_fetch(struct stele_image **out, const char *reference, struct stele_error *err);

/* As the options say, but for what the verb sets itself. */
struct stele_options cmd_session_options(void);

#endif
