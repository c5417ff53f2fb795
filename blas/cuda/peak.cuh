/* SPDX-License-Identifier: Apache-2.0 */
/* What this GPU can do at best: plain loops over the instructions that the other kernels are bound by. Included by
 * kernels.cu; `stele devices` and gpu-check measure shares of these rates. */

/* Reads all words, 16 bytes at a time. The result is written where it is a number that it never is. */
KERNEL(peak_read, struct args_peak, 256, 4)
{
    const uint64_t step = (uint64_t)a.blocks * 256;
    uint32_t all = 0;
    for (uint64_t i = (uint64_t)block_index() * 256 + thread_index(); i < a.count; i += 4 * step) {
        UNROLL for (uint32_t j = 0; j < 4; j++)
        {
            const uint64_t at = i + j * step;
            if (at < a.count) {
                const struct words4 v = load_once(a.words + at * 4);
                all ^= v.w[0] ^ v.w[1] ^ v.w[2] ^ v.w[3];
            }
        }
    }
    if (all == a.never)
        a.out[thread_index()] = all;
}

/* `count` rounds of eight products of mma, as a warp of the mma kernels makes them; with `scaled` each group's sums go
 * through the two fma that scales cost. */
DEVICE void peak_products(const struct args_peak *a, bool scaled)
{
    const uint32_t lane = thread_index() % 32;
    uint32_t w[4] = {lane * 0x01010101u, lane, ~lane, lane << 8}; /* no two products have the same factors */
    uint32_t q[8][2];
    const float scale = 0x1p-20f * (float)(lane + 1), magic = -(ROUND_MAGIC * scale);
    int32_t zero[4], sums[8][4];
    float acc[8][4], all = 0;
    UNROLL for (uint32_t i = 0; i < 32; i++)
    {
        acc[i / 4][i % 4] = 0;
        sums[i / 4][i % 4] = MMA_ZERO;
    }
    mma_zero(zero);
    UNROLL for (uint32_t i = 0; i < 8; i++)
    {
        q[i][0] = lane * 0x00010203u + i;
        q[i][1] = ~lane;
    }
    for (uint64_t n = 0; n < a->count; n++) {
        w[0] += 0x00010001u;
        UNROLL for (uint32_t i = 0; i < 8; i++)
        {
            if (scaled) {
                int32_t group[4];
                mma_s8(group, w, q[i], zero);
                UNROLL for (uint32_t j = 0; j < 4; j++) acc[i][j] =
                    fmaf(fmaf(float_of_bits((uint32_t)group[j]), scale, magic), scale, acc[i][j]);
            } else
                mma_s8(sums[i], w, q[i], sums[i]);
        }
    }
    UNROLL for (uint32_t i = 0; i < 32; i++) all =
        all + acc[i / 4][i % 4] + float_of_bits((uint32_t)sums[i / 4][i % 4]);
    if (float_bits(all) == a->never)
        a->out[thread_index()] = lane;
}

KERNEL(peak_mma, struct args_peak, 128, 4)
{
    peak_products(&a, false);
}

KERNEL(peak_scaled, struct args_peak, 128, 4)
{
    peak_products(&a, true);
}
