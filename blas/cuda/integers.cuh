/* SPDX-License-Identifier: Apache-2.0 */
/* Products of quantised panels with rows of activations; included by kernels.cu. A group of 32 along k is one mma,
 * whose sums are exact integers, then two fma for each number. A warp has a pair of panels and 8 rows of x (an octet)
 * to an mma; its lane is (group, part) = (lane / 4, lane % 4), as PTX names them:
 *
 *     rows     4 * (group % 4) .. + 3 of panel group / 4: 16 bytes of a k-line. One mma takes the first two of each
 *              lane's, another the other two
 *     k        lines 2 * part and 2 * part + 1 (of 4 bits: line `part` of two), and 8 bytes of x at 8 * part
 *     results  its four rows times rows 2 * part and 2 * part + 1 of an octet: chains that stay in the lane
 *
 * dot_TYPE_8 and _32 are for few rows and bound by reading the panels: a warp takes a block of 256 along k, the sums of
 * blocks meet in shared memory and are added upwards. dot_TYPE_128 is for many: eight panels and 128 rows of x pass
 * through shared memory, group by group, and blocks come one after another in each warp. */

enum {
    PAIR = 2 * PANEL_ROWS, /* rows of weights that a warp has */
    OCTET = 8,             /* rows of x of an mma */
    STAGES = 4,            /* groups on their way */
    SCALE_STRIDE = 12,     /* numbers: 8 scales of a row, and no two rows of an octet in the same banks */
};

/* The sums begin at the bits of 1.5 * 2^23, so that they are floats as they come (NUMBERS.md, "Side doors"). */
#define MMA_ZERO 0x4b400000

DEVICE void mma_zero(int32_t zero[4])
{
    UNROLL for (uint32_t i = 0; i < 4; i++)
    {
        zero[i] = MMA_ZERO;
        KEEP(zero[i]);
    }
}

/* A lane's weights of a group: k-line, row. Times `scale` a row's sum is less `magic`, which is scale * 1.5 * 2^23. Of
 * q4 each half of a group has scales of its own. */
struct lane_weights {
    uint32_t w[2][4];
    float scale[2][4], magic[4];
};

/* Byte r of a word of signed bytes: with its top bit flipped it is the last of the bits of 2^23 + 128 + byte. */
DEVICE float float_of_int8(uint32_t word, uint32_t r)
{
    return float_of_bits(pick_bytes(word ^ 0x80808080u, 0x4b000000u, 0x7440u | r)) - 0x1.0001p23f;
}

/* The scales of group g; `at`: those of the lane's rows in the first group of the block. */
DEVICE void lane_scales(enum tensor_type type, const uint8_t *at, uint32_t g, struct lane_weights *out)
{
    if (type == TENSOR_Q8) {
        const uint64_t four = *(const uint64_t *)(const void *)(at + block_scale(type, 0, g));
        UNROLL for (uint32_t r = 0; r < 4; r++) out->scale[0][r] = widen_f16((uint16_t)(four >> 16 * r));
    } else {
        UNROLL for (uint32_t half = 0; half < type_scales(type); half++)
        {
            const uint32_t four =
                *(const uint32_t *)(const void *)(at + block_scale(type, 0, g * type_scales(type) + half));
            UNROLL for (uint32_t r = 0; r < 4; r++) out->scale[half][r] =
                type == TENSOR_Q4 ? float_of_int8(four, r) : float_of_e8m0((uint8_t)(four >> 8 * r));
        }
    }
    UNROLL for (uint32_t r = 0; r < 4; r++) out->magic[r] = -(ROUND_MAGIC * out->scale[0][r]);
}

/* Weights as they are stored: two k-lines; of 4 bits both are in the first. */
DEVICE void unpack(enum tensor_type type, const struct words4 stored[2], const uint32_t table[4], uint32_t w[2][4])
{
    UNROLL for (uint32_t r = 0; r < 4; r++)
    {
        if (type == TENSOR_Q8) {
            w[0][r] = signed_q8(stored[0].w[r]);
            w[1][r] = signed_q8(stored[1].w[r]);
        } else {
            uint32_t both[2];
            signed_nibbles(stored[0].w[r], table, both);
            w[0][r] = both[0];
            w[1][r] = both[1];
        }
    }
}

