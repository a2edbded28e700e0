/* How every NVML function of a device begins: initialised? known handle? any fault? Then a view of the GPU, as of now. */
#ifndef SPLITWATT_NVML_ENTRY_H
#define SPLITWATT_NVML_ENTRY_H

#include "twin.h"

struct entry {
    struct twin_file *file;
    const struct twin_model *model;
    uint32_t slot;
    uint64_t generation;
    struct twin_effect effect;
    struct twin_gpu gpu;       /* projected to the present */
};

/* The node this process has initialised NVML on, or UNINITIALIZED: never initialised, shut down, or reloaded since. */
nvmlReturn_t entry_node(struct twin_file **file, struct twin_boot *boot);
nvmlDevice_t entry_handle(uint64_t generation, uint32_t slot);
nvmlReturn_t entry_device(nvmlDevice_t device, enum twin_call call, struct entry *entry);

/* Opens the GPU's record for a change, under the lock and only while the driver load of `entry` still stands. */
nvmlReturn_t entry_begin(struct entry *entry, struct twin_gpu **gpu);
void entry_commit(struct entry *entry);

/* Copies text into a caller's buffer: INSUFFICIENT_SIZE when it does not fit. */
nvmlReturn_t entry_text(const char *text, char *out, unsigned int length);

#define ENTER(device, call)                                              \
    struct entry entry;                                                  \
    do {                                                                 \
        nvmlReturn_t entered = entry_device((device), (call), &entry);   \
        if (entered != NVML_SUCCESS)                                     \
            return entered;                                              \
    } while (0)
#define REQUIRE(condition)                     \
    do {                                       \
        if (!(condition))                      \
            return NVML_ERROR_INVALID_ARGUMENT;\
    } while (0)

#endif
