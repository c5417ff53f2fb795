/* SPDX-License-Identifier: Apache-2.0 */
/* Images packed for the way: `stele pack` and `stele unpack`. Each reads its own words and returns an exit code. */
#ifndef CONVERT_PULL_PARCEL_H
#define CONVERT_PULL_PARCEL_H

int parcel_pack(int argc, char **argv);
int parcel_unpack(int argc, char **argv);

#endif
