/* SPDX-License-Identifier: Apache-2.0 */
/* The store from the shell: `stele ls`, `stele rm`, `stele gc`. Each reads its own words and returns an exit code. */
#ifndef CONVERT_PULL_SHELF_H
#define CONVERT_PULL_SHELF_H

int shelf_ls(int argc, char **argv);
int shelf_rm(int argc, char **argv);
int shelf_gc(int argc, char **argv);

#endif
