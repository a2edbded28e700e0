/*
 * The shared truth about one node's simulated GPUs, and the two ways to touch it.
 *
 * One file per node is mapped by every process that plays a part: engines set demand, an agent calls NVML, a judge
 * reads. Each record that changes (a GPU, the node) exists twice, with a sequence number that says which copy is valid:
 *   - a writer holds the node's lock, fills the spare copy, and makes it valid by ONE store. A writer killed at any
 *     instruction leaves a complete record behind; the robust mutex passes on to the next writer;
 *   - a reader takes no lock: it copies the valid record and projects it to the present (the physics is a closed form of
 *     record and time). A writer that is stopped or hung therefore never blocks a reader.
 *
 * Units: watts, joules, seconds and degrees Celsius as double; milliwatts and megahertz as unsigned int, as NVML has them.
 */
#ifndef SPLITWATT_TWIN_H
#define SPLITWATT_TWIN_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#pragma GCC visibility push(default)
#include <nvml.h>
#pragma GCC visibility pop

#define TWIN_EXPORT __attribute__((visibility("default")))

enum {
    TWIN_MAX_GPUS = 64,        /* per node; more than any server sold holds, and what NVML lists at most */
    TWIN_MAX_CLIENTS = 64,     /* processes that hold NVML initialised at once on one node */
    TWIN_MAX_READ_TRIES = 1000,/* copies of a record that a reader may see torn before it takes the lock */
    TWIN_MAX_MIG = 7,          /* instances of one GPU */
    TWIN_TEXT = 96,
    TWIN_AVERAGE_TICKS = 10,   /* sensor periods in the running average of one second */
    TWIN_LAYOUT = 4            /* raised with every change of a struct in this file */
};

/* What a GPU is. Fixed at creation. Mirrored by models.py. */
struct twin_model {
    char name[TWIN_TEXT];
    char uuid[TWIN_TEXT];
    double idle_w;
    double power_exponent;     /* dynamic power ~ clock^exponent above the voltage floor */
    double voltage_floor;      /* fraction of the top clock below which voltage, and so power per clock, stops falling */
    double power_lag_s;        /* first-order lag of power behind its target */
    double cap_reaction_s;     /* first-order lag of the power controller's ceiling behind the enforced limit */
    double cap_release_s;      /* how slowly an unused ceiling opens again */
    double thermal_lag_s;
    double ambient_c;
    double kelvin_per_watt;
    double memory_bytes;
    uint32_t min_limit_mw, max_limit_mw, default_limit_mw;
    uint32_t min_clock_mhz, max_clock_mhz, idle_clock_mhz, clock_step_mhz, memory_clock_mhz;
    uint32_t sensor_step_mw;
    uint32_t averaged_usage;   /* 1: nvmlDeviceGetPowerUsage is a 1 s average (H100-class); 0: the sample (A100) */
    uint32_t architecture, compute_major, compute_minor, pci_device_id, pci_subsystem_id;
    uint32_t boot_persistence; /* persistence mode that a boot script would have turned on */
};

/* Which call a fault sits on. Mirrored by faults.py. */
enum twin_call {
    CALL_ANY,                  /* every call below that has no fault of its own, except HANDLE and INIT */
    CALL_SET_POWER_LIMIT,
    CALL_GET_POWER_LIMIT,
    CALL_GET_ENFORCED_LIMIT,
    CALL_GET_LIMIT_RANGE,      /* constraints and default limit */
    CALL_GET_POWER_USAGE,
    CALL_GET_FIELD_VALUES,     /* the call as a whole */
    CALL_FIELD_POWER_INSTANT,  /* field 186 alone: the call succeeds, the field carries the error */
    CALL_GET_ENERGY,
    CALL_SET_LOCKED_CLOCKS,
    CALL_RESET_LOCKED_CLOCKS,
    CALL_GET_CLOCKS,           /* clocks and event reasons */
    CALL_SET_PERSISTENCE,
    CALL_GET_PERSISTENCE,
    CALL_IDENTITY,             /* name, UUID, index, PCI, memory, temperature and the other plain getters */
    CALL_HANDLE,               /* handle lookups */
    CALL_INIT,                 /* nvmlInit of the whole node: the fault that lies on slot 0 */
    CALL_COUNT
};

enum twin_fault_kind {
    FAULT_NONE,
    FAULT_RETURN,              /* the call returns `code` and does nothing */
    FAULT_LIE,                 /* a setter returns success and does nothing */
    FAULT_CLAMP,               /* a power setter applies `value_mw` whatever was asked, and returns success */
    FAULT_HANG                 /* the call sleeps, then completes as asked with the state it then finds */
};

struct twin_fault {
    uint32_t call, kind, code, value_mw;
    uint32_t times;            /* fires this often, then is gone; 0: until cleared */
    uint32_t serial;           /* tells a hanging call that its fault was replaced */
    double hang_s;             /* 0: until cleared */
};

