/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "stele.h"

int cmd_fail(const char *verb, const struct stele_error *err)
{
    fprintf(stderr, "stele %s: %s\n", verb, err->text);
    return (int)err->status;
}

void cmd_become(const char *name, char **argv)
{
    static const char *const folders[] = {"", "/../libexec/stele"};
    char self[PATH_MAX], path[2 * PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(self, '/');
    for (size_t i = 0; slash && i < sizeof folders / sizeof *folders; i++) {
        snprintf(path, sizeof path, "%.*s%s/stele-%s", (int)(slash - self), self, folders[i], name);
        execv(path, argv);
    }
    fprintf(stderr, "stele: cannot run stele-%s, neither beside stele nor in ../libexec/stele from there: %s\n", name,
            strerror(errno));
}

const char *cmd_kernels(void)
{
    return getenv("STELE_KERNELS");
}

/* ---- options ---- */

static enum stele_status wants(struct stele_error *err, const struct cmd_option *o, const char *value)
{
    if (o->kind == OPTION_CHOICE)
        return stele_fail(err, STELE_USAGE, "%s takes one of %s, not \"%s\"", o->name, o->words, value);
    if (o->kind == OPTION_COUNT)
        return stele_fail(err, STELE_USAGE, "%s takes a whole number from %.0f to %" PRIu64 ", not \"%s\"", o->name, o->low,
                          o->high < 0x1p64 ? (uint64_t)o->high : UINT64_MAX, value);
    return stele_fail(err, STELE_USAGE, "%s takes a number from %g to %g, not \"%s\"", o->name, o->low, o->high, value);
}

/* Index of `value` among words separated by '|', or -1. */
static int word_index(const char *words, const char *value)
{
    size_t length = strlen(value);
    for (int i = 0; *words; i++) {
        size_t n = strcspn(words, "|");
        if (n == length && !memcmp(words, value, n))
            return i;
        words += n + (words[n] == '|');
    }
    return -1;
}

static enum stele_status set_count(const struct cmd_option *o, const char *value, struct stele_error *err)
{
    char *end;
    errno = 0;
    unsigned long long n = strtoull(value, &end, 10);
    if (value[0] < '0' || value[0] > '9' || *end || errno || (double)n < o->low || (double)n > o->high)
        return wants(err, o, value);
    *(uint64_t *)o->to = n;
    return STELE_OK;
}

static enum stele_status set_number(const struct cmd_option *o, const char *value, struct stele_error *err)
{
    char *end;
    double x = strtod(value, &end);
    if (end == value || *end || !isfinite(x) || x < o->low || x > o->high)
        return wants(err, o, value);
    *(float *)o->to = (float)x;
    return STELE_OK;
}

static enum stele_status set_option(const struct cmd_option *o, const char *value, struct stele_error *err)
{
    struct text_list *list;
    switch (o->kind) {
    case OPTION_FLAG:
        *(bool *)o->to = true;
        return STELE_OK;
    case OPTION_COUNT:
        return set_count(o, value, err);
    case OPTION_NUMBER:
        return set_number(o, value, err);
    case OPTION_TEXT:
        *(const char **)o->to = value;
        return STELE_OK;
    case OPTION_TEXTS:
        list = o->to;
        if (list->count == sizeof list->items / sizeof *list->items)
            return stele_fail(err, STELE_USAGE, "%s is given more than %zu times", o->name, list->count);
        list->items[list->count++] = value;
        return STELE_OK;
    case OPTION_CHOICE:
        *(int *)o->to = word_index(o->words, value);
        return *(int *)o->to >= 0 ? STELE_OK : wants(err, o, value);
    case OPTION_CPUS:
        return stele_confine(value, err);
    }
    return STELE_OK;
}

static const struct cmd_option *find_option(const struct cmd_option *options, const char *name, size_t length)
{
    for (; options->name; options++)
        if (strlen(options->name) == length && !memcmp(options->name, name, length))
            return options;
    return NULL;
}

enum stele_status cmd_options(const struct cmd_option *options, int argc, char **argv, const char **operands, size_t most,
                              size_t *count, struct stele_error *err)
{
    bool ended = false;
    *count = 0;
    for (int i = 1; i < argc; i++) {
        const char *word = argv[i];
        if (!ended && !strcmp(word, "--")) {
            ended = true;
            continue;
        }
        if (ended || word[0] != '-' || !word[1]) {
            if (*count == most)
                return stele_fail(err, STELE_USAGE, "one operand too many: \"%s\"", word);
            operands[(*count)++] = word;
            continue;
        }
        const char *equals = word[1] == '-' ? strchr(word, '=') : NULL;
        const struct cmd_option *o = find_option(options, word, equals ? (size_t)(equals - word) : strlen(word));
        if (!o)
            return stele_fail(err, STELE_USAGE, "unknown option %s; `stele help %s` lists them", word, argv[0]);
        if (o->kind == OPTION_FLAG && equals)
            return stele_fail(err, STELE_USAGE, "%s takes no value", o->name);
        if (o->kind != OPTION_FLAG && !equals && i + 1 == argc)
            return stele_fail(err, STELE_USAGE, "%s needs a value", o->name);
        const char *value = o->kind == OPTION_FLAG ? "" : equals ? equals + 1 : argv[++i];
        enum stele_status status = set_option(o, value, err);
        if (status != STELE_OK)
            return status;
    }
    return STELE_OK;
}

/* ---- reading ---- */

enum stele_status cmd_read_all(int fd, const char *name, char **out, size_t *bytes, struct stele_error *err)
{
    size_t room = 1 << 16, n = 0;
    char *text = malloc(room);
    for (;;) {
        if (text && n == room) {
            char *more = room > SIZE_MAX / 2 ? NULL : realloc(text, room *= 2);
            if (!more)
                free(text);
            text = more;
        }
        if (!text)
            return stele_fail(err, STELE_SYSTEM, "%s: no memory for more than %zu bytes", name, n);
        ssize_t got = read(fd, text + n, room - n);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            enum stele_status status = stele_fail(err, STELE_SYSTEM, "%s: %s", name, strerror(errno));
            free(text);
            return status;
        }
        if (!got)
            break;
        n += (size_t)got;
    }
    *out = text;
    *bytes = n;
    return STELE_OK;
}

