/*
 * Which processes hold NVML initialised on this node. The driver forgets limits and clock locks of a GPU without
 * persistence mode when its last client leaves, also when that client was killed.
 *
 * A client is a pid with its start time, so that a reused pid is not taken for it. A death is seen at the next look: at
 * any nvmlInit, and at most every 100 ms when the truth is read while some GPU has no persistence mode.
 * All functions but twin_sweep_if_due expect the node's lock to be held.
 */
#define _GNU_SOURCE
#include "twin.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const int64_t SWEEP_PERIOD_NS = 100000000;
enum { STAT_STATE_FIELD = 3, STAT_START_FIELD = 22 };

/* Start time in clock ticks since boot, or 0 when there is no such living process. */
static uint64_t start_ticks(int32_t pid)
{
    char path[48], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return 0;
    text[length] = '\0';
    char *cursor = strrchr(text, ')'); /* the name in parentheses may hold anything */
    if (!cursor)
        return 0;
    for (int field = STAT_STATE_FIELD; field <= STAT_START_FIELD; field++) {
        cursor = strchr(cursor, ' ');
        if (!cursor)
            return 0;
        cursor++;
        if (field == STAT_STATE_FIELD && (*cursor == 'Z' || *cursor == 'X'))
            return 0;
    }
    return strtoull(cursor, NULL, 10);
}

static void forget_unless_persistent(struct twin_file *file)
{
    int64_t now_ns = twin_now_ns(file);
    for (uint32_t slot = 0; slot < file->gpu_count; slot++) {
        struct twin_gpu *gpu = twin_begin_gpu(file, slot, now_ns);
        if (gpu->persistence)
            continue; /* the spare copy is simply not published */
        twin_forget_settings(&file->gpus[slot].model, gpu);
        twin_publish_gpu(file, slot);
    }
}

static void count(struct twin_file *file, bool had_clients)
{
    uint32_t live = 0;
    for (int i = 0; i < TWIN_MAX_CLIENTS; i++)
        live += file->clients[i].pid != 0;
    if (had_clients && live == 0)
        forget_unless_persistent(file);
    __atomic_store_n(&file->clients_live, live, __ATOMIC_RELEASE);
}

static bool any_client(const struct twin_file *file)
{
    for (int i = 0; i < TWIN_MAX_CLIENTS; i++)
        if (file->clients[i].pid != 0)
            return true;
    /* A sweeper that died half-way freed slots but did not yet act on it. */
    return file->clients_live != 0;
}

void twin_sweep_clients(struct twin_file *file)
{
    bool had_clients = any_client(file);
    for (int i = 0; i < TWIN_MAX_CLIENTS; i++) {
        struct twin_client *client = &file->clients[i];
        if (client->pid != 0 && start_ticks(client->pid) != client->start_ticks)
            client->pid = 0;
    }
    count(file, had_clients);
    __atomic_store_n(&file->swept_ns, twin_real_ns(), __ATOMIC_RELEASE);
}

void twin_sweep_if_due(struct twin_file *file)
{
    if (__atomic_load_n(&file->clients_live, __ATOMIC_ACQUIRE) == 0 ||
        twin_real_ns() - __atomic_load_n(&file->swept_ns, __ATOMIC_ACQUIRE) < SWEEP_PERIOD_NS)
        return;
    bool forgetful = false;
    for (uint32_t slot = 0; slot < file->gpu_count && !forgetful; slot++) {
        struct twin_gpu gpu;
        twin_peek_gpu(file, slot, &gpu);
        forgetful = gpu.persistence == 0;
    }
    if (!forgetful || twin_try_lock(file) != 0)
        return;
    twin_sweep_clients(file);
    twin_unlock(file);
}

int twin_add_client(struct twin_file *file)
{
    int32_t self = (int32_t)getpid();
    twin_sweep_clients(file);
    struct twin_client *place = NULL;
    for (int i = 0; i < TWIN_MAX_CLIENTS; i++) {
        struct twin_client *client = &file->clients[i];
        if (client->pid == self)
            return 0; /* swept just now, so it is this very process: from before a driver reload */
        if (client->pid == 0 && !place)
            place = client;
    }
    if (!place)
        return -1;
    place->start_ticks = start_ticks(self);
    __atomic_store_n(&place->pid, self, __ATOMIC_RELEASE);
    count(file, false);
    return 0;
}

void twin_drop_client(struct twin_file *file)
{
    int32_t self = (int32_t)getpid();
    bool had_clients = any_client(file);
    for (int i = 0; i < TWIN_MAX_CLIENTS; i++)
        if (file->clients[i].pid == self)
            file->clients[i].pid = 0;
    count(file, had_clients);
}