/* One group of the lane's eight chains of an octet. */
DEVICE void chain_octet(enum tensor_type type, const struct lane_weights *w, const uint32_t x[2], const float as[2],
                        const int32_t zero[4], float acc[4][2])
{
    UNROLL for (uint32_t h = 0; h < 2; h++)
    {
        const uint32_t a[4] = {w->w[0][2 * h], w->w[0][2 * h + 1], w->w[1][2 * h], w->w[1][2 * h + 1]};
        int32_t first[4], second[4];
        if (type == TENSOR_Q4) { /* parts 0 and 1 have the first half of a group, 2 and 3 the second */
            const uint32_t low = thread_index() % 4 < 2 ? 0xffffffffu : 0;
            const uint32_t x0[2] = {x[0] & low, x[1] & low}, x1[2] = {x[0] & ~low, x[1] & ~low};
            mma_s8(first, a, x0, zero);
            mma_s8(second, a, x1, zero);
        } else
            mma_s8(first, a, x, zero);
        UNROLL for (uint32_t i = 0; i < 4; i++)
        {
            const uint32_t r = 2 * h + i / 2;
            float product = fmaf(float_of_bits((uint32_t)first[i]), w->scale[0][r], w->magic[r]);
            if (type == TENSOR_Q4)
                product = fmaf(float_of_bits((uint32_t)second[i]) - ROUND_MAGIC, w->scale[1][r], product);
            acc[r][i % 2] = fmaf(product, as[i % 2], acc[r][i % 2]);
        }
    }
}

/* The k-lines of 16 bytes that a lane reads of a group, and the bytes of a group of a panel. */
DEVICE uint32_t lane_lines(enum tensor_type type)
{
    return type == TENSOR_Q8 ? 2 : 1;
}

DEVICE uint32_t group_bytes(enum tensor_type type)
{
    return GROUP * PANEL_ROWS / (type_nibbles(type) ? 2 : 1);
}

/* Panel i of those from `first` on. One behind the last is the first: computed, not kept. */
DEVICE const uint8_t *panel_at(const struct args_dot *a, const struct tile *t, uint32_t first, uint32_t i)
{
    const uint32_t panel = first + i < a->n_panels ? first + i : first;
    return a->panels + t->expert * a->bank_stride + panel * a->panel_bytes;
}

/* What follows the sum of row `lane` of a pair of panels, for row x of the tile. All lanes come. */
DEVICE void finish_pair(const struct args_dot *a, enum tensor_type type, const struct tile *t, uint32_t first,
                        uint32_t x, float sum)
{
    const uint32_t lane = thread_index() % 32, p = lane / PANEL_ROWS, row16 = lane % PANEL_ROWS;
    const float y = row_scaled(type, panel_at(a, t, first, p), row16, sum);
    const float up = a->gate >= 0 ? xor_float(y, PANEL_ROWS) : 0;
    if (x < t->count && first + p < a->n_panels && (a->gate < 0 || p == 0))
        finish(a, t, tile_row(a, t, x), first + p, row16, y, up);
}

/* ---- few rows ---- */

/* A thread's own 16 bytes, two of them, of the groups on their way; and the scales of a warp's pair of panels, of two
 * blocks in turn. */
struct few_memory {
    struct words4 *lines; /* [STAGES][2][threads] */
    uint8_t *scales;      /* [warps][2][2][256] */
    float *sums;          /* [warps][row of x][PAIR] */
};

/* A block along k of a warp's pair of panels: what a lane brings of it. No groups: there is none. */
struct few_item {
    const uint8_t *lines, *scales;
    uint32_t groups, scale_bytes;
};

/* What a lane has: the panel of its rows, that of the scales that it brings, and rows of x: of integers row `group` of
 * an octet, of scales rows 2 * part and + 1. */
struct few_lane {
    const uint8_t *panel, *scales;
    const int8_t *q[4];
    const float *scale[4][2];
};

DEVICE struct few_item few_item_of(const struct args_dot *a, enum tensor_type type, const struct few_lane *l, size_t b)
{
    const uint32_t lane = thread_index() % 32, part = lane % 4, quad = lane / 4 % 4;
    struct few_item item = {NULL, NULL, 0, 0};
    if (b * DOT_BLOCK < a->k) {
        size_t groups, offset = panel_block(type, a->k, b, &groups);
        item.groups = (uint32_t)groups;
        item.scale_bytes = (uint32_t)block_scale_bytes(type, groups);
        item.lines = l->panel + offset + item.scale_bytes + part * lane_lines(type) * 64 + quad * 16;
        item.scales = l->scales + offset + lane % 16 * 16;
    }
    return item;
}

