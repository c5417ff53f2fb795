/* SPDX-License-Identifier: Apache-2.0 */
#include "options.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "types.h"

enum { OPTIONS_MAX = 24, LONG = 256 /* getopt's values of long options begin here */ };

enum stele_status options_wrong(const char *verb, const char *what, const char *value, struct stele_error *err)
{
    return stele_fail(err, STELE_USAGE, "%s %s; `stele help %s` lists the options", what, value, verb);
}

int options_type(const char *name)
{
    for (int type = 0; type < TENSOR_TYPES; type++)
        if (type_offered((enum tensor_type)type) && !strcmp(name, type_name((enum tensor_type)type)))
            return type;
    return -1;
}

static bool read_number(const struct program_option *o, const char *text)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    unsigned shift = o->takes == TAKES_COUNT ? 0 : *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
    end += shift != 0;
    if (*text < '0' || *text > '9' || *end || errno || n > o->high >> shift || n << shift < o->low)
        return false;
    if (o->bytes == sizeof(uint32_t))
        *(uint32_t *)o->to = (uint32_t)n << shift;
    else
        *(uint64_t *)o->to = (uint64_t)n << shift;
    return true;
}

/* 4096 as 4K. */
static const char *spelled(char *text, size_t room, enum option_takes takes, uint64_t n)
{
    unsigned unit = 0;
    for (; takes == TAKES_SIZE && unit < 3 && n && n % 1024 == 0; unit++)
        n /= 1024;
    snprintf(text, room, "%" PRIu64 "%.1s", n, &"\0KMG"[unit]);
    return text;
}

static enum stele_status take(const struct program_option *o, const char *value, const char *verb, struct stele_error *err)
{
    char what[160], low[24], high[24];
    const char **keys = o->to;
    size_t n = 0;
    switch (o->takes) {
    case TAKES_NOTHING:
        *(bool *)o->to = true;
        return STELE_OK;
    case TAKES_TEXT:
        *(const char **)o->to = value;
        return STELE_OK;
    case TAKES_TYPE:
        *(int *)o->to = options_type(value);
        return *(int *)o->to >= 0 ? STELE_OK
                                  : options_wrong(verb, "--weights takes f32, bf16, f16, q8 or q4, not", value, err);
    case TAKES_KEYS:
        while (keys[n])
            n++;
        if (n + 1 >= IGNORED_MAX)
            return options_wrong(verb, "too many --ignore-key, the last is", value, err);
        keys[n] = value;
        return STELE_OK;
    case TAKES_COUNT:
    case TAKES_SIZE:
        if (read_number(o, value))
            return STELE_OK;
    }
    snprintf(what, sizeof what, "--%s takes a %s from %s to %s, not", o->name, o->takes == TAKES_SIZE ? "size" : "number",
             spelled(low, sizeof low, o->takes, o->low), spelled(high, sizeof high, o->takes, o->high));
    return options_wrong(verb, what, value, err);
}

enum stele_status options_read(const struct program_option *options, const char *verb, const char *usage, int argc,
                               char **argv, struct stele_error *err)
{
    struct option longs[OPTIONS_MAX + 2] = {{"help", no_argument, NULL, 'h'}};
    char letters[2 * OPTIONS_MAX + 3] = ":h";
    for (int i = 0; options[i].name; i++) {
        bool alone = options[i].takes == TAKES_NOTHING;
        longs[i + 1] = (struct option){options[i].name, alone ? no_argument : required_argument, NULL, LONG + i};
        if (options[i].letter)
            strcat(strncat(letters, &options[i].letter, 1), alone ? "" : ":");
    }
    opterr = 0;
    for (int c; (c = getopt_long(argc, argv, letters, longs, NULL)) != -1;) {
        int i = c - LONG;
        if (c == 'h') {
            fputs(usage, stdout);
            exit(fflush(stdout) ? STELE_SYSTEM : STELE_OK);
        }
        if (c == ':' || c == '?')
            return options_wrong(verb, c == ':' ? "a value is missing behind" : "unknown option", argv[optind - 1], err);
        for (i = i < 0 ? 0 : i; c < LONG && options[i].letter != c; i++)
            ;
        enum stele_status status = take(&options[i], optarg, verb, err);
        if (status != STELE_OK)
            return status;
    }
    return STELE_OK;
}

enum stele_status options_operand(const char **out, const char *name, const char *verb, int argc, char **argv,
                                  struct stele_error *err)
{
    char what[80];
    if (optind == argc)
        return stele_fail(err, STELE_USAGE, "no %s is named; `stele help %s` says more", name, verb);
    snprintf(what, sizeof what, "one %s is taken; there is also", name);
    if (optind + 1 != argc)
        return options_wrong(verb, what, argv[optind + 1], err);
    *out = argv[optind];
    return STELE_OK;
}
