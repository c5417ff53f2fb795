/* SPDX-License-Identifier: Apache-2.0 */
/* config.json, read so that nothing that changes the result is overlooked: each key that a family reads is marked, and at
 * the end every other key must be known to change nothing, or be null, false, 0 or empty, or be named by --ignore-key. */
#ifndef CONVERT_CONFIG_H
#define CONVERT_CONFIG_H

#include "error.h"
#include "json.h"
#include "types.h"

struct config {
    const char *path;
    const json_t *root;
    json_t *known;                   /* an object whose keys were read or change nothing */
    const char *const *ignored;      /* --ignore-key; NULL behind the last, may be NULL itself */
    struct stele_error *err;
    enum stele_status status;        /* the first error; every later read returns its default */
};

/* Views a parsed config.json. `known` is owned: give it back by config_close. */
enum stele_status config_open(struct config *out, const json_t *root, const char *path, const char *const *ignored,
                              struct stele_error *err);
void config_close(struct config *config);

/* A value of the top level; marks it as known. The first wrong one is kept in config->status. */
uint64_t config_count(struct config *c, const char *key, uint64_t absent, uint64_t most); /* from 1 */
uint64_t config_need_count(struct config *c, const char *key, uint64_t most);
double config_number(struct config *c, const char *key, double absent);
bool config_flag(struct config *c, const char *key, bool absent);
const char *config_text(struct config *c, const char *key, const char *absent);
const json_t *config_value(struct config *c, const char *key); /* NULL where it is absent or null */

/* Keys that change nothing in this family, NULL behind the last. */
void config_known(struct config *c, const char *const *keys);

/* RoPE parameters in the spelling of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters). */
struct config_rope {
    double theta;
    const char *type;    /* "default" where none is said */
    const json_t *value; /* the object with the scaling's own fields, or NULL */
    bool part_read;      /* the caller has looked at its partial_rotary_factor, which else must be 1 */
    uint32_t original;   /* positions before stretching, from outside the object; 0: the object has them */
};
struct config_rope config_rope(struct config *c, double theta_absent);
/* The same of one object with its own rope_theta, for configs that have several. */
struct config_rope config_rope_object(struct config *c, const json_t *object, double theta_absent);

/* Sets the status to STELE_INPUT: `key` has a value that is not supported. */
void config_refuse(struct config *c, const char *key, const char *why);

/* Refuses a quantised checkpoint: before the family emits (so before its tensors are missed), of any kind but MXFP4; behind
 * it, of MXFP4 too where the family does not know the key. */
enum stele_status config_check_quantised(struct config *c, bool emitted);

/* The end: refuses what is not understood, reports on stderr what is ignored. */
enum stele_status config_finish(struct config *c);

#endif
