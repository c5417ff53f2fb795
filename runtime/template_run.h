/* SPDX-License-Identifier: Apache-2.0 */
/* Runs the program of a chat template (image/template.h) over values. */
#ifndef RUNTIME_TEMPLATE_RUN_H
#define RUNTIME_TEMPLATE_RUN_H

#include <time.h>

#include "template.h"
#include "value.h"

/* A variable that the template is given. */
struct template_variable {
    const char *name;
    size_t name_bytes;
    struct value value;
};

/* Ten million steps, 256 MiB of values, 64 MiB of output: no template that means well comes near.
 */
struct heap_limits template_limits(void);

/* Runs `program` from its start. True: what it wrote is h->out[0, h->out_length), with the origin
 * of each byte in h->out_origins; it lives as long as the heap. False: h->failure and the heap's
 * error say why. Of two variables with one name the later one counts; a variable goes before a
 * function. `now` is what strftime_now says. The program's bytes are read where they are mapped,
 * and texts of the heap may point into them. */
bool template_run(struct heap *h, const struct template_program *program,
                  const struct template_variable *variables, size_t count, const struct tm *now);

#endif
