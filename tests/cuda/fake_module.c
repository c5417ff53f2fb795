/* SPDX-License-Identifier: Apache-2.0 */
/* In the place of what nvcc makes of kernels.cu: the mark by which fake_driver.c knows it. */
#include <stdint.h>

extern const uint8_t cuda_module[];
const uint8_t cuda_module[] = "emulated";
