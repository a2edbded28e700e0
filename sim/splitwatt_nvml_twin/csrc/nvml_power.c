/*
 * NVML's power and clock functions: limits, readings, field values, clock locks, event reasons, persistence mode.
 */
#define _GNU_SOURCE
#include "nvml_entry.h"

#include <stddef.h>
#include <string.h>
#include <time.h>

static uint64_t nvml_energy_mj(const struct twin_gpu *gpu)
{
    return (uint64_t)((gpu->energy_j - gpu->nvml_energy_base_j) * 1000.0);
}

/* --- limits --------------------------------------------------------------------------------------------------------- */

static nvmlReturn_t set_power_limit(struct entry *entry, unsigned int limit_mw)
{
    struct twin_gpu *gpu;
    if (limit_mw < entry->model->min_limit_mw || limit_mw > entry->model->max_limit_mw)
        return NVML_ERROR_INVALID_ARGUMENT;
    nvmlReturn_t code = entry_begin(entry, &gpu);
    if (code != NVML_SUCCESS)
        return code;
    gpu->setter_calls++;
    if (!entry->effect.lie)
        gpu->management_mw = entry->effect.clamp ? entry->effect.clamp_mw : limit_mw;
    entry_commit(entry);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned int limit)
{
    ENTER(device, CALL_SET_POWER_LIMIT);
    return set_power_limit(&entry, limit);
}

nvmlReturn_t nvmlDeviceSetPowerManagementLimit_v2(nvmlDevice_t device, nvmlPowerValue_v2_t *value)
{
    ENTER(device, CALL_SET_POWER_LIMIT);
    REQUIRE(value);
    if (value->version != nvmlPowerValue_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (value->powerScope != NVML_POWER_SCOPE_GPU)
        return NVML_ERROR_NOT_SUPPORTED; /* no module around these GPUs */
    return set_power_limit(&entry, value->powerValueMw);
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *limit)
{
    ENTER(device, CALL_GET_POWER_LIMIT);
    REQUIRE(limit);
    *limit = entry.gpu.management_mw;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *least, unsigned int *most)
{
    ENTER(device, CALL_GET_LIMIT_RANGE);
    REQUIRE(least && most);
    *least = entry.model->min_limit_mw;
    *most = entry.model->max_limit_mw;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device, unsigned int *limit)
{
    ENTER(device, CALL_GET_LIMIT_RANGE);
    REQUIRE(limit);
    *limit = entry.model->default_limit_mw;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *limit)
{
    ENTER(device, CALL_GET_ENFORCED_LIMIT);
    REQUIRE(limit);
    *limit = twin_enforced_mw(&entry.gpu);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerManagementMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    ENTER(device, CALL_GET_POWER_LIMIT);
    REQUIRE(mode);
    *mode = NVML_FEATURE_ENABLED;
    return NVML_SUCCESS;
}

/* --- readings ------------------------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *power)
{
    ENTER(device, CALL_GET_POWER_USAGE);
    REQUIRE(power);
    *power = twin_sensor_mw(entry.model, entry.model->averaged_usage ? entry.gpu.average_w : entry.gpu.sample_w);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *energy)
{
    ENTER(device, CALL_GET_ENERGY);
    REQUIRE(energy);
    *energy = nvml_energy_mj(&entry.gpu);
    return NVML_SUCCESS;
}

static void field_uint(nvmlFieldValue_t *field, unsigned int value)
{
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
    field->value.uiVal = value;
    field->nvmlReturn = NVML_SUCCESS;
}

static void field_ull(nvmlFieldValue_t *field, unsigned long long value)
{
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    field->value.ullVal = value;
    field->nvmlReturn = NVML_SUCCESS;
}

static void fill_field(struct entry *entry, nvmlFieldValue_t *field)
{
    const struct twin_model *model = entry->model;
    bool power = field->fieldId >= NVML_FI_DEV_POWER_AVERAGE && field->fieldId <= NVML_FI_DEV_POWER_REQUESTED_LIMIT;
    if (power && field->scopeId != NVML_POWER_SCOPE_GPU) {
        field->nvmlReturn = field->scopeId < NVML_POWER_SCOPE_COUNT ? NVML_ERROR_NOT_SUPPORTED : NVML_ERROR_INVALID_ARGUMENT;
        return;
    }
    switch (field->fieldId) {
    case NVML_FI_DEV_POWER_INSTANT: {
        struct twin_effect effect = twin_strike(entry->file, entry->slot, CALL_FIELD_POWER_INSTANT);
        field->nvmlReturn = effect.code;
        if (effect.code == NVML_SUCCESS)
            field_uint(field, twin_sensor_mw(model, entry->gpu.sample_w));
        return;
    }
    case NVML_FI_DEV_POWER_AVERAGE:
        if (model->averaged_usage) /* "except GA100", as nvml.h says */
            field_uint(field, twin_sensor_mw(model, entry->gpu.average_w));
        return;
    case NVML_FI_DEV_POWER_MIN_LIMIT:
        field_uint(field, model->min_limit_mw);
        return;
    case NVML_FI_DEV_POWER_MAX_LIMIT:
        field_uint(field, model->max_limit_mw);
        return;
    case NVML_FI_DEV_POWER_DEFAULT_LIMIT:
        field_uint(field, model->default_limit_mw);
        return;
    case NVML_FI_DEV_POWER_CURRENT_LIMIT:
        field_uint(field, twin_enforced_mw(&entry->gpu));
        return;
    case NVML_FI_DEV_POWER_REQUESTED_LIMIT:
        field_uint(field, entry->gpu.management_mw);
        return;
    case NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
    case NVML_FI_DEV_ENERGY:
        field_ull(field, nvml_energy_mj(&entry->gpu));
        return;
    case NVML_FI_DEV_PERF_POLICY_POWER:
        field_ull(field, (unsigned long long)(entry->gpu.capped_s * 1e9));
        return;
    default:
        return;
    }
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values)
{
    ENTER(device, CALL_GET_FIELD_VALUES);
    REQUIRE(values && count > 0);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < count; i++) {
        values[i].timestamp = (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000;
        values[i].latencyUsec = 0;
        values[i].nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        fill_field(&entry, &values[i]);
    }
    return NVML_SUCCESS;
}

