/* SPDX-License-Identifier: Apache-2.0 */
/* An image into an object store, from its mapping: `stele push`. */
#ifndef CONVERT_PULL_PUSH_H
#define CONVERT_PULL_PUSH_H

/* Reads its own words and returns an exit code. */
int push(int argc, char **argv);

#endif
