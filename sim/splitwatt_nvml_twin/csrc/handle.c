/*
 * The other side of the simulated GPUs: what hardware, workload and laboratory do to them. Called through ctypes by
 * handle.py; not part of NVML. Functions return 0 on success and an errno-like code otherwise.
 */
#define _GNU_SOURCE
#include "twin.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct twin_demand {
    uint32_t gpu, sm_clock_mhz;
    double power_w, utilization, memory_utilization, memory_used_bytes;
};

struct twin_truth {
    int64_t at_ns;
    uint64_t reasons;
    double power_w, uncapped_w, energy_j, temperature_c, capped_s, demand_w, utilization, sample_w, average_w;
    uint32_t management_mw, enforced_mw, outside_mw, sm_clock_mhz, locked_min_mhz, locked_max_mhz;
    uint32_t persistence, lost, resets, setter_calls;
};

/* Sizes of everything that crosses into Python, so that a mismatch is an error and not a riddle. */
TWIN_EXPORT uint64_t splitwatt_twin_abi(void)
{
    return (uint64_t)TWIN_LAYOUT << 56 | (uint64_t)sizeof(struct twin_model) << 40 | (uint64_t)sizeof(struct twin_fault) << 28 |
           (uint64_t)sizeof(struct twin_demand) << 16 | (uint64_t)sizeof(struct twin_truth);
}

