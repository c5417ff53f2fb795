/* SPDX-License-Identifier: Apache-2.0 */
/* What the command watches while an image is mapped: a file that becomes shorter under it (SIGBUS), and the clock since
 * exec. */
#ifndef RUNTIME_GUARD_H
#define RUNTIME_GUARD_H

struct stele_image;

/* Remembers when the process began: to be called in main's first line. */
void guard_mark_start(void);

/* Milliseconds from exec to `moment` (CLOCK_MONOTONIC seconds): the CPU time that the process had used at main's first
 * line, plus what has passed since. */
double guard_since_exec_ms(double moment);

double guard_now(void); /* CLOCK_MONOTONIC seconds */

/* From now on a page of the image that cannot be read ends the process with a sentence: exit 4 where the file is shorter
 * than it was, 1 where reading failed. One image at a time. */
void guard_image(const struct stele_image *image, const char *verb);

#endif