enum stele_status cmd_read_file(const char *path, char **out, size_t *bytes, struct stele_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    *out = NULL;
    *bytes = 0;
    if (fd < 0)
        return stele_fail(err, STELE_SYSTEM, "%s: %s", path, strerror(errno));
    enum stele_status status = cmd_read_all(fd, path, out, bytes, err);
    close(fd);
    return status;
}

enum stele_status cmd_text(const char *operand, const char *what, const char **text, size_t *bytes, char **owned,
                           struct stele_error *err)
{
    *owned = NULL;
    if (operand && strcmp(operand, "-")) {
        *text = operand;
        *bytes = strlen(operand);
        return STELE_OK;
    }
    if (!operand && (isatty(STDIN_FILENO) || (fcntl(STDIN_FILENO, F_GETFL) & O_ACCMODE) == O_WRONLY))
        return stele_fail(err, STELE_USAGE, "no %s: name it as an argument or pipe it in", what);
    enum stele_status status = cmd_read_all(STDIN_FILENO, "standard input", owned, bytes, err);
    *text = *owned;
    return status;
}

enum stele_status cmd_ids(const char *text, uint32_t **ids, size_t *count, struct stele_error *err)
{
    *ids = malloc((strlen(text) / 2 + 1) * sizeof **ids);
    *count = 0;
    if (!*ids)
        return stele_fail(err, STELE_SYSTEM, "no memory for ids");
    for (const char *at = text + strspn(text, " ,\t\r\n"); *at; at += strspn(at, " ,\t\r\n")) {
        char *end;
        errno = 0;
        unsigned long long id = strtoull(at, &end, 10);
        if (*at < '0' || *at > '9' || errno || id > UINT32_MAX - 1 || (*end && !strchr(" ,\t\r\n", *end))) {
            free(*ids);
            *ids = NULL;
            return stele_fail(err, STELE_USAGE, "\"%.*s\" is no id", (int)strcspn(at, " ,\t\r\n"), at);
        }
        (*ids)[(*count)++] = (uint32_t)id;
        at = end;
    }
    return STELE_OK;
}

