/*
 * NVML's library level: initialisation, versions, error texts, and the way from an index, UUID or PCI address to a handle.
 *
 * A handle is the slot stamped with the driver load it was obtained under; one of an older load is INVALID_ARGUMENT.
 * After a driver reload or reboot every call answers UNINITIALIZED until the process calls nvmlInit again.
 */
#define _GNU_SOURCE
#include "nvml_entry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const uintptr_t HANDLE_STAMP = (uintptr_t)0x5357 << 48;
enum { HANDLE_SLOT_BITS = 8, HANDLE_MIG_BITS = 4, PCI_FIRST_BUS = 0x10 };
enum { UUID_PREFIX = 4 }; /* "GPU-", or "MIG-" and then the instance's number in place of the first digit */

static pthread_mutex_t local_lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows; never held during a device call */
static struct twin_file *node;
static struct stat node_status;
static unsigned int init_count;
static uint64_t init_generation;
static bool fork_watched;

static void after_fork(void)
{
    /* The child is another process: not a client until it initialises NVML itself. */
    pthread_mutex_init(&local_lock, NULL);
    init_count = 0;
}

static nvmlReturn_t map_node(void)
{
    char error[256];
    const char *path = getenv("SPLITWATT_NVML_TWIN");
    struct stat status;
    if (!path || stat(path, &status) != 0)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    if (node && status.st_dev == node_status.st_dev && status.st_ino == node_status.st_ino)
        return NVML_SUCCESS;
    /* Another node than before: the old mapping stays, for a hung call of another thread may still look at it. */
    struct twin_file *fresh = twin_map(path, error, sizeof error);
    if (!fresh) {
        fprintf(stderr, "libnvidia-ml (simulated): %s\n", error);
        return NVML_ERROR_DRIVER_NOT_LOADED;
    }
    node = fresh;
    node_status = status;
    return NVML_SUCCESS;
}

static nvmlReturn_t initialise(void)
{
    struct twin_boot boot;
    if (init_count > 0) {
        twin_view_boot(node, &boot);
        if (boot.generation == init_generation) {
            init_count++;
            return NVML_SUCCESS;
        }
        init_count = 0;
    }
    nvmlReturn_t code = map_node();
    if (code != NVML_SUCCESS)
        return code;
    if (!fork_watched) {
        pthread_atfork(NULL, NULL, after_fork);
        fork_watched = true;
    }
    if (twin_lock(node) != 0)
        return NVML_ERROR_UNKNOWN;
    int added = twin_add_client(node);
    twin_view_boot(node, &boot);
    twin_unlock(node);
    if (added != 0)
        return NVML_ERROR_INSUFFICIENT_RESOURCES;
    init_generation = boot.generation;
    init_count = 1;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    pthread_mutex_lock(&local_lock);
    nvmlReturn_t code = init_count > 0 ? NVML_SUCCESS : map_node();
    struct twin_file *present = node;
    pthread_mutex_unlock(&local_lock);
    if (code != NVML_SUCCESS)
        return code;
    code = twin_strike(present, 0, CALL_INIT).code; /* may hang, and holds nothing meanwhile */
    if (code != NVML_SUCCESS)
        return code;
    pthread_mutex_lock(&local_lock);
    code = initialise();
    pthread_mutex_unlock(&local_lock);
    return code;
}

nvmlReturn_t nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlShutdown(void)
{
    struct twin_boot boot;
    nvmlReturn_t code = NVML_ERROR_UNINITIALIZED;
    pthread_mutex_lock(&local_lock);
    if (init_count > 0) {
        twin_view_boot(node, &boot);
        if (boot.generation != init_generation) {
            init_count = 0;
        } else {
            code = NVML_SUCCESS;
            if (--init_count == 0 && twin_lock(node) == 0) {
                twin_drop_client(node);
                twin_unlock(node);
            }
        }
    }
    pthread_mutex_unlock(&local_lock);
    return code;
}

nvmlReturn_t entry_node(struct twin_file **file, struct twin_boot *boot)
{
    pthread_mutex_lock(&local_lock);
    unsigned int initialised = init_count;
    uint64_t generation = init_generation;
    *file = node;
    pthread_mutex_unlock(&local_lock);
    if (!initialised)
        return NVML_ERROR_UNINITIALIZED;
    twin_view_boot(*file, boot);
    return boot->generation == generation ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}