/* Begins to bring group g of an item, with the first the scales of all, to the half `turn` of their room. */
DEVICE void few_bring(enum tensor_type type, uint32_t warps, const struct few_memory *m, const struct few_item *item,
                      uint32_t g, uint32_t turn)
{
    const uint32_t thread = thread_index(), lane = thread % 32;
    if (g < item->groups) {
        UNROLL for (uint32_t j = 0; j < lane_lines(type); j++)
            copy_async(&m->lines[(g % STAGES * 2 + j) * warps * 32 + thread],
                       item->lines + g * group_bytes(type) + j * 64);
        if (g == 0 && lane % 16 * 16 < item->scale_bytes)
            copy_async(m->scales + ((thread / 32 * 2 + turn) * 2 + lane / 16) * 256 + lane % 16 * 16, item->scales);
    }
    copy_commit();
}

/* The chains of block b of a pair of panels. The groups of the warp's next block follow without a pause. */
DEVICE void few_block(enum tensor_type type, uint32_t octets, uint32_t warps, const struct few_memory *m,
                      const struct few_lane *l, uint64_t b, const struct few_item *item, const struct few_item *next,
                      uint32_t turn, float acc[4][4][2])
{
    const uint32_t thread = thread_index(), group = thread / 4 % 8;
    const uint8_t *scales =
        m->scales + ((thread / 32 * 2 + turn) * 2 + group / 4) * 256 + block_scale(type, group % 4 * 4, 0);
    const int8_t *q[4];
    const float *scale[4][2];
    int32_t zero[4];
    uint32_t table[4];
    code_table(type, table);
    mma_zero(zero);
    UNROLL for (uint32_t o = 0; o < octets; o++)
    {
        q[o] = l->q[o] + b * DOT_BLOCK;
        UNROLL for (uint32_t c = 0; c < 2; c++) scale[o][c] = l->scale[o][c] + b * BLOCK_GROUPS;
    }
    UNROLL for (uint32_t g = 0; g < BLOCK_GROUPS; g++)
    {
        if (g < item->groups) {
            struct words4 stored[2];
            struct lane_weights w;
            copy_wait(STAGES - 2);
            if (g == 0)
                sync_warp(); /* scales are there for all lanes, and nobody needs those of the block before */
            UNROLL for (uint32_t j = 0; j < lane_lines(type); j++) stored[j] =
                m->lines[(g % STAGES * 2 + j) * warps * 32 + thread];
            if (g + STAGES - 1 < BLOCK_GROUPS)
                few_bring(type, warps, m, item, g + STAGES - 1, turn);
            else
                few_bring(type, warps, m, next, g + STAGES - 1 - BLOCK_GROUPS, 1 - turn);
            unpack(type, stored, table, w.w);
            lane_scales(type, scales, g, &w);
            UNROLL for (uint32_t o = 0; o < octets; o++)
            {
                const uint64_t both = *(const uint64_t *)(const void *)(q[o] + g * GROUP);
                const uint32_t words[2] = {(uint32_t)both, (uint32_t)(both >> 32)};
                const float as[2] = {scale[o][0][g], scale[o][1][g]};
                chain_octet(type, &w, words, as, zero, acc[o]);
            }
        }
    }
}

