/* SPDX-License-Identifier: Apache-2.0 */
#include "stats.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "guard.h"

/* Private_Dirty of the whole process, in bytes; 0 where the kernel does not say. */
static uint64_t private_dirty(void)
{
    FILE *f = fopen("/proc/self/smaps_rollup", "re");
    char line[256];
    unsigned long long kib = 0;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "Private_Dirty: %llu", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib * 1024;
}

static void print_moment(const char *key, double moment)
{
    if (moment > 0)
        fprintf(stderr, "\"%s\": %.3f, ", key, guard_since_exec_ms(moment));
    else
        fprintf(stderr, "\"%s\": null, ", key);
}

static void print_rate(const char *key, uint64_t tokens, double seconds)
{
    if (tokens && seconds > 0)
        fprintf(stderr, "\"%s\": %.2f, ", key, (double)tokens / seconds);
    else
        fprintf(stderr, "\"%s\": null, ", key);
}

void stats_print(const struct stats_line *line)
{
    const struct stele_result *r = line->result;
    /* The first token comes of the prefill; each other one costs a step. */
    uint64_t decoded = r->tokens ? r->tokens - 1 : 0, dirty = private_dirty();
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    fputc('{', stderr);
    print_moment("first_op_ms", line->session.first_op);
    print_moment("first_token_ms", r->first_token);
    print_moment("exit_ms", guard_now());
    fprintf(stderr, "\"prefill_tokens\": %" PRIu64 ", ", line->prefill_tokens);
    print_rate("prefill_tokens_per_s", line->prefill_tokens, r->prefill_end - r->prefill_begin);
    fprintf(stderr, "\"decode_tokens\": %" PRIu64 ", ", decoded);
    print_rate("decode_tokens_per_s", decoded, r->end - r->first_token);
    if (line->session.experts)
        fprintf(stderr, "\"experts\": %" PRIu64 ", \"experts_used\": %" PRIu64 ", ", line->session.experts,
                line->session.experts_used);
    fprintf(stderr,
            "\"mapped_bytes\": %" PRIu64 ", \"private_dirty_bytes\": %" PRIu64 ", \"kv_bytes\": %" PRIu64
            ", \"scratch_bytes\": %" PRIu64 ", \"minor_faults\": %ld, \"major_faults\": %ld, \"threads\": %" PRIu32
            ", \"kernels\": \"%s\", \"kv\": \"%s\", \"seed\": %" PRIu64,
            line->mapped_bytes, dirty, line->session.kv_bytes, line->session.scratch_bytes, usage.ru_minflt,
            usage.ru_majflt, line->session.threads, line->session.kernels, line->session.kv, line->seed);
    if (line->session.map)
        fprintf(stderr, ", \"device\": \"%s\", \"map\": \"%s\", \"vram_bytes\": %" PRIu64 ", \"upload_ms\": %.3f",
                line->session.device, line->session.map, line->session.vram_bytes, 1e3 * line->session.upload);
    if (line->date)
        fprintf(stderr, ", \"date\": \"%s\"", line->date);
    fputs("}\n", stderr);
}
