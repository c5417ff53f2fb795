/* SPDX-License-Identifier: Apache-2.0 */
/* Options of the programs that stele runs as verbs: tables over getopt_long. Every error names the verb's help. */
#ifndef CONVERT_OPTIONS_H
#define CONVERT_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

enum { IGNORED_MAX = 64 }; /* keys, and the NULL behind the last */

enum option_takes {
    TAKES_NOTHING, /* bool *to = true */
    TAKES_COUNT,   /* a whole number from `low` to `high`, into the `bytes` (4 or 8) at `to` */
    TAKES_SIZE,    /* the same, K, M or G (powers of two) may be behind it */
    TAKES_TEXT,    /* const char **to */
    TAKES_TYPE,    /* of weights, that images may have: int *to */
    TAKES_KEYS,    /* may be repeated: const char **to, [IGNORED_MAX], NULL to begin with */
};

struct program_option {
    const char *name; /* "threads"; NULL behind the last option */
    char letter;      /* "-f" is the same; 0: there is none */
    enum option_takes takes;
    void *to;
    size_t bytes;
    uint64_t low, high;
};
#define TO_NUMBER(number) &(number), sizeof(number)

/* Reads the options; --help and -h print `usage` and end the program. The operands are argv[optind] and what follows it. */
enum stele_status options_read(const struct program_option *options, const char *verb, const char *usage, int argc,
                               char **argv, struct stele_error *err);

/* The only operand behind them, which the help calls `name`. */
enum stele_status options_operand(const char **out, const char *name, const char *verb, int argc, char **argv,
                                  struct stele_error *err);

enum stele_status options_wrong(const char *verb, const char *what, const char *value, struct stele_error *err);

/* The type of weights of this name; -1: there is none, or images do not have it by choice. */
int options_type(const char *name);

#endif