/* A block of a pair of panels and `octets` octets of rows. In a round each warp has a block along k. */
DEVICE void few_rows(const struct args_dot *a, enum tensor_type type, uint32_t octets, uint32_t warps,
                     const struct few_memory *m)
{
    const uint32_t thread = thread_index(), lane = thread % 32, warp = thread / 32, numbers = octets * OCTET * PAIR;
    const uint32_t group = lane / 4, part = lane % 4, first = block_index() / a->tiles * 2;
    const uint32_t each = numbers / (warps * 32); /* numbers of a thread */
    const uint64_t blocks = (a->k + DOT_BLOCK - 1) / DOT_BLOCK;
    const struct tile t = tile_of(a, block_index() % a->tiles, octets * OCTET);
    struct few_lane l;
    float running[8];
    if (!t.count)
        return;
    l.panel = panel_at(a, &t, first, group / 4);
    l.scales = panel_at(a, &t, first, lane / 16);
    UNROLL for (uint32_t o = 0; o < octets; o++)
    {
        l.q[o] = a->q + (uint64_t)(tile_row(a, &t, o * OCTET + group) / a->divisor) * a->q_stride + part * 8;
        UNROLL for (uint32_t c = 0; c < 2; c++) l.scale[o][c] =
            a->q_scale + (uint64_t)(tile_row(a, &t, o * OCTET + part * 2 + c) / a->divisor) * a->scale_stride;
    }
    struct few_item item = few_item_of(a, type, &l, warp);
    UNROLL for (uint32_t g = 0; g < STAGES - 1; g++) few_bring(type, warps, m, &item, g, 0);
    for (uint64_t from = 0; from < blocks; from += warps) {
        if (from)
            sync_block(); /* before sums are written anew */
        if (item.groups) {
            const struct few_item next = few_item_of(a, type, &l, from + warps + warp);
            float acc[4][4][2];
            UNROLL for (uint32_t i = 0; i < octets * OCTET; i++) acc[i / 8][i / 2 % 4][i % 2] = 0;
            few_block(type, octets, warps, m, &l, from + warp, &item, &next, (uint32_t)(from / warps % 2), acc);
            item = next;
            UNROLL for (uint32_t i = 0; i < octets * OCTET; i++)
            {
                const uint32_t o = i / 8, r = i / 2 % 4, c = i % 2;
                m->sums[warp * numbers + (o * OCTET + part * 2 + c) * PAIR + group * 4 + r] = acc[o][r][c];
            }
        }
        sync_block();
        UNROLL for (uint32_t i = 0; i < each; i++)
        {
            for (uint32_t b = 0; b < warps && from + b < blocks; b++) {
                const float sum = m->sums[b * numbers + i * warps * 32 + thread];
                running[i] = from || b ? running[i] + sum : sum;
            }
        }
    }
    copy_wait(0);
    UNROLL for (uint32_t i = 0; i < each; i++) finish_pair(a, type, &t, first, i * warps + warp, running[i]);
}

/* ---- many rows ---- */

struct tile_memory {
    uint8_t weights[STAGES][TILE_PANELS][512]; /* 16 bytes at tile_place of each */
    int8_t x[STAGES][TILE_ROWS][GROUP];
    uint8_t scales[2][TILE_PANELS][256]; /* of two blocks along k in turn */
    float x_scales[2][TILE_ROWS][SCALE_STRIDE];
};

/* What a thread brings of a block along k, 16 bytes each: of a panel's group, of a panel's scales, of a row of x, of
 * its scales. No groups: there is no such block. */
struct tile_source {
    const uint8_t *lines, *scales;
    const int8_t *x;
    const float *x_scales;
    uint32_t groups, scale_bytes;
};

/* Where line `line` and quad `quad` of a group lie in shared memory: so that the lanes of a quarter of a warp, two
 * quads and four lines, read of all banks. Lines that are not next to each other, 2 * part, are made to be. */
DEVICE uint32_t tile_place(enum tensor_type type, uint32_t line, uint32_t quad)
{
    const uint32_t at = type == TENSOR_Q8 ? line / 2 + line % 2 * 4 : line;
    return (at * 4 + (quad ^ (at & 2))) * 16;
}

/* `panel`: of the lines that the thread brings; `scales`: of its scales. */
DEVICE struct tile_source tile_source_of(const struct args_dot *a, enum tensor_type type, const uint8_t *panel,
                                         const uint8_t *scales, uint64_t row, uint64_t b)
{
    const uint32_t thread = thread_index(), chunk = thread % (group_bytes(type) / 16);
    struct tile_source from = {NULL, NULL, NULL, NULL, 0, 0};
    if (b * DOT_BLOCK < a->k) {
        size_t groups, offset = panel_block(type, a->k, b, &groups);
        from.groups = (uint32_t)groups;
        from.scale_bytes = (uint32_t)block_scale_bytes(type, groups);
        from.lines = panel + offset + from.scale_bytes + chunk * 16;
        from.scales = scales + offset + thread % 16 * 16;
        from.x = a->q + row * a->q_stride + b * DOT_BLOCK + thread % 2 * 16;
        from.x_scales = a->q_scale + row * a->scale_stride + b * BLOCK_GROUPS + thread % 2 * 4;
    }
    return from;
}

/* Begins to bring group g of a block, with the first the scales of all, to the half `turn` of their room. */
DEVICE void tile_bring(enum tensor_type type, struct tile_memory *m, const struct tile_source *from, uint32_t g,
                       uint32_t turn)
{
    const uint32_t thread = thread_index(), chunks = group_bytes(type) / 16;
    if (g < from->groups) {
        if (thread < TILE_PANELS * chunks)
            copy_async(m->weights[g % STAGES][thread / chunks] + tile_place(type, thread % chunks / 4, thread % 4),
                       from->lines + g * group_bytes(type));
        copy_async(&m->x[g % STAGES][thread / 2][thread % 2 * 16], from->x + g * GROUP);
        if (g == 0) {
            if (thread < TILE_PANELS * 16 && thread % 16 * 16 < from->scale_bytes)
                copy_async(m->scales[turn][thread / 16] + thread % 16 * 16, from->scales);
            copy_async(&m->x_scales[turn][thread / 2][thread % 2 * 4], from->x_scales);
        }
    }
    copy_commit();
}

