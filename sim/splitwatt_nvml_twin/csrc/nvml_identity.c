/*
 * NVML's plain getters: who the GPU is, its memory, temperature, utilisation and modes.
 */
#define _GNU_SOURCE
#include "nvml_entry.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { WORKLOAD_PID = 4242 }; /* what loads a GPU is a number in the shared file, and no process that could be named */

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    ENTER(device, CALL_IDENTITY);
    return entry_text(entry.model->name, name, length);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    ENTER(device, CALL_IDENTITY);
    return entry_text(entry.model->uuid, uuid, length);
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
    ENTER(device, CALL_IDENTITY);
    char text[32];
    unsigned int hash = 2166136261u; /* FNV-1a of the UUID, so that serials differ between nodes */
    for (const char *c = entry.model->uuid; *c; c++)
        hash = (hash ^ (unsigned char)*c) * 16777619u;
    snprintf(text, sizeof text, "165%010u", hash);
    return entry_text(text, serial, length);
}

nvmlReturn_t nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(minor);
    *minor = entry.slot;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetModuleId(nvmlDevice_t device, unsigned int *module)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(module);
    *module = entry.slot + 1;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBoardId(nvmlDevice_t device, unsigned int *board)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(board);
    *board = (entry.slot + 1) << 8;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetBrand(nvmlDevice_t device, nvmlBrandType_t *brand)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(brand);
    *brand = NVML_BRAND_NVIDIA;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetArchitecture(nvmlDevice_t device, nvmlDeviceArchitecture_t *architecture)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(architecture);
    *architecture = entry.model->architecture;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(major && minor);
    *major = (int)entry.model->compute_major;
    *minor = (int)entry.model->compute_minor;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(memory);
    memory->total = (unsigned long long)entry.model->memory_bytes;
    memory->used = (unsigned long long)entry.gpu.memory_used_bytes;
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(memory);
    if (memory->version != nvmlMemory_v2)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memory->total = (unsigned long long)entry.model->memory_bytes;
    memory->reserved = 0;
    memory->used = (unsigned long long)entry.gpu.memory_used_bytes;
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(utilization);
    utilization->gpu = (unsigned int)lround(entry.gpu.utilization);
    utilization->memory = (unsigned int)lround(entry.gpu.memory_utilization);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *celsius)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(celsius && sensor == NVML_TEMPERATURE_GPU);
    *celsius = (unsigned int)lround(entry.gpu.temperature_c);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_t *temperature)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(temperature);
    if (temperature->version != nvmlTemperature_v1)
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    REQUIRE(temperature->sensorType == NVML_TEMPERATURE_GPU);
    temperature->temperature = (int)lround(entry.gpu.temperature_c);
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, nvmlPstates_t *state)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(state);
    *state = NVML_PSTATE_0;
    return NVML_SUCCESS;
}

/* One process for as long as something loads the GPU or holds memory on it; pynvml asks for the count first. */
nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *infos)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(count);
    unsigned int room = *count;
    *count = twin_is_idle(entry.model, &entry.gpu) && entry.gpu.memory_used_bytes <= 0.0 ? 0 : 1;
    if (*count == 0)
        return NVML_SUCCESS;
    if (room < *count)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    REQUIRE(infos);
    memset(infos, 0, sizeof *infos);
    infos->pid = WORKLOAD_PID;
    infos->usedGpuMemory = (unsigned long long)entry.gpu.memory_used_bytes;
    infos->gpuInstanceId = infos->computeInstanceId = 0xFFFFFFFF;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    ENTER(device, CALL_IDENTITY);
    REQUIRE(current && pending);
    *current = *pending = entry.gpu.mig_devices ? NVML_DEVICE_MIG_ENABLE : NVML_DEVICE_MIG_DISABLE;
    return NVML_SUCCESS;
}
