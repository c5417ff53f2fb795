/* SPDX-License-Identifier: Apache-2.0 */
/* The store: images that came from elsewhere, by their identity, and references that name them.
 *
 *     $STELE_HOME (else $XDG_DATA_HOME/stele, ~/.local/share/stele)
 *         images/IDENTITY.stele
 *         refs/NAME#WEIGHTS         lines "key value": identity, name, weights, revision, converter, source
 *         partial/...               pulls under way
 *
 * NAME is a reference without secrets (user, password, query), escaped. WEIGHTS is what was asked for, "source"
 * without. A reference of a call may end in #WEIGHTS. */
#ifndef IMAGE_STORE_H
#define IMAGE_STORE_H

#include "error.h"
#include "types.h"

struct store_entry {
    char file[1024]; /* of the reference, below refs */
    char identity[33];
    char name[1024];
    char weights[16];
    char revision[64]; /* empty: the source has none */
    char converter[1024]; /* with the options that change more than the weights' type */
    char source[33]; /* digest of all that decides the image's bytes */
};

/* Whether a word is a reference rather than a path. */
bool store_is_reference(const char *word);

/* The name of a reference: without user, password, query, #WEIGHTS and slashes at its end. malloc'ed; NULL: no memory.
 */
char *store_name(const char *reference);

/* What follows the # of a reference; NULL: nothing. */
const char *store_weights(const char *reference);

/* The path of a thing in the store; `folder` is images, refs or partial. malloc'ed; NULL: no memory, or no home. */
char *store_path(const char *folder, const char *file);

/* The file of refs/ for a name and weights. malloc'ed. */
char *store_reference_file(const char *name, const char *weights);

/* Reads an entry of refs/; false where there is none that is whole. */
bool store_read(struct store_entry *out, const char *file);

/* Calls `each` with every entry, in order of names, until it returns false. */
void store_each(bool (*each)(void *context, const struct store_entry *entry), void *context);

/* The path of the image that a reference names, malloc'ed, and its identity. STELE_UNREACHABLE: the store does not have
 * it; STELE_USAGE: it has several, of other weights, and the reference does not say which. */
enum stele_status store_find(const char *reference, char **path, char identity[33], struct stele_error *err);

#endif
