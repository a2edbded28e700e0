/*
 * Mapping, locking, and the two-copy records of twin.h.
 *
 * Protects: no reader ever sees a half-written record, and no process that dies or stops inside a call blocks a reader
 * or, once dead, a writer.
 */
#define _GNU_SOURCE
#include "twin.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct twin_file *twin_map(const char *path, char *error, uint32_t error_size)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        snprintf(error, error_size, "cannot open the GPU state file %s: %s", path, strerror(errno));
        return NULL;
    }
    struct stat status;
    struct twin_file *file = MAP_FAILED;
    if (fstat(fd, &status) == 0 && (uint64_t)status.st_size == sizeof(struct twin_file))
        file = mmap(NULL, sizeof(struct twin_file), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (file == MAP_FAILED) {
        snprintf(error, error_size, "%s is not a GPU state file of this version: create it anew", path);
        return NULL;
    }
    if (memcmp(file->magic, "splitwatt-gpus", 15) != 0 || file->layout != TWIN_LAYOUT ||
        file->size != sizeof(struct twin_file) || file->gpu_count < 1 || file->gpu_count > TWIN_MAX_GPUS) {
        munmap(file, sizeof(struct twin_file));
        snprintf(error, error_size, "%s is not a GPU state file of this version: create it anew", path);
        return NULL;
    }
    return file;
}

static int settle(struct twin_file *file, int code)
{
    /* The owner died inside. Records are whole by construction, so there is nothing to repair. */
    if (code == EOWNERDEAD)
        code = pthread_mutex_consistent(&file->lock);
    return code;
}

int twin_lock(struct twin_file *file)
{
    return settle(file, pthread_mutex_lock(&file->lock));
}

int twin_try_lock(struct twin_file *file)
{
    return settle(file, pthread_mutex_trylock(&file->lock));
}

void twin_unlock(struct twin_file *file)
{
    pthread_mutex_unlock(&file->lock);
}

int64_t twin_real_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now); /* one clock for all processes of a machine */
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t twin_now_ns(const struct twin_file *file)
{
    if (file->manual_clock)
        return __atomic_load_n(&file->manual_now_ns, __ATOMIC_ACQUIRE);
    return twin_real_ns();
}

/*
 * While the sequence stands at s, writers touch only copy[(s + 1) & 1]; so a copy of copy[s & 1] is whole if the
 * sequence is still s afterwards.
 */
static bool copy_record(const uint64_t *sequence, const void *copies, size_t size, void *out)
{
    for (int tries = 0; tries < TWIN_MAX_READ_TRIES; tries++) {
        uint64_t before = __atomic_load_n(sequence, __ATOMIC_ACQUIRE);
        memcpy(out, (const char *)copies + (before & 1) * size, size);
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
        if (__atomic_load_n(sequence, __ATOMIC_RELAXED) == before)
            return true;
    }
    return false;
}

static void view(struct twin_file *file, const uint64_t *sequence, const void *copies, size_t size, void *out)
{
    if (copy_record(sequence, copies, size, out))
        return;
    /* Writers kept overtaking this reader: queue up behind them once. */
    bool locked = twin_lock(file) == 0;
    memcpy(out, (const char *)copies + (*sequence & 1) * size, size);
    if (locked)
        twin_unlock(file);
}

void twin_peek_gpu(struct twin_file *file, uint32_t slot, struct twin_gpu *out)
{
    struct twin_slot *gpu = &file->gpus[slot];
    view(file, &gpu->sequence, gpu->copy, sizeof(struct twin_gpu), out);
}

void twin_view_gpu(struct twin_file *file, uint32_t slot, int64_t now_ns, struct twin_gpu *out)
{
    twin_peek_gpu(file, slot, out);
    twin_advance(&file->gpus[slot].model, out, now_ns);
}

void twin_view_boot(struct twin_file *file, struct twin_boot *out)
{
    view(file, &file->boot_sequence, file->boot, sizeof(struct twin_boot), out);
}

struct twin_gpu *twin_begin_gpu(struct twin_file *file, uint32_t slot, int64_t now_ns)
{
    struct twin_slot *gpu = &file->gpus[slot];
    struct twin_gpu *spare = &gpu->copy[(gpu->sequence + 1) & 1];
    *spare = gpu->copy[gpu->sequence & 1];
    twin_advance(&gpu->model, spare, now_ns);
    return spare;
}

void twin_publish_gpu(struct twin_file *file, uint32_t slot)
{
    struct twin_slot *gpu = &file->gpus[slot];
    __atomic_store_n(&gpu->sequence, gpu->sequence + 1, __ATOMIC_RELEASE);
    /* The next writer fills what was the valid copy until now; its stores must not move before this one. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

struct twin_boot *twin_begin_boot(struct twin_file *file)
{
    struct twin_boot *spare = &file->boot[(file->boot_sequence + 1) & 1];
    *spare = file->boot[file->boot_sequence & 1];
    return spare;
}

void twin_publish_boot(struct twin_file *file)
{
    __atomic_store_n(&file->boot_sequence, file->boot_sequence + 1, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