static int init_lock(pthread_mutex_t *lock)
{
    pthread_mutexattr_t attributes;
    int code = pthread_mutexattr_init(&attributes);
    if (code != 0)
        return code;
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    code = pthread_mutex_init(lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return code;
}

TWIN_EXPORT int splitwatt_twin_create(const char *path, const struct twin_model *models, uint32_t count,
                                      const char *boot_id, int64_t manual_now_ns)
{
    if (count < 1 || count > TWIN_MAX_GPUS || strlen(boot_id) >= TWIN_TEXT)
        return EINVAL;
    size_t length = strlen(path) + 32;
    char *fresh = malloc(length);
    if (!fresh)
        return ENOMEM;
    snprintf(fresh, length, "%s.new-%d", path, (int)getpid());
    int code = 0, fd = open(fresh, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    struct twin_file *file = MAP_FAILED;
    if (fd < 0) {
        code = errno;
        free(fresh);
        return code;
    }
    if (ftruncate(fd, sizeof *file) != 0 ||
        (file = mmap(NULL, sizeof *file, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED)
        code = errno;
    close(fd);
    if (code == 0)
        code = init_lock(&file->lock);
    if (code == 0) {
        memcpy(file->magic, "splitwatt-gpus", 15);
        file->layout = TWIN_LAYOUT;
        file->size = sizeof *file;
        file->gpu_count = count;
        file->manual_clock = manual_now_ns >= 0;
        file->manual_now_ns = manual_now_ns;
        file->boot[0].generation = 1;
        memcpy(file->boot[0].boot_id, boot_id, strlen(boot_id) + 1);
        int64_t now_ns = twin_now_ns(file);
        for (uint32_t slot = 0; slot < count; slot++) {
            file->boot[0].order[slot] = slot;
            file->gpus[slot].model = models[slot];
            twin_initial(&models[slot], now_ns, &file->gpus[slot].copy[0]);
        }
        if (link(fresh, path) != 0) /* appears whole, and never over another node's state */
            code = errno;
    }
    if (file != MAP_FAILED)
        munmap(file, sizeof *file);
    unlink(fresh);
    free(fresh);
    return code;
}

TWIN_EXPORT struct twin_file *splitwatt_twin_open(const char *path, char *error, uint32_t error_size)
{
    return twin_map(path, error, error_size);
}

TWIN_EXPORT void splitwatt_twin_close(struct twin_file *file)
{
    munmap(file, sizeof *file);
}

/*
 * What a process does that is killed or stopped in the middle of a change: takes the lock, leaves nonsense in the spare
 * copy, and signals itself. Returns (after SIGCONT) with the lock given back. For tests of the promise in twin.h.
 */
TWIN_EXPORT int splitwatt_twin_signal_inside(struct twin_file *file, uint32_t slot, int signal_number)
{
    if (slot >= file->gpu_count)
        return EINVAL;
    int code = twin_lock(file);
    if (code != 0)
        return code;
    memset(twin_begin_gpu(file, slot, twin_now_ns(file)), 0xa5, sizeof(struct twin_gpu));
    memset(twin_begin_boot(file), 0xa5, sizeof(struct twin_boot));
    raise(signal_number);
    twin_unlock(file);
    return 0;
}

TWIN_EXPORT uint32_t splitwatt_twin_count(const struct twin_file *file)
{
    return file->gpu_count;
}

TWIN_EXPORT int splitwatt_twin_model(const struct twin_file *file, uint32_t slot, struct twin_model *out)
{
    if (slot >= file->gpu_count)
        return EINVAL;
    *out = file->gpus[slot].model;
    return 0;
}

TWIN_EXPORT int splitwatt_twin_boot_id(struct twin_file *file, char *out, uint32_t size)
{
    struct twin_boot boot;
    twin_view_boot(file, &boot);
    snprintf(out, size, "%s", boot.boot_id);
    return 0;
}

TWIN_EXPORT int64_t splitwatt_twin_now_ns(const struct twin_file *file)
{
    return twin_now_ns(file);
}

TWIN_EXPORT int splitwatt_twin_advance_clock(struct twin_file *file, int64_t by_ns)
{
    if (!file->manual_clock || by_ns < 0)
        return EINVAL;
    __atomic_add_fetch(&file->manual_now_ns, by_ns, __ATOMIC_ACQ_REL);
    return 0;
}

TWIN_EXPORT int splitwatt_twin_set_demands(struct twin_file *file, const struct twin_demand *demands, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (demands[i].gpu >= file->gpu_count || !isfinite(demands[i].power_w) || demands[i].power_w < 0.0)
            return EINVAL;
    int code = twin_lock(file);
    if (code != 0)
        return code;
    int64_t now_ns = twin_now_ns(file);
    for (uint32_t i = 0; i < count; i++) {
        const struct twin_demand *demand = &demands[i];
        const struct twin_model *model = &file->gpus[demand->gpu].model;
        struct twin_gpu *gpu = twin_begin_gpu(file, demand->gpu, now_ns);
        gpu->demand_w = fmax(demand->power_w, model->idle_w);
        gpu->demand_mhz = demand->sm_clock_mhz ? demand->sm_clock_mhz : model->max_clock_mhz;
        if (gpu->demand_mhz > model->max_clock_mhz)
            gpu->demand_mhz = model->max_clock_mhz;
        if (gpu->demand_mhz < model->min_clock_mhz)
            gpu->demand_mhz = model->min_clock_mhz;
        gpu->utilization = demand->utilization;
        gpu->memory_utilization = demand->memory_utilization;
        gpu->memory_used_bytes = fmin(demand->memory_used_bytes, model->memory_bytes);
        twin_retarget(model, gpu);
        twin_publish_gpu(file, demand->gpu);
    }
    twin_unlock(file);
    return 0;
}

TWIN_EXPORT int splitwatt_twin_read(struct twin_file *file, uint32_t first, uint32_t count, struct twin_truth *out)
{
    if (first >= file->gpu_count || count > file->gpu_count - first)
        return EINVAL;
    twin_sweep_if_due(file);
    int64_t now_ns = twin_now_ns(file);
    for (uint32_t i = 0; i < count; i++) {
        const struct twin_model *model = &file->gpus[first + i].model;
        struct twin_gpu gpu;
        twin_view_gpu(file, first + i, now_ns, &gpu);
        out[i] = (struct twin_truth){
            .at_ns = gpu.at_ns, .reasons = twin_event_reasons(model, &gpu), .power_w = gpu.power_w,
            .uncapped_w = gpu.uncapped_w, .energy_j = gpu.energy_j, .temperature_c = gpu.temperature_c,
            .capped_s = gpu.capped_s, .demand_w = gpu.demand_w, .utilization = gpu.utilization,
            .sample_w = gpu.sample_w, .average_w = gpu.average_w, .management_mw = gpu.management_mw,
            .enforced_mw = twin_enforced_mw(&gpu), .outside_mw = gpu.outside_mw,
            .sm_clock_mhz = twin_sm_clock_mhz(model, &gpu), .locked_min_mhz = gpu.lock_min_mhz,
            .locked_max_mhz = gpu.lock_max_mhz, .persistence = gpu.persistence, .lost = twin_is_lost(&gpu),
            .resets = gpu.resets, .setter_calls = gpu.setter_calls,
        };
    }
    return 0;
}

TWIN_EXPORT int splitwatt_twin_set_fault(struct twin_file *file, uint32_t slot, const struct twin_fault *fault)
{
    if (slot >= file->gpu_count || fault->call >= CALL_COUNT || fault->kind > FAULT_HANG)
        return EINVAL;
    int code = twin_lock(file);
    if (code != 0)
        return code;
    struct twin_gpu *gpu = twin_begin_gpu(file, slot, twin_now_ns(file));
    gpu->faults[fault->call] = *fault;
    gpu->faults[fault->call].serial = ++file->fault_serial;
    twin_publish_gpu(file, slot);
    twin_unlock(file);
    return 0;
}

TWIN_EXPORT int splitwatt_twin_clear_faults(struct twin_file *file, uint32_t slot)
{
    if (slot >= file->gpu_count)
        return EINVAL;
    int code = twin_lock(file);
    if (code != 0)
        return code;
    struct twin_gpu *gpu = twin_begin_gpu(file, slot, twin_now_ns(file));
    memset(gpu->faults, 0, sizeof gpu->faults);
    twin_publish_gpu(file, slot);
    twin_unlock(file);
    return 0;
}

static int set_one(struct twin_file *file, uint32_t slot, size_t offset, uint32_t value)
{
    if (slot >= file->gpu_count)
        return EINVAL;
    int code = twin_lock(file);
    if (code != 0)
        return code;
    struct twin_gpu *gpu = twin_begin_gpu(file, slot, twin_now_ns(file));
    *(uint32_t *)((char *)gpu + offset) = value;
    twin_publish_gpu(file, slot);
    twin_unlock(file);
    return 0;
}

/* An out-of-band limiter (a BMC, a rack manager) beside the driver's own limit; 0 mW: it lets go. */
TWIN_EXPORT int splitwatt_twin_set_outside_limit(struct twin_file *file, uint32_t slot, uint32_t limit_mw)
{
    return set_one(file, slot, offsetof(struct twin_gpu, outside_mw), limit_mw);
}

/* Watts that the present load draws whatever the cap, up to what it wants; 0: none but the idle draw. */
TWIN_EXPORT int splitwatt_twin_set_floor(struct twin_file *file, uint32_t slot, uint32_t floor_mw)
{
    return set_one(file, slot, offsetof(struct twin_gpu, floor_mw), floor_mw);
}

/* MIG on with so many instances; 0: off. */
TWIN_EXPORT int splitwatt_twin_set_mig(struct twin_file *file, uint32_t slot, uint32_t devices)
{
    return devices > TWIN_MAX_MIG ? EINVAL : set_one(file, slot, offsetof(struct twin_gpu, mig_devices), devices);
}

static void reset(struct twin_file *file, uint32_t slot, int64_t now_ns, bool reboot)
{
    const struct twin_model *model = &file->gpus[slot].model;
    struct twin_gpu *gpu = twin_begin_gpu(file, slot, now_ns);
    if (reboot) {
        /* Nothing runs on a node that has just booted, and legacy persistence mode is off until something sets it. */
        gpu->demand_w = model->idle_w;
        gpu->utilization = gpu->memory_utilization = gpu->memory_used_bytes = 0.0;
        gpu->persistence = model->boot_persistence;
        gpu->floor_mw = 0;
    }
    twin_forget_settings(model, gpu);
    twin_cure_lost(gpu);
    gpu->nvml_energy_base_j = gpu->energy_j;
    gpu->resets++;
    twin_publish_gpu(file, slot);
}

TWIN_EXPORT int splitwatt_twin_reset_gpu(struct twin_file *file, uint32_t slot)
{
    if (slot >= file->gpu_count)
        return EINVAL;
    int code = twin_lock(file);
    if (code != 0)
        return code;
    reset(file, slot, twin_now_ns(file), false);
    twin_unlock(file);
    return 0;
}

TWIN_EXPORT int splitwatt_twin_reboot(struct twin_file *file, const char *boot_id, const uint32_t *order)
{
    bool seen[TWIN_MAX_GPUS] = {false};
    for (uint32_t i = 0; i < file->gpu_count; i++) {
        if (order[i] >= file->gpu_count || seen[order[i]])
            return EINVAL;
        seen[order[i]] = true;
    }
    if (strlen(boot_id) >= TWIN_TEXT)
        return EINVAL;
    int code = twin_lock(file);
    if (code != 0)
        return code;
    int64_t now_ns = twin_now_ns(file);
    /* First the strangers, then the defaults: no client of the old driver can set a limit in between. */
    struct twin_boot *boot = twin_begin_boot(file);
    boot->generation++;
    memcpy(boot->boot_id, boot_id, strlen(boot_id) + 1);
    memcpy(boot->order, order, file->gpu_count * sizeof *order);
    twin_publish_boot(file);
    for (uint32_t slot = 0; slot < file->gpu_count; slot++)
        reset(file, slot, now_ns, true);
    for (int i = 0; i < TWIN_MAX_CLIENTS; i++)
        file->clients[i].pid = 0;
    __atomic_store_n(&file->clients_live, 0, __ATOMIC_RELEASE);
    twin_unlock(file);
    return 0;
}