nvmlDevice_t entry_handle(uint64_t generation, uint32_t slot)
{
    uintptr_t stamp = (uintptr_t)(generation & 0xffffffff) << (HANDLE_SLOT_BITS + HANDLE_MIG_BITS);
    return (nvmlDevice_t)(HANDLE_STAMP | stamp | (slot + 1));
}

nvmlReturn_t entry_device(nvmlDevice_t device, enum twin_call call, struct entry *entry)
{
    struct twin_boot boot;
    nvmlReturn_t code = entry_node(&entry->file, &boot);
    if (code != NVML_SUCCESS)
        return code;
    uint32_t slot = (uint32_t)((uintptr_t)device & ((1u << HANDLE_SLOT_BITS) - 1)) - 1;
    if (slot >= entry->file->gpu_count || device != entry_handle(boot.generation, slot))
        return NVML_ERROR_INVALID_ARGUMENT;
    entry->slot = slot;
    entry->model = &entry->file->gpus[slot].model;
    entry->generation = boot.generation;
    entry->effect = twin_strike(entry->file, slot, call);
    if (entry->effect.code != NVML_SUCCESS)
        return entry->effect.code;
    twin_view_boot(entry->file, &boot); /* the call may have hung through a reboot */
    if (boot.generation != entry->generation)
        return NVML_ERROR_UNINITIALIZED;
    twin_view_gpu(entry->file, slot, twin_now_ns(entry->file), &entry->gpu);
    return NVML_SUCCESS;
}

nvmlReturn_t entry_begin(struct entry *entry, struct twin_gpu **gpu)
{
    struct twin_boot boot;
    if (twin_lock(entry->file) != 0)
        return NVML_ERROR_UNKNOWN;
    twin_view_boot(entry->file, &boot);
    if (boot.generation != entry->generation) {
        twin_unlock(entry->file);
        return NVML_ERROR_UNINITIALIZED;
    }
    *gpu = twin_begin_gpu(entry->file, entry->slot, twin_now_ns(entry->file));
    return NVML_SUCCESS;
}

void entry_commit(struct entry *entry)
{
    twin_publish_gpu(entry->file, entry->slot);
    twin_unlock(entry->file);
}

nvmlReturn_t entry_text(const char *text, char *out, unsigned int length)
{
    if (!out)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) >= length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, text, strlen(text) + 1);
    return NVML_SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t result)
{
    static const char *const texts[] = {
        "Success", "Uninitialized", "Invalid Argument", "Not Supported", "Insufficient Permissions", "Already Initialized",
        "Not Found", "Insufficient Size", "Insufficient External Power", "Driver Not Loaded", "Timeout",
        "Interrupt Request Issue", "NVML Shared Library Not Found", "Function Not Found", "Corrupted infoROM", "GPU is lost",
        "GPU requires restart", "Operating System call failed", "Driver/library version mismatch", "In use by another client",
        "Insufficient Memory", "No data", "The requested vgpu operation is not available on target device, becasue ECC is enabled",
        "Insufficient Resources", "Frequency not supported", "Argument version mismatch", "Deprecated", "Not ready",
        "GPU not found", "Invalid state", "Reset type not supported",
    };
    if ((unsigned int)result < sizeof texts / sizeof *texts)
        return texts[result];
    return "Unknown Error";
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    struct twin_file *file;
    struct twin_boot boot;
    nvmlReturn_t code = entry_node(&file, &boot);
    return code != NVML_SUCCESS ? code : entry_text("580.0-splitwatt", version, length);
}

nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    return entry_text("13.580.0-splitwatt", version, length); /* answered before nvmlInit too */
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
    if (!version)
        return NVML_ERROR_INVALID_ARGUMENT;
    *version = 13000;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    return nvmlSystemGetCudaDriverVersion(version);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
    struct twin_file *file;
    struct twin_boot boot;
    nvmlReturn_t code = entry_node(&file, &boot);
    if (code != NVML_SUCCESS)
        return code;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = file->gpu_count;
    return NVML_SUCCESS;
}

static nvmlReturn_t hand_out(struct twin_file *file, const struct twin_boot *boot, uint32_t slot, nvmlDevice_t *device)
{
    struct twin_effect effect = twin_strike(file, slot, CALL_HANDLE);
    if (effect.code == NVML_SUCCESS)
        *device = entry_handle(boot->generation, slot);
    return effect.code;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    struct twin_file *file;
    struct twin_boot boot;
    nvmlReturn_t code = entry_node(&file, &boot);
    if (code != NVML_SUCCESS)
        return code;
    if (!device || index >= file->gpu_count)
        return NVML_ERROR_INVALID_ARGUMENT;
    return hand_out(file, &boot, boot.order[index], device);
}

