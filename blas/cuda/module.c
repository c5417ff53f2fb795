/* SPDX-License-Identifier: Apache-2.0 */
/* What nvcc made of kernels.cu, as `cuda_module`. */
__asm__(".section .rodata\n"
        ".global cuda_module\n"
        ".balign 64\n"
        "cuda_module: .incbin \"" CUDA_FATBIN "\"\n");