/* Where a lane reads in the tile's memory, in bytes: of its first k-line, of its row of x in the first octet, and of
 * scales where `turn` is 0. */
struct tile_lane {
    uint32_t lines, x, scales, x_scales;
};

/* Group g of a warp's chains: its pair of panels and eight octets. */
DEVICE void tile_group(enum tensor_type type, const struct tile_memory *m, const struct tile_lane *l, uint32_t g,
                       uint32_t turn, const uint32_t table[4], const int32_t zero[4], float acc[8][4][2])
{
    const uint8_t *memory = (const uint8_t *)m, *lines = memory + l->lines + g % STAGES * sizeof m->weights[0];
    const uint8_t *x = memory + l->x + g % STAGES * sizeof m->x[0];
    const float *x_scales = (const float *)(const void *)(memory + l->x_scales + turn * sizeof m->x_scales[0]);
    struct words4 stored[2];
    struct lane_weights w;
    stored[0] = *(const struct words4 *)(const void *)lines;
    if (type == TENSOR_Q8)
        stored[1] = *(const struct words4 *)(const void *)(lines + 256); /* four places on: tile_place */
    unpack(type, stored, table, w.w);
    lane_scales(type, memory + l->scales + turn * sizeof m->scales[0], g, &w);
    UNROLL for (uint32_t o = 0; o < 8; o++)
    {
        const uint64_t both = *(const uint64_t *)(const void *)(x + o * OCTET * GROUP);
        const uint32_t words[2] = {(uint32_t)both, (uint32_t)(both >> 32)};
        const float as[2] = {x_scales[o * OCTET * SCALE_STRIDE + g], x_scales[(o * OCTET + 1) * SCALE_STRIDE + g]};
        chain_octet(type, &w, words, as, zero, acc[o]);
    }
}

/* The lane's place in its warp's pair of panels and half of the rows; kept, since working it out anew for each group
 * takes longer than the group's loads. */
DEVICE struct tile_lane tile_lane_of(enum tensor_type type, const struct tile_memory *m, uint32_t pair, uint32_t rows)
{
    const uint32_t lane = thread_index() % 32, group = lane / 4, part = lane % 4, panel = pair * 2 + group / 4;
    struct tile_lane l;
    l.lines = (uint32_t)offsetof(struct tile_memory, weights) + panel * (uint32_t)sizeof m->weights[0][0] +
              tile_place(type, part * lane_lines(type), group % 4);
    l.x = (uint32_t)offsetof(struct tile_memory, x) + (rows + group) * GROUP + part * 8;
    l.scales = (uint32_t)offsetof(struct tile_memory, scales) + panel * (uint32_t)sizeof m->scales[0][0] +
               (uint32_t)block_scale(type, group % 4 * 4, 0);
    l.x_scales = (uint32_t)(offsetof(struct tile_memory, x_scales) + (rows + part * 2) * sizeof m->x_scales[0][0]);
    KEEP(l.lines);
    KEEP(l.x);
    KEEP(l.scales);
    KEEP(l.x_scales);
    return l;
}

/* The sums of a warp, half of them at a time, by way of shared memory, where a lane finds a row of the pair. */
DEVICE void tile_finish(const struct args_dot *a, enum tensor_type type, const struct tile *t, uint32_t first,
                        uint32_t rows, const float sum[8][4][2], float *at /* [32][PAIR], the warp's */)
{
    const uint32_t lane = thread_index() % 32, group = lane / 4, part = lane % 4;
    UNROLL for (uint32_t half = 0; half < 2; half++)
    {
        if (half)
            sync_warp(); /* before they are written anew */
        UNROLL for (uint32_t i = 0; i < 32; i++)
        {
            const uint32_t o = i / 8, r = i / 2 % 4, c = i % 2;
            at[(o * OCTET + part * 2 + c) * PAIR + group * 4 + r] = sum[half * 4 + o][r][c];
        }
        sync_warp();
        for (uint32_t x = 0; x < 32; x++)
            finish_pair(a, type, t, first, rows + half * 32 + x, at[x * PAIR + lane]);
    }
}