/* --- clocks --------------------------------------------------------------------------------------------------------- */

static nvmlReturn_t lock_clocks(struct entry *entry, unsigned int least, unsigned int most)
{
    struct twin_gpu *gpu;
    nvmlReturn_t code = entry_begin(entry, &gpu);
    if (code != NVML_SUCCESS)
        return code;
    if (!entry->effect.lie) {
        gpu->lock_min_mhz = least;
        gpu->lock_max_mhz = most;
        twin_retarget(entry->model, gpu);
    }
    entry_commit(entry);
    return NVML_SUCCESS;
}

static unsigned int supported_mhz(const struct twin_model *model, unsigned int mhz)
{
    if (mhz > model->max_clock_mhz)
        mhz = model->max_clock_mhz;
    if (mhz < model->min_clock_mhz)
        mhz = model->min_clock_mhz;
    return mhz - (mhz - model->min_clock_mhz) % model->clock_step_mhz;
}

nvmlReturn_t nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned int least, unsigned int most)
{
    ENTER(device, CALL_SET_LOCKED_CLOCKS);
    if (least == NVML_CLOCK_LIMIT_ID_UNLIMITED && most == NVML_CLOCK_LIMIT_ID_UNLIMITED)
        return lock_clocks(&entry, 0, 0);
    if (least > NVML_CLOCK_LIMIT_ID_RANGE_START || most > NVML_CLOCK_LIMIT_ID_RANGE_START)
        return NVML_ERROR_NOT_SUPPORTED; /* no TDP clock is simulated */
    REQUIRE(most > 0 && least <= most);
    return lock_clocks(&entry, supported_mhz(entry.model, least), supported_mhz(entry.model, most));
}