/* Everything about one GPU that changes. */
struct twin_gpu {
    int64_t at_ns;             /* the moment this record is true for */
    double power_w, ceiling_w, energy_j, temperature_c, capped_s;
    double demand_w, utilization, memory_utilization, memory_used_bytes;
    double uncapped_w;         /* power wanted under the clock lock, before any cap */
    double nvml_energy_base_j; /* energy at the last driver load or reset: NVML counts from there */
    double window_energy_j;    /* energy when the sensor's present window opened */
    double sample_w, average_w;
    double tick_energy_j[TWIN_AVERAGE_TICKS];
    uint32_t tick;             /* next slot of tick_energy_j */
    uint32_t demand_mhz;
    uint32_t management_mw, outside_mw;       /* outside_mw 0: no outside limiter */
    uint32_t lock_min_mhz, lock_max_mhz;      /* lock_max_mhz 0: not locked */
    uint32_t persistence, resets, setter_calls;
    uint32_t floor_mw;         /* drawn by a load whatever the cap, up to what it wants; 0: the idle draw alone */
    uint32_t mig_devices;      /* 0: MIG is off */
    uint32_t reserved;
    struct twin_fault faults[CALL_COUNT];
};

/* Everything about the node that changes as a whole. */
struct twin_boot {
    uint64_t generation;       /* rises with every reboot or driver load; clients of an older one are strangers */
    char boot_id[TWIN_TEXT];
    uint32_t order[TWIN_MAX_GPUS]; /* NVML index -> slot: indices may move at a boot */
};

struct twin_client {
    int32_t pid;               /* 0: free; written last */
    uint32_t reserved;
    uint64_t start_ticks;      /* from /proc/PID/stat: a reused pid is another process */
};

struct twin_slot {
    struct twin_model model;
    uint64_t sequence;         /* copy[sequence & 1] is valid */
    struct twin_gpu copy[2];
};

struct twin_file {
    char magic[16];
    uint32_t layout, gpu_count;
    uint64_t size;
    uint32_t manual_clock, reserved;
    int64_t manual_now_ns;     /* used when manual_clock: tests and virtual time move it by hand */
    int64_t swept_ns;          /* last look for dead clients, by the real clock */
    uint32_t clients_live;     /* known at the last look */
    uint32_t fault_serial;
    pthread_mutex_t lock;
    uint64_t boot_sequence;
    struct twin_boot boot[2];
    struct twin_client clients[TWIN_MAX_CLIENTS];
    struct twin_slot gpus[TWIN_MAX_GPUS];
};

/* state.c: mapping, locking, records */
struct twin_file *twin_map(const char *path, char *error, uint32_t error_size);
int twin_lock(struct twin_file *file);
int twin_try_lock(struct twin_file *file);
void twin_unlock(struct twin_file *file);
int64_t twin_now_ns(const struct twin_file *file);
int64_t twin_real_ns(void);
void twin_view_gpu(struct twin_file *file, uint32_t slot, int64_t now_ns, struct twin_gpu *out);
void twin_peek_gpu(struct twin_file *file, uint32_t slot, struct twin_gpu *out); /* not projected to the present */
void twin_view_boot(struct twin_file *file, struct twin_boot *out);
struct twin_gpu *twin_begin_gpu(struct twin_file *file, uint32_t slot, int64_t now_ns); /* lock held */
void twin_publish_gpu(struct twin_file *file, uint32_t slot);
struct twin_boot *twin_begin_boot(struct twin_file *file);
void twin_publish_boot(struct twin_file *file);

/* physics.c */
void twin_initial(const struct twin_model *model, int64_t now_ns, struct twin_gpu *gpu);
void twin_advance(const struct twin_model *model, struct twin_gpu *gpu, int64_t now_ns);
void twin_retarget(const struct twin_model *model, struct twin_gpu *gpu); /* after demand or the lock changed */
void twin_forget_settings(const struct twin_model *model, struct twin_gpu *gpu);
bool twin_is_idle(const struct twin_model *model, const struct twin_gpu *gpu);
uint32_t twin_enforced_mw(const struct twin_gpu *gpu);
uint32_t twin_sm_clock_mhz(const struct twin_model *model, const struct twin_gpu *gpu);
uint64_t twin_event_reasons(const struct twin_model *model, const struct twin_gpu *gpu);
uint32_t twin_sensor_mw(const struct twin_model *model, double watts);

/* clients.c: who holds NVML initialised; lock held */
int twin_add_client(struct twin_file *file);
void twin_drop_client(struct twin_file *file);
void twin_sweep_clients(struct twin_file *file);
void twin_sweep_if_due(struct twin_file *file); /* takes the lock by itself, or does nothing */

/* faults.c */
struct twin_effect {
    nvmlReturn_t code;         /* not NVML_SUCCESS: return it */
    bool lie, clamp;
    uint32_t clamp_mw;
};
struct twin_effect twin_strike(struct twin_file *file, uint32_t slot, enum twin_call call);
bool twin_is_lost(const struct twin_gpu *gpu);
void twin_cure_lost(struct twin_gpu *gpu);

#endif
