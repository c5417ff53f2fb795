/* SPDX-License-Identifier: Apache-2.0 */
/* How long a conversation of 100 messages takes through chat templates, from the JSON text to the
 * rendered one; the bound is a copy of the JSON and of what is rendered. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "chat.h"
#include "template_compile.h"

enum { MESSAGES = 100, RUNS = 200 };

static const char chatml[] =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}";

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* A list of messages, user and assistant in turn, 400 bytes of text each. */
static char *conversation(size_t *bytes)
{
    char text[401], *json = malloc(MESSAGES * 512), *at = json;
    for (size_t i = 0; i < 400; i++)
        text[i] = i % 6 ? (char)('a' + i % 26) : ' ';
    text[400] = '\0';
    for (int i = 0; i < MESSAGES; i++)
        at += sprintf(at, "%s{\"role\": \"%s\", \"content\": \"%s\"}", i ? ", " : "[",
                      i % 2 ? "assistant" : "user", text);
    at += sprintf(at, "]");
    *bytes = (size_t)(at - json);
    return json;
}

static double render(const struct template_program *program, const char *json, size_t bytes,
                     size_t *out)
{
    struct heap_limits limits = template_limits();
    struct tm now = {.tm_year = 126, .tm_mday = 1};
    struct chat_request request = {.now = &now};
    struct stele_error err;
    struct heap h;
    double begin = seconds();
    heap_open(&h, &limits, &err);
    if (value_json(&h, json, bytes, "messages", &request.messages) ||
        !chat_render(&h, program, &request)) {
        fprintf(stderr, "%s\n", err.text);
        exit(EXIT_FAILURE);
    }
    *out = h.out_length;
    heap_close(&h);
    return seconds() - begin;
}

static void bench(const char *name, const char *source, size_t source_bytes)
{
    static double times[RUNS], copies[RUNS];
    struct template_program program;
    struct stele_error err;
    uint8_t *bytes;
    size_t length, json_bytes, out = 0;
    char *json = conversation(&json_bytes), *copy = malloc(json_bytes * 2);
    if (template_compile(&bytes, &length, source, source_bytes, name, &err) ||
        template_open(&program, bytes, length, &err)) {
        fprintf(stderr, "%s\n", err.text);
        exit(EXIT_FAILURE);
    }
    for (int i = 0; i < RUNS; i++) {
        times[i] = render(&program, json, json_bytes, &out);
        double begin = seconds();
        memcpy(copy, json, json_bytes);
        memcpy(copy + json_bytes, json, out < json_bytes ? out : json_bytes);
        __asm__ volatile("" : : "r"(copy) : "memory");
        copies[i] = seconds() - begin;
    }
    qsort(times, RUNS, sizeof *times, by_size);
    qsort(copies, RUNS, sizeof *copies, by_size);
    printf(
        "template %-12s %d messages, %zu bytes: %.3f ms (median; 10th to 90th of a hundred %.3f to "
        "%.3f), bound 1 ms; two copies take %.3f ms\n",
        name, MESSAGES, out, times[RUNS / 2] * 1e3, times[RUNS / 10] * 1e3,
        times[RUNS - RUNS / 10] * 1e3, copies[RUNS / 2] * 1e3);
    free(copy);
    free(json);
    free(bytes);
}

/* Without arguments a ChatML template, else files of Jinja. */
int main(int argc, char **argv)
{
    static char source[1 << 20];
    if (argc < 2)
        bench("chatml", chatml, strlen(chatml));
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        if (!f) {
            perror(argv[i]);
            return EXIT_FAILURE;
        }
        bench(argv[i], source, fread(source, 1, sizeof source, f));
        fclose(f);
    }
    return EXIT_SUCCESS;
}
