/* SPDX-License-Identifier: Apache-2.0 */
/* Draws the next id from logits. The order is transformers', and so is the meaning of each step:
 *
 *   repetition penalty   each id of the history once: x < 0 ? x * p : x / p
 *   temperature          x / T; 0 is greedy: the largest x after the penalty, ties to the lower id
 *   top-k                the k likeliest
 *   top-p                of these, the fewest likeliest that make up p
 *   min-p                of these, those at least min_p times as likely as the likeliest
 *   draw
 *
 * To the bit (all binary32; NUMBERS.md, "Draws"): results of penalty and temperature beyond the
 * largest finite number become that number. Ids are ordered by (x down, id up), so ties go to the
 * lower id in every step. Weights are w[i] = exp(x[i] - x[0]); c[i] = c[i - 1] + w[i] are their
 * running sums in this order. Every filter keeps the beginning of the order:
 *
 *   top-k   the first k, exactly: of ids that tie for the last place the lower ones stay
 *   top-p   up to the first with c[i] >= p * s, that one included; all where there is none. s is
 *           c[k - 1] with top-k, else the sum of "Softmax over a vector" over all ids
 *   min-p   before the first with w[i] < min_p; w[0] is 1, so one is kept at least
 *   draw    the first with c[i] > u * c[n - 1], where n are left; u is 24 bits of philox4x32()
 *           with the seed as key and the position of the drawn token as counter
 *
 * An answer depends on nothing else: not on how many tokens were drawn before, on threads or on the
 * kernel table. */
#ifndef RUNTIME_SAMPLER_H
#define RUNTIME_SAMPLER_H

#include "kernels.h"
#include "stele.h"

/* Scratch for one vocabulary: about 4 bytes an id, touched by the first draw that is not greedy.
 * One thread at a time. */
struct sampler;

/* Whether the fields are in range; STELE_USAGE names the first that is not. */
enum stele_status sampler_check(const struct stele_sampling *sampling, struct stele_error *err);

/* STELE_OK: *out is to be closed. STELE_USAGE names the field that is out of range: temperature and
 * repeat_penalty are finite and not negative, top_p and min_p lie in [0, 1]. A field that is 0 is
 * off, as are top_p 1, repeat_penalty 1 and a top_k that leaves all ids. `kernels` must outlive the
 * sampler. */
enum stele_status sampler_open(struct sampler **out, const struct stele_sampling *sampling,
                               uint32_t vocabulary, const struct blas_kernels *kernels,
                               struct stele_error *err);
void sampler_close(struct sampler *s); /* NULL is allowed */

/* The id that follows the `count` ids of `history`: prompt and what was drawn; `count` is the
 * position of the token drawn. `logits` [vocabulary], all finite, are overwritten. Ids lie below
 * the vocabulary. Nothing is allocated. */
uint32_t sampler_draw(struct sampler *s, float *logits, const uint32_t *history, size_t count);

/* The counter-based generator Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers:
 * as easy as 1, 2, 3", SC 2011): four words of chance for each key and counter. */
void philox4x32(uint32_t out[4], const uint32_t key[2], const uint32_t counter[4]);

#endif