/* ---- writing ---- */

static bool write_all(int fd, const char *bytes, size_t length, struct stele_error *err)
{
    while (length) {
        ssize_t n = write(fd, bytes, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            stele_fail(err, STELE_SYSTEM, "standard %s: %s", fd == STDOUT_FILENO ? "output" : "error", strerror(errno));
            return false;
        }
        bytes += n;
        length -= (size_t)n;
    }
    return true;
}

bool cmd_write(const char *bytes, size_t length, struct stele_error *err)
{
    return write_all(STDOUT_FILENO, bytes, length, err);
}

bool cmd_write_text(int fd, const char *bytes, size_t length, bool raw, struct stele_error *err)
{
    static int terminal[STDERR_FILENO + 1]; /* 0: not asked yet; 1: no; 2: yes */
    if (!terminal[fd])
        terminal[fd] = isatty(fd) ? 2 : 1;
    if (raw || terminal[fd] == 1)
        return write_all(fd, bytes, length, err);
    for (size_t i = 0, from = 0; i <= length; i++) {
        unsigned char c = i < length ? (unsigned char)bytes[i] : 0;
        bool plain = i < length && ((c >= 0x20 && c != 0x7f) || c == '\n' || c == '\t');
        if (plain)
            continue;
        char escaped[8];
        int n = i < length ? snprintf(escaped, sizeof escaped, "\\x%02x", c) : 0;
        if (!write_all(fd, bytes + from, i - from, err) || !write_all(fd, escaped, (size_t)n, err))
            return false;
        from = i + 1;
    }
    return true;
}

/* Bytes of the UTF-8 character at the front of `s`, 0 where there is none (RFC 3629). */
static size_t utf8_character(const unsigned char *s, size_t n)
{
    static const struct {
        unsigned char low, high, second_low, second_high, length;
    } forms[] = {
        {0x00, 0x7f, 0, 0, 1},          {0xc2, 0xdf, 0x80, 0xbf, 2},    {0xe0, 0xe0, 0xa0, 0xbf, 3},
        {0xe1, 0xec, 0x80, 0xbf, 3},    {0xed, 0xed, 0x80, 0x9f, 3},    {0xee, 0xef, 0x80, 0xbf, 3},
        {0xf0, 0xf0, 0x90, 0xbf, 4},    {0xf1, 0xf3, 0x80, 0xbf, 4},    {0xf4, 0xf4, 0x80, 0x8f, 4},
    };
    for (size_t f = 0; f < sizeof forms / sizeof *forms; f++) {
        if (s[0] < forms[f].low || s[0] > forms[f].high)
            continue;
        if (n < forms[f].length || (forms[f].length > 1 && (s[1] < forms[f].second_low || s[1] > forms[f].second_high)))
            return 0;
        for (size_t i = 2; i < forms[f].length; i++)
            if (s[i] < 0x80 || s[i] > 0xbf)
                return 0;
        return forms[f].length;
    }
    return 0;
}

void cmd_json_string(FILE *to, const char *bytes, size_t length)
{
    const unsigned char *s = (const unsigned char *)bytes;
    putc('"', to);
    for (size_t i = 0; i < length;) {
        size_t n = utf8_character(s + i, length - i);
        if (!n)
            fputs("\\ufffd", to);
        else if (n == 1 && (s[i] < 0x20 || s[i] == 0x7f))
            fprintf(to, "\\u%04x", s[i]);
        else if (n == 1 && (s[i] == '"' || s[i] == '\\'))
            fprintf(to, "\\%c", s[i]);
        else
            fwrite(s + i, 1, n, to);
        i += n ? n : 1;
    }
    putc('"', to);
}
