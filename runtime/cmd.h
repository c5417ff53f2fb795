/* SPDX-License-Identifier: Apache-2.0 */
/* What the verbs of the command share: options, reading text, writing answers. A verb is a file cmd_VERB.c that reads
 * options and calls the library. */
#ifndef RUNTIME_CMD_H
#define RUNTIME_CMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* One option of a verb. Values go where `to` points, checked against the kind; help text is made of the table too. */
enum option_kind {
    OPTION_FLAG,   /* bool *to = true */
    OPTION_COUNT,  /* uint64_t *to, from `low` to `high` */
    OPTION_NUMBER, /* float *to, from `low` to `high`, finite */
    OPTION_TEXT,   /* const char **to */
    OPTION_TEXTS,  /* struct text_list *to, repeatable */
    OPTION_CHOICE, /* int *to = index among the words of `words`, which are separated by '|' */
    OPTION_CPUS,   /* confines the process to a list of CPUs at once; no `to` */
};

struct cmd_option {
    const char *name;  /* "--top-k", or "-n" */
    enum option_kind kind;
    void *to;
    const char *value; /* what the value is called in help: "N"; NULL for flags */
    const char *help;
    double low, high;
    const char *words;
};

struct text_list {
    const char *items[64];
    size_t count;
};

struct verb {
    const char *name;
    const char *synopsis; /* behind "stele VERB " */
    const char *about;    /* one paragraph */
    int (*run)(int argc, char **argv); /* argv[0] is the verb; returns the exit code */
    const struct cmd_option *options;  /* for help; ends with name NULL; may be NULL */
};

/* Reads options and operands, in any order; "--" ends the options; "--name=value" and "--name value" are one. Operands go to
 * `operands` in order, at most `most` (STELE_USAGE names the one too many). *count is their number. */
enum stele_status cmd_options(const struct cmd_option *options, int argc, char **argv, const char **operands, size_t most,
                              size_t *count, struct stele_error *err);

/* Becomes stele-NAME: the program beside this one, else in ../libexec/stele from there; never from PATH. Returns where there
 * is none, having said so. */
void cmd_become(const char *name, char **argv);

/* Prints "stele VERB: sentence" to stderr and returns the exit code. */
int cmd_fail(const char *verb, const struct stele_error *err);

/* Reads a descriptor to its end into malloc'ed bytes; `name` is what sentences call it. */
enum stele_status cmd_read_all(int fd, const char *name, char **out, size_t *bytes, struct stele_error *err);

/* Reads a file into malloc'ed bytes. */
enum stele_status cmd_read_file(const char *path, char **out, size_t *bytes, struct stele_error *err);

/* The text of an operand: `operand` itself, or standard input where it is "-" or NULL. NULL and a terminal is STELE_USAGE
 * at once, saying `what` is missing. *owned is to be freed (NULL where the operand was taken). */
enum stele_status cmd_text(const char *operand, const char *what, const char **text, size_t *bytes, char **owned,
                           struct stele_error *err);

/* Ids as "1 2 3" (blanks and commas between them) into malloc'ed *ids. */
enum stele_status cmd_ids(const char *text, uint32_t **ids, size_t *count, struct stele_error *err);

/* Writes to stdout at once. False: the reader is gone or the disk is full; *err says which (a closed pipe kills the
 * process by SIGPIPE before, as it does any Unix tool). */
bool cmd_write(const char *bytes, size_t length, struct stele_error *err);

/* Writes model text to stdout or stderr: where that is a terminal and `raw` is not set, control bytes but newline and tab
 * are escaped, so that a model cannot steer the terminal. */
bool cmd_write_text(int fd, const char *bytes, size_t length, bool raw, struct stele_error *err);

/* Writes bytes as a JSON string, quotes included, to a stdio stream; bytes that are no UTF-8 become U+FFFD. */
struct _IO_FILE;
void cmd_json_string(struct _IO_FILE *to, const char *bytes, size_t length);

/* STELE_KERNELS, or NULL. */
const char *cmd_kernels(void);

extern const struct verb *const verbs[]; /* NULL behind the last */

int cmd_run(int argc, char **argv);
int cmd_choose(int argc, char **argv);
int cmd_render(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_logprobs(int argc, char **argv);
int cmd_inspect(int argc, char **argv);
int cmd_verify(int argc, char **argv);
int cmd_warm(int argc, char **argv);
int cmd_devices(int argc, char **argv);

#endif
