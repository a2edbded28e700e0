/* Steps the wall clock of the one process that it is preloaded into, by the seconds in a file that may change at any time.
 * CLOCK_MONOTONIC stays as it is, as when a machine's clock is set. SPLITWATT_CLOCK names the file: one double. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int (*real_gettime)(clockid_t, struct timespec *);
static const volatile double *step_s;

__attribute__((constructor)) static void find(void) {
    real_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("SPLITWATT_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *map = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED) step_s = map;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    if (!real_gettime) find();
    int code = real_gettime(id, at);
    if (code == 0 && step_s && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        long long ns = (long long)(*step_s * 1e9) + at->tv_nsec;
        at->tv_sec += ns / 1000000000LL;
        ns %= 1000000000LL;
        if (ns < 0) { ns += 1000000000LL; at->tv_sec -= 1; }
        at->tv_nsec = (long)ns;
    }
    return code;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    (void)zone;
    struct timespec now;
    int code = clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return code;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