nvmlReturn_t nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device)
{
    ENTER(device, CALL_RESET_LOCKED_CLOCKS);
    return lock_clocks(&entry, 0, 0);
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock)
{
    ENTER(device, CALL_GET_CLOCKS);
    REQUIRE(clock && type < NVML_CLOCK_COUNT);
    if (type == NVML_CLOCK_VIDEO)
        return NVML_ERROR_NOT_SUPPORTED;
    *clock = type == NVML_CLOCK_MEM ? entry.model->memory_clock_mhz : twin_sm_clock_mhz(entry.model, &entry.gpu);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *clock)
{
    ENTER(device, CALL_GET_CLOCKS);
    REQUIRE(clock && type < NVML_CLOCK_COUNT);
    if (type == NVML_CLOCK_VIDEO)
        return NVML_ERROR_NOT_SUPPORTED;
    *clock = type == NVML_CLOCK_MEM ? entry.model->memory_clock_mhz : entry.model->max_clock_mhz;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, nvmlClockType_t type, nvmlClockId_t id, unsigned int *clock)
{
    if (id == NVML_CLOCK_ID_CURRENT)
        return nvmlDeviceGetClockInfo(device, type, clock);
    if (id == NVML_CLOCK_ID_CUSTOMER_BOOST_MAX)
        return nvmlDeviceGetMaxClockInfo(device, type, clock);
    return NVML_ERROR_NOT_SUPPORTED;
}

nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned int *count, unsigned int *clocks)
{
    ENTER(device, CALL_GET_CLOCKS);
    REQUIRE(count);
    unsigned int room = *count;
    *count = 1;
    if (room < 1 || !clocks)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    clocks[0] = entry.model->memory_clock_mhz;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned int memory_mhz, unsigned int *count, unsigned int *clocks)
{
    ENTER(device, CALL_GET_CLOCKS);
    REQUIRE(count);
    if (memory_mhz != entry.model->memory_clock_mhz)
        return NVML_ERROR_NOT_FOUND;
    const struct twin_model *model = entry.model;
    unsigned int room = *count;
    *count = (model->max_clock_mhz - model->min_clock_mhz) / model->clock_step_mhz + 1;
    if (room < *count || !clocks)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    for (unsigned int i = 0; i < *count; i++)
        clocks[i] = model->min_clock_mhz + (*count - 1 - i) * model->clock_step_mhz;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons)
{
    ENTER(device, CALL_GET_CLOCKS);
    REQUIRE(reasons);
    *reasons = twin_event_reasons(entry.model, &entry.gpu);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons)
{
    return nvmlDeviceGetCurrentClocksEventReasons(device, reasons);
}

nvmlReturn_t nvmlDeviceGetSupportedClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons)
{
    ENTER(device, CALL_GET_CLOCKS);
    REQUIRE(reasons);
    *reasons = nvmlClocksEventReasonGpuIdle | nvmlClocksEventReasonSwPowerCap;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetSupportedClocksThrottleReasons(nvmlDevice_t device, unsigned long long *reasons)
{
    return nvmlDeviceGetSupportedClocksEventReasons(device, reasons);
}

/* --- persistence mode ----------------------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t *mode)
{
    ENTER(device, CALL_GET_PERSISTENCE);
    REQUIRE(mode);
    *mode = entry.gpu.persistence ? NVML_FEATURE_ENABLED : NVML_FEATURE_DISABLED;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, nvmlEnableState_t mode)
{
    ENTER(device, CALL_SET_PERSISTENCE);
    REQUIRE(mode == NVML_FEATURE_ENABLED || mode == NVML_FEATURE_DISABLED);
    struct twin_gpu *gpu;
    nvmlReturn_t code = entry_begin(&entry, &gpu);
    if (code != NVML_SUCCESS)
        return code;
    if (!entry.effect.lie)
        gpu->persistence = mode == NVML_FEATURE_ENABLED;
    entry_commit(&entry);
    return NVML_SUCCESS;
}
