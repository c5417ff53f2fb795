/* SPDX-License-Identifier: Apache-2.0 */
/* `--stats`: one flat JSON object, the last line of stderr. Keys (DECISIONS, "Command"):
 *   first_op_ms, first_token_ms, exit_ms     from exec
 *   prefill_tokens, prefill_tokens_per_s, decode_tokens, decode_tokens_per_s
 *   mapped_bytes, private_dirty_bytes, kv_bytes, scratch_bytes
 *   experts, experts_used                    of all layers, where the model has any
 *   minor_faults, major_faults, threads, kernels, kv, seed
 *   device, map, vram_bytes, upload_ms       on a GPU: its name, how it reaches the weights, how much of them it keeps, and
 *                                            how long bringing that took (0: not all is there)
 *   date                                     that a chat template was given
 * A time that did not come is null. */
#ifndef RUNTIME_STATS_H
#define RUNTIME_STATS_H

#include "stele.h"

struct stats_line {
    const struct stele_result *result;
    struct stele_session_info session;
    uint64_t mapped_bytes, prefill_tokens, seed;
    const char *date; /* NULL: none */
};

void stats_print(const struct stats_line *line);

#endif
