/*
 * Faults on the way into a call, per GPU and per kind of call.
 *
 * Protects: a hanging call holds nothing while it hangs, and completes afterwards as it was asked to, on the state it
 * then finds, as a driver call stuck in the kernel does.
 */
#define _GNU_SOURCE
#include "twin.h"

#include <time.h>

static const struct timespec HANG_POLL = {.tv_nsec = 10000000};

bool twin_is_lost(const struct twin_gpu *gpu)
{
    const struct twin_fault *fault = &gpu->faults[CALL_ANY];
    return fault->kind == FAULT_RETURN && fault->code == NVML_ERROR_GPU_IS_LOST;
}

void twin_cure_lost(struct twin_gpu *gpu)
{
    if (twin_is_lost(gpu))
        gpu->faults[CALL_ANY].kind = FAULT_NONE;
}

static const struct twin_fault *find(const struct twin_gpu *gpu, enum twin_call call)
{
    if (gpu->faults[call].kind != FAULT_NONE)
        return &gpu->faults[call];
    if (call == CALL_HANDLE || call == CALL_FIELD_POWER_INSTANT || call == CALL_INIT)
        return &gpu->faults[call]; /* the fault of every call has struck, or will, at the call around it */
    return &gpu->faults[CALL_ANY];
}

static void use_up(struct twin_file *file, uint32_t slot, const struct twin_fault *used)
{
    if (used->times == 0 || twin_lock(file) != 0)
        return;
    struct twin_gpu *gpu = twin_begin_gpu(file, slot, twin_now_ns(file));
    struct twin_fault *fault = &gpu->faults[used->call];
    if (fault->kind != FAULT_NONE && fault->serial == used->serial && --fault->times == 0)
        fault->kind = FAULT_NONE;
    twin_publish_gpu(file, slot);
    twin_unlock(file);
}

static void hang(struct twin_file *file, uint32_t slot, const struct twin_fault *fault)
{
    int64_t started_ns = twin_now_ns(file);
    for (;;) {
        struct twin_gpu gpu;
        twin_peek_gpu(file, slot, &gpu);
        const struct twin_fault *present = &gpu.faults[fault->call];
        if (present->kind != FAULT_HANG || present->serial != fault->serial)
            return;
        if (fault->hang_s > 0.0 && (double)(twin_now_ns(file) - started_ns) * 1e-9 >= fault->hang_s)
            return;
        nanosleep(&HANG_POLL, NULL);
    }
}

struct twin_effect twin_strike(struct twin_file *file, uint32_t slot, enum twin_call call)
{
    struct twin_effect effect = {.code = NVML_SUCCESS};
    struct twin_gpu gpu;
    twin_peek_gpu(file, slot, &gpu);
    struct twin_fault fault = *find(&gpu, call);
    if (twin_is_lost(&gpu) && call != CALL_INIT) {
        effect.code = NVML_ERROR_GPU_IS_LOST;
        return effect;
    }
    switch (fault.kind) {
    case FAULT_RETURN:
        effect.code = (nvmlReturn_t)fault.code;
        break;
    case FAULT_LIE:
        effect.lie = true;
        break;
    case FAULT_CLAMP:
        effect.clamp = true;
        effect.clamp_mw = fault.value_mw;
        break;
    case FAULT_HANG:
        hang(file, slot, &fault);
        twin_peek_gpu(file, slot, &gpu);
        if (twin_is_lost(&gpu))
            effect.code = NVML_ERROR_GPU_IS_LOST;
        break;
    default:
        return effect;
    }
    use_up(file, slot, &fault);
    return effect;
}
