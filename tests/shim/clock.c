/* Lets a test set the clocks of a child process. Preloaded; see tests/it/support/clock.rs.
 *
 * CLOCK_SHIM names a file of three 64-bit numbers, in nanoseconds:
 *   0: is added to the wall clock,
 *   1: is added to CLOCK_BOOTTIME,
 *   2: if it is not 0, the wall clock stands still at it.
 * The file is mapped: what the test writes holds for the next look at a clock. Everything else, the
 * monotonic clock among it, is the kernel's. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND INT64_C(1000000000)

static const volatile int64_t none[3];
static const volatile int64_t *set = none;

__attribute__((constructor)) static void map(void)
{
    const char *path = getenv("CLOCK_SHIM");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        set = mapped;
    close(file);
}

static void put(struct timespec *at, int64_t nanos)
{
    if (nanos < 0)
        nanos = 0;
    at->tv_sec = nanos / SECOND;
    at->tv_nsec = nanos % SECOND;
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    if (failed)
        return failed;
    int64_t now = (int64_t)at->tv_sec * SECOND + at->tv_nsec;
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
        put(at, set[2] ? set[2] : now + set[0]);
        break;
    case CLOCK_BOOTTIME:
        put(at, now + set[1]);
        break;
    }
    return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
