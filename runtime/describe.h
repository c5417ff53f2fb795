/* SPDX-License-Identifier: Apache-2.0 */
/* What stele_image_describe gathers of an image, and the forms it is written in. Nothing is computed and no weight is read. */
#ifndef RUNTIME_DESCRIBE_H
#define RUNTIME_DESCRIBE_H

#include <stdio.h>

#include "image.h"
#include "plan.h"
#include "residency.h"
#include "stele.h"
#include "template_set.h"
#include "vocab.h"

enum { ATTENTION_KINDS_MAX = 16 };

/* Layers whose attention has the same shape. */
struct attention_kind {
    uint32_t layers, heads, kv_heads, head_dim, window;
};

/* What is printed in several forms, gathered once. */
struct facts {
    FILE *to; /* where the description goes */
    const struct image *image;
    struct plan plan;
    void *plan_memory; /* what plan views */
    uint64_t parameters;
    struct {
        uint64_t tensors, bytes;
    } matrices[TENSOR_TYPES], vectors;
    uint64_t kv_numbers;                              /* a position costs, in all layers */
    struct attention_kind kinds[ATTENTION_KINDS_MAX]; /* the first, should there be more */
    size_t kind_count;
    bool has_text;
    struct vocab vocab; /* if has_text */
    uint32_t host_patterns;
    struct template_set templates; /* all zero: none */
    struct stele_sampling sampling;
    const uint32_t *stops;
    size_t stop_count;
    const char *provenance;
    uint64_t provenance_bytes;
    struct residency residency; /* if it was asked for */
};

/* describe_text.c: for people. */
void describe_summary(const struct facts *f);
void describe_plan(const struct facts *f);
void describe_tensors(const struct facts *f);
void describe_residency(const struct facts *f);

/* describe_json.c */
void describe_json(const struct facts *f);

/* Operands of an op. */
bool describe_none(enum plan_kind kind, uint32_t word); /* an optional one that is not there */
float describe_number(uint32_t word);
const char *describe_activation(uint32_t activation);

#endif
