/* Misfortunes for tests, preloaded into gaggled. A file named by FAULTS tells which, one a line:
 *
 *   write ERRNO       writing to a journal fails
 *   append ERRNO      writing to a segment fails, but not to begin one
 *   short BYTES       writing to a journal writes so little at a time
 *   sync MS           synchronising a journal takes so long
 *   clock SECONDS     the time of day is off by so much
 *   clone COUNT       so many processes cannot be made, for want of them
 *   random N          every call that changes the state directory fails, is torn or takes its time in N % 100 of a
 *                     hundred cases, drawn from the seed N / 100
 *
 * The file is looked at on every such call, so that a test can change its mind. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static int fault(const char *name, long *value) {
    const char *path = getenv("FAULTS");
    FILE *file = path ? fopen(path, "re") : NULL;
    char word[32];
    long number;
    int found = 0;
    while (file && fscanf(file, "%31s %ld", word, &number) == 2)
        if (!strcmp(word, name)) { *value = number; found = 1; }
    if (file) fclose(file);
    return found;
}

static int ends(int fd, const char *with) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1), tail = (ssize_t)strlen(with);
    if (length < tail) return 0;
    path[length] = 0;
    return !strcmp(path + length - tail, with);
}

static int is_journal(int fd) {
    return ends(fd, ".journal") || ends(fd, ".new");
}

/* What happens to a call: nothing, an error, or, for 1, that it is torn. */
static int drawn(void) {
    static atomic_ulong calls;
    static const int errors[] = {EIO, ENOSPC, EROFS, EDQUOT, 1};
    long value;
    if (!fault("random", &value)) return 0;
    unsigned long x = (unsigned long)value * 0x9e3779b97f4a7c15UL + ++calls * 0xbf58476d1ce4e5b9UL;
    x ^= x >> 30, x *= 0xbf58476d1ce4e5b9UL, x ^= x >> 27, x *= 0x94d049bb133111ebUL, x ^= x >> 31;
    if (x % 100 >= (unsigned long)value % 100) return 0;
    if (x / 100 % 6 == 5) return usleep(20000), 0;
    return errors[x / 100 % 6 % 5];
}

static int is_state(const char *path) {
    return strstr(path, "/state/") != NULL;
}

int open64(const char *path, int flags, ...) {
    static int (*real)(const char *, int, ...);
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    if (!real) real = dlsym(RTLD_NEXT, "open64");
    int error = flags & (O_CREAT | O_WRONLY | O_RDWR) && is_state(path) && strstr(path, ".journal") ? drawn() : 0;
    if (error > 1) { errno = error; return -1; }
    return real(path, flags, mode);
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = dlsym(RTLD_NEXT, "rename");
    int error = is_state(to) ? drawn() : 0;
    if (error > 1) { errno = error; return -1; }
    return real(from, to);
}

int ftruncate64(int fd, off64_t length) {
    static int (*real)(int, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "ftruncate64");
    int error = is_journal(fd) ? drawn() : 0;
    if (error > 1) { errno = error; return -1; }
    return real(fd, length);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    int error = ends(fd, "/state") ? drawn() : 0;
    if (error > 1) { errno = error; return -1; }
    return real(fd);
}

ssize_t write(int fd, const void *bytes, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    long value;
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (fd > 2 && is_journal(fd)) {
        if (fault("write", &value)) { errno = (int)value; return -1; }
        if (fault("append", &value) && ends(fd, ".journal")) { errno = (int)value; return -1; }
        if (fault("short", &value) && size > (size_t)value) size = (size_t)value;
        int error = drawn();
        if (error > 1) { errno = error; return -1; }
        if (error == 1 && size > 3) size /= 3;
    }
    return real(fd, bytes, size);
}

int fdatasync(int fd) {
    static int (*real)(int);
    long value;
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    if (is_journal(fd) && fault("sync", &value)) usleep((useconds_t)value * 1000);
    int error = is_journal(fd) ? drawn() : 0;
    if (error > 1) { errno = error; return -1; }
    return real(fd);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    long value;
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, time);
    if (clock == CLOCK_REALTIME && fault("clock", &value)) time->tv_sec += value;
    return result;
}

int clone(int (*run)(void *), void *stack, int flags, void *argument, ...) {
    static int (*real)(int (*)(void *), void *, int, void *, ...);
    static long failed;
    long value;
    va_list rest;
    va_start(rest, argument);
    pid_t *parent = va_arg(rest, pid_t *);
    va_end(rest);
    if (!real) real = dlsym(RTLD_NEXT, "clone");
    if (fault("clone", &value) && failed < value) { failed++; errno = EAGAIN; return -1; }
    return real(run, stack, flags, argument, parent);
}
