/* SPDX-License-Identifier: Apache-2.0 */
/* `stele devices`: what --device can name. */
#include <stdio.h>

#include "cmd.h"
#include "stele.h"

static const struct cmd_option options[] = {{0}};

static enum stele_status print_gpu(uint32_t index, struct stele_error *err)
{
    struct stele_gpu gpu;
    enum stele_status status = stele_gpu_look(&gpu, index, err);
    if (status != STELE_OK)
        return status;
    printf("cuda:%u  %s, compute capability %u.%u, %.1f of %.1f GiB free\n", index, gpu.name, gpu.major, gpu.minor,
           (double)gpu.free_bytes / (1 << 30), (double)gpu.bytes / (1 << 30));
    printf("        bus %.4g GB/s, memory %.4g GB/s, int8 %.4g Tmac/s, with scales %.4g\n", gpu.bus * 1e-9,
           gpu.memory * 1e-9, gpu.products * 1e-12, gpu.products_scaled * 1e-12);
    printf("        map %s", gpu.map);
    if (gpu.why[0])
        printf(" (%s)", gpu.why);
    putchar('\n');
    return STELE_OK;
}

int cmd_devices(int argc, char **argv)
{
    struct stele_error err = {0};
    size_t operands;
    uint32_t count;
    enum stele_status status = cmd_options(options, argc, argv, NULL, 0, &operands, &err);
    if (status != STELE_OK)
        return cmd_fail("devices", &err);
    printf("cpu\n");
    if (stele_gpus(&count, &err) != STELE_OK)
        fprintf(stderr, "stele devices: %s\n", err.text);
    for (uint32_t i = 0; i < count && status == STELE_OK; i++)
        status = print_gpu(i, &err);
    return status == STELE_OK ? STELE_OK : cmd_fail("devices", &err);
}

const struct verb verb_devices = {
    .name = "devices",
    .synopsis = "",
    .about = "Lists what --device can name. Of a GPU: its memory; what was just measured of its bus, of reading its "
             "memory and of\n"
             "int8 multiply-adds, alone and with the scales of q8; and how it reaches the weights of an image on disk, "
             "with\n"
             "the reason where that is not the best way. Says on standard error why there is no GPU.\n"
             "STELE_CUDA_MAP=host|register|remap|ring forces a way for any verb; all give the same bits.",
    .run = cmd_devices,
    .options = options,
};
