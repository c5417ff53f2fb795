/* SPDX-License-Identifier: Apache-2.0 */
/* What a template can ask of a value: attributes, items, slices, methods, functions, filters,
 * tests. As everywhere in values: false after a failure, which the heap has. */
#ifndef RUNTIME_TEMPLATE_OBJECT_H
#define RUNTIME_TEMPLATE_OBJECT_H

#include <time.h>

#include "value.h"

struct arguments {
    const struct value *items; /* by position */
    uint32_t count;
    const struct value *names; /* texts: those by name */
    const struct value *named;
    uint32_t named_count;
};

/* o.name and o[key] as Jinja's sandbox has them: what is not there is undefined, no failure. */
bool object_field(struct heap *h, const struct value *o, const char *name, size_t bytes,
                  struct value *out);
bool object_item(struct heap *h, const struct value *o, const struct value *key, struct value *out);
bool object_slice(struct heap *h, const struct value *o, const struct value bounds[3],
                  struct value *out);
bool namespace_set(struct heap *h, struct namespace *space, struct value name,
                   const struct value *value);
/* Methods (template_method.c): the number of that which values of this kind have by this name. */
bool method_find(uint32_t *id, uint8_t kind, const char *name, size_t bytes);
bool method_call(struct heap *h, const struct method *method, const struct arguments *a,
                 struct value *out);
bool want_whole(struct heap *h, const struct value *v, int64_t *out); /* a failure if it is no whole number */

/* Functions of template.def (template_function.c). */
bool function_call(struct heap *h, uint32_t function, const struct arguments *a,
                   const struct tm *now, struct value *out);

/* Filter `id` with its arguments in the order of template.def, VALUE_ABSENT where none was given;
 * `inner`: the filter of map, the test of select and its kin. (template_filter.c) */
bool filter_apply(struct heap *h, uint32_t id, uint32_t inner, const struct value *v,
                  const struct value *arguments, uint32_t count, struct value *out);
bool test_apply(struct heap *h, uint32_t id, const struct value *v, const struct value *arguments,
                uint32_t count, bool *out);

#endif