/* The handle of a MIG instance is its GPU's with its number added: no other call takes it for a GPU. */
static nvmlReturn_t mig_by_uuid(struct twin_file *file, const struct twin_boot *boot, const char *uuid, nvmlDevice_t *device)
{
    if (strlen(uuid) <= UUID_PREFIX)
        return NVML_ERROR_NOT_FOUND;
    uintptr_t number = (uintptr_t)(unsigned char)uuid[UUID_PREFIX] - '0';
    for (uint32_t slot = 0; slot < file->gpu_count; slot++) {
        const char *parent = file->gpus[slot].model.uuid;
        struct twin_gpu gpu;
        twin_peek_gpu(file, slot, &gpu);
        if (number < gpu.mig_devices && strcmp(uuid + UUID_PREFIX + 1, parent + UUID_PREFIX + 1) == 0) {
            nvmlReturn_t code = hand_out(file, boot, slot, device);
            if (code == NVML_SUCCESS)
                *device = (nvmlDevice_t)((uintptr_t)*device | (number + 1) << HANDLE_SLOT_BITS);
            return code;
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t instance, nvmlDevice_t *device)
{
    struct twin_file *file;
    struct twin_boot boot;
    nvmlReturn_t code = entry_node(&file, &boot);
    if (code != NVML_SUCCESS)
        return code;
    uintptr_t number = (uintptr_t)instance >> HANDLE_SLOT_BITS & ((1u << HANDLE_MIG_BITS) - 1);
    uint32_t slot = (uint32_t)((uintptr_t)instance & ((1u << HANDLE_SLOT_BITS) - 1)) - 1;
    if (!device || !number || slot >= file->gpu_count)
        return NVML_ERROR_INVALID_ARGUMENT;
    return hand_out(file, &boot, slot, device);
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    struct twin_file *file;
    struct twin_boot boot;
    nvmlReturn_t code = entry_node(&file, &boot);
    if (code != NVML_SUCCESS)
        return code;
    if (!device || !uuid)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (uint32_t slot = 0; slot < file->gpu_count; slot++)
        if (strcmp(file->gpus[slot].model.uuid, uuid) == 0)
            return hand_out(file, &boot, slot, device);
    return strncmp(uuid, "MIG-", UUID_PREFIX) == 0 ? mig_by_uuid(file, &boot, uuid, device) : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    struct twin_file *file;
    struct twin_boot boot;
    nvmlReturn_t code = entry_node(&file, &boot);
    unsigned int domain, bus, unit, function = 0;
    if (code != NVML_SUCCESS)
        return code;
    if (!device || !bus_id || sscanf(bus_id, "%x:%x:%x.%x", &domain, &bus, &unit, &function) < 3)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (domain || unit || function || bus < PCI_FIRST_BUS || bus >= PCI_FIRST_BUS + file->gpu_count)
        return NVML_ERROR_NOT_FOUND;
    return hand_out(file, &boot, bus - PCI_FIRST_BUS, device);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    struct entry entry;
    struct twin_boot boot;
    nvmlReturn_t code = entry_device(device, CALL_IDENTITY, &entry);
    if (code != NVML_SUCCESS)
        return code;
    if (!index)
        return NVML_ERROR_INVALID_ARGUMENT;
    twin_view_boot(entry.file, &boot);
    for (uint32_t i = 0; i < entry.file->gpu_count; i++)
        if (boot.order[i] == entry.slot)
            *index = i;
    return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    struct entry entry;
    nvmlReturn_t code = entry_device(device, CALL_IDENTITY, &entry);
    if (code != NVML_SUCCESS)
        return code;
    if (!pci)
        return NVML_ERROR_INVALID_ARGUMENT;
    memset(pci, 0, sizeof *pci);
    pci->bus = PCI_FIRST_BUS + entry.slot;
    pci->pciDeviceId = entry.model->pci_device_id;
    pci->pciSubSystemId = entry.model->pci_subsystem_id;
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, NVML_DEVICE_PCI_BUS_ID_LEGACY_FMT, NVML_DEVICE_PCI_BUS_ID_FMT_ARGS(pci));
    snprintf(pci->busId, sizeof pci->busId, NVML_DEVICE_PCI_BUS_ID_FMT, NVML_DEVICE_PCI_BUS_ID_FMT_ARGS(pci));
    return NVML_SUCCESS;
}