/* A block of TILE_PANELS panels and TILE_ROWS rows: a warp has a pair of panels and half of the rows. */
DEVICE void many_rows(const struct args_dot *a, enum tensor_type type, struct tile_memory *m)
{
    const uint32_t thread = thread_index(), warp = thread / 32, chunks = group_bytes(type) / 16;
    const uint32_t first = block_index() / a->tiles * TILE_PANELS, pair = warp / 2, rows = warp % 2 * 64;
    const struct tile t = tile_of(a, block_index() % a->tiles, TILE_ROWS);
    const uint64_t blocks = (a->k + DOT_BLOCK - 1) / DOT_BLOCK;
    const struct tile_lane lane = tile_lane_of(type, m, pair, rows);
    uint32_t table[4];
    int32_t zero[4];
    float sum[8][4][2];
    if (!t.count)
        return;
    const uint64_t row = tile_row(a, &t, thread / 2) / a->divisor;
    const uint8_t *panel = panel_at(a, &t, first, thread / chunks % TILE_PANELS);
    const uint8_t *scales = panel_at(a, &t, first, thread / 16 % TILE_PANELS);
    struct tile_source from = tile_source_of(a, type, panel, scales, row, 0);
    code_table(type, table);
    mma_zero(zero);
    UNROLL for (uint32_t g = 0; g < STAGES - 1; g++) tile_bring(type, m, &from, g, 0);
    for (uint64_t b = 0; b < blocks; b++) {
        const uint32_t turn = (uint32_t)(b % 2), groups = from.groups;
        float acc[8][4][2];
        UNROLL for (uint32_t i = 0; i < 64; i++) acc[i / 8][i / 2 % 4][i % 2] = 0;
        UNROLL for (uint32_t g = 0; g < BLOCK_GROUPS; g++)
        {
            const uint32_t ahead = g + STAGES - 1;
            if (g < groups) {
                copy_wait(STAGES - 2); /* group g is there, */
                sync_block();          /* for all, and all are done with the one before */
                if (ahead == BLOCK_GROUPS)
                    from = tile_source_of(a, type, panel, scales, row, b + 1);
                tile_bring(type, m, &from, ahead % BLOCK_GROUPS, ahead < BLOCK_GROUPS ? turn : 1 - turn);
                if (rows < t.count)
                    tile_group(type, m, &lane, g, turn, table, zero, acc);
            }
        }
        UNROLL for (uint32_t i = 0; i < 64; i++)
        {
            float *to = &sum[i / 8][i / 2 % 4][i % 2];
            *to = b ? *to + acc[i / 8][i / 2 % 4][i % 2] : acc[i / 8][i / 2 % 4][i % 2];
        }
    }
    copy_wait(0);
    sync_block(); /* what passed through is not needed any more */
    if (rows < t.count && first + pair * 2 < a->n_panels)
        tile_finish(a, type, &t, first + pair * 2, rows, sum, (float *)(void *)m + warp * 32 * PAIR);
}

#define FEW_ROWS(type, octets, warps)                                                     \
    SHARED __attribute__((aligned(16))) struct words4 lines[STAGES * 2 * (warps) * 32];   \
    SHARED __attribute__((aligned(16))) uint8_t scales[(warps) * 4 * 256];                \
    SHARED __attribute__((aligned(16))) float sums[(warps) * (octets) * OCTET * PAIR];    \
    const struct few_memory memory = {lines, scales, sums};                               \
    few_rows(&a, type, octets, warps, &memory)

#define INTEGER_KERNELS(name, type)                                    \
    KERNEL(dot_##name##_8, struct args_dot, 256, 3)                    \
    {                                                                  \
        FEW_ROWS(type, 1, 8);                                          \
    }                                                                  \
    KERNEL(dot_##name##_32, struct args_dot, 128, 2)                   \
    {                                                                  \
        FEW_ROWS(type, 4, 4);                                          \
    }                                                                  \
    KERNEL(dot_##name##_128, struct args_dot, 256, 1)                  \
    {                                                                  \
        SHARED __attribute__((aligned(16))) struct tile_memory memory; \
        many_rows(&a, type, &memory);                                  \
    }

INTEGER_KERNELS(q8, TENSOR_Q8)
INTEGER_KERNELS(q4, TENSOR_Q4)
INTEGER_KERNELS(mxfp4, TENSOR_MXFP4)
