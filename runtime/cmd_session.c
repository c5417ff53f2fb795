/* SPDX-License-Identifier: Apache-2.0 */
#include "cmd_session.h"

#include "guard.h"

struct cmd_session cmd_session = {.kv = -1};

enum stele_status cmd_open_image(struct stele_image **out, const char *operand, const char *verb, struct stele_error *err)
{
    enum stele_status status = stele_image_open(out, operand, err);
    if (status == STELE_UNREACHABLE) /* a reference that the store lacks */
        status = cmd_fetch(out, operand, err);
    if (status != STELE_OK)
        return status;
    guard_image(*out, verb);
    return cmd_session.verify ? stele_image_verify(*out, err) : STELE_OK;
}

struct stele_options cmd_session_options(void)
{
    static const enum stele_kv kinds[] = {STELE_KV_F32, STELE_KV_F16};
    return (struct stele_options){
        .threads = (uint32_t)cmd_session.threads,
        .context = (uint32_t)cmd_session.context,
        .chunk = (uint32_t)cmd_session.chunk,
        .kv = cmd_session.kv < 0 ? STELE_KV_DEFAULT : kinds[cmd_session.kv],
        .kernels = cmd_kernels(),
        .device = cmd_session.device,
        .vram = cmd_session.vram,
    };
}
