/* SPDX-License-Identifier: Apache-2.0 */
#include "json.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Larger than any published tokenizer.json by a factor of eight; keeps a stranger from filling the memory. */
static const off_t FILE_BYTES_MAX = 256 << 20;

/* Python writes Infinity, -Infinity and NaN, which JSON has not. Outside strings the words become numbers of the same
 * length that jansson reads: about the largest binary64 for infinity, an empty list for NaN,
 * which no field of numbers takes. */
static void replace_python_words(char *bytes, size_t length)
{
    static const struct {
        const char *word, *by;
    } words[] = {{"Infinity", "1.79e308"}, {"NaN", "[ ]"}};
    bool in_string = false;
    for (size_t i = 0; i < length; i++) {
        if (bytes[i] == '"')
            in_string = !in_string;
        else if (in_string && bytes[i] == '\\')
            i++;
        else if (!in_string && (bytes[i] == 'I' || bytes[i] == 'N'))
            for (size_t w = 0; w < sizeof words / sizeof *words; w++) {
                size_t n = strlen(words[w].word);
                if (length - i >= n && !memcmp(bytes + i, words[w].word, n))
                    memcpy(bytes + i, words[w].by, n);
            }
    }
}

enum stele_status json_read_bytes(json_t **out, const char *bytes, size_t length, const char *name,
                                  struct stele_error *err)
{
    *out = NULL;
    char *copy = malloc(length + 1);
    if (!copy)
        return stele_fail(err, STELE_SYSTEM, "%s: no memory for %zu bytes", name, length);
    memcpy(copy, bytes, length);
    replace_python_words(copy, length);
    json_error_t why;
    json_t *value = json_loadb(copy, length, JSON_DECODE_INT_AS_REAL | JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &why);
    free(copy);
    if (!value)
        return stele_fail(err, STELE_INPUT, "%s: line %d, column %d: not JSON that stele reads: %s", name, why.line,
                          why.column, why.text);
    *out = value;
    return STELE_OK;
}

static enum stele_status read_all(char **out, size_t *length, const char *path, struct stele_error *err)
{
    *out = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe is refused, not waited for */
    if (fd < 0)
        return stele_fail(err, STELE_SYSTEM, "%s: %s", path, strerror(errno));
    struct stat st;
    enum stele_status status = STELE_OK;
    char *bytes = NULL;
    size_t have = 0;
    if (fstat(fd, &st))
        status = stele_fail(err, STELE_SYSTEM, "%s: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        status = stele_fail(err, STELE_INPUT, "%s: not a regular file", path);
    else if (st.st_size > FILE_BYTES_MAX)
        status = stele_fail(err, STELE_INPUT, "%s: %jd bytes of JSON, more than the %jd that stele reads", path,
                            (intmax_t)st.st_size, (intmax_t)FILE_BYTES_MAX);
    else if (!(bytes = malloc((size_t)st.st_size + 1)))
        status = stele_fail(err, STELE_SYSTEM, "%s: no memory for %jd bytes", path, (intmax_t)st.st_size);
    while (status == STELE_OK && have < (size_t)st.st_size) {
        ssize_t n = read(fd, bytes + have, (size_t)st.st_size - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            status = stele_fail(err, STELE_SYSTEM, "%s: %s", path, strerror(errno));
        if (n <= 0)
            break;
        have += (size_t)n;
    }
    close(fd);
    if (status == STELE_OK) {
        *out = bytes;
        *length = have;
    } else
        free(bytes);
    return status;
}

enum stele_status json_read_file(json_t **out, const char *path, struct stele_error *err)
{
    *out = NULL;
    char *bytes;
    size_t length = 0;
    enum stele_status status = read_all(&bytes, &length, path, err);
    if (status == STELE_OK)
        status = json_read_bytes(out, bytes, length, path, err);
    free(bytes);
    return status;
}

bool json_whole(const json_t *value, uint64_t most, uint64_t *out)
{
    if (!json_is_real(value))
        return false;
    double number = json_real_value(value);
    if (!(number >= 0 && number <= (double)most && number <= 9007199254740992.0) || number != floor(number))
        return false;
    *out = (uint64_t)number;
    return true;
}

const char *json_show(const json_t *value, char text[64])
{
    switch (value ? json_typeof(value) : JSON_NULL) {
    case JSON_OBJECT:
        return "{...}";
    case JSON_ARRAY:
        return "[...]";
    case JSON_STRING:
        snprintf(text, 64, "\"%.58s\"", json_string_value(value));
        return text;
    case JSON_REAL:
    case JSON_INTEGER:
        snprintf(text, 64, "%.17g", json_number_value(value));
        return text;
    case JSON_TRUE:
        return "true";
    case JSON_FALSE:
        return "false";
    case JSON_NULL:
        break;
    }
    return "null";
}
