/* SPDX-License-Identifier: Apache-2.0 */
#ifndef IMAGE_DESCRIPTORS_H
#define IMAGE_DESCRIPTORS_H

/* Takes the places of standard input, output and error where a caller closed them, so that no file of ours is opened as
 * one: an image as standard input would be read as a prompt, a sentence would be written into an image. Reading or writing
 * such a place fails with EBADF. To be called in main before anything is opened. */
void hold_standard_descriptors(void);

#endif
