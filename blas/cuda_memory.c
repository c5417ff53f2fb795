/* SPDX-License-Identifier: Apache-2.0 */
#include "cuda_memory.h"

#include "cuda/args.h"
#include "panel.h"

enum {
    BOUNCE_BYTES = 4 << 20, /* at least */
    KEPT_BYTES = 64 << 20,  /* at most */
};

uint64_t cuda_kv_blocks(const struct blas_setup *s)
{
    return (s->positions + KV_BLOCK - 1) / KV_BLOCK;
}

uint64_t cuda_scale_stride(uint64_t k)
{
    return round_up((k + GROUP - 1) / GROUP, BLOCK_GROUPS);
}

struct cuda_memory cuda_memory_of(const struct blas_setup *s)
{
    const uint64_t pairs = s->rows_max * (s->top_max ? s->top_max : 1);
    const uint64_t sequences = s->sequences < s->rows_max ? s->sequences : s->rows_max;
    const uint64_t kept = s->heads_max * (s->head_dim_max + 2) * sizeof(float), logits = s->vocabulary * sizeof(float);
    struct cuda_memory m = {
        .slots = s->scratch_numbers * sizeof(float),
        .q = pairs * round_up(s->k_max, GROUP),
        .q_scale = pairs * cuda_scale_stride(s->k_max) * sizeof(float),
        .small_logits = s->rows_max * round_up(s->experts_max + 1, PANEL_ROWS) * sizeof(float),
        .kept_blocks = 32 * cuda_kv_blocks(s),
        .input = round_up(s->rows_max * sizeof(struct step_row), 64) +
                 round_up(s->rows_max * s->rope_numbers * sizeof(float), 64) +
                 sequences * cuda_kv_blocks(s) * sizeof(uint32_t),
        .bounce = logits > BOUNCE_BYTES ? logits : BOUNCE_BYTES,
        .verdict = sizeof(uint64_t) + CUDA_EXPERTS_OPS_MAX * s->experts_max,
    };
    if (kept && KEPT_BYTES / kept < m.kept_blocks)
        m.kept_blocks = KEPT_BYTES / kept;
    m.kept = m.kept_blocks * kept;
    if (s->experts_max) {
        m.pairs = (pairs + 1) * sizeof(uint32_t);
        m.tiles = (pairs + s->experts_max) * sizeof(struct tile);
        m.gated = m.down = pairs * s->expert_width * sizeof(float);
    }
    return m;
}

uint64_t cuda_scratch_bytes(const struct blas_setup *s)
{
    const struct cuda_memory m = cuda_memory_of(s);
    return m.slots + m.q + m.q_scale + m.small_logits + m.pairs + m.tiles + m.gated + m.down + m.kept + m.input +
           m.bounce + m.verdict;
}
