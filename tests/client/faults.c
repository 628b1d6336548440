/* Misfortunes for tests, preloaded into gaggled. A file named by FAULTS tells which, one a line:
 *
 *   write ERRNO       writing to a journal fails
 *   append ERRNO      writing to a segment fails, but not to begin one
 *   short BYTES       writing to a journal writes so little at a time
 *   sync MS           synchronising a journal takes so long
 *   clock SECONDS     the time of day is off by so much
 *   clone COUNT       so many processes cannot be made, for want of them
 *
 * The file is looked at on every such call, so that a test can change its mind. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
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

ssize_t write(int fd, const void *bytes, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    long value;
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (fd > 2 && is_journal(fd)) {
        if (fault("write", &value)) { errno = (int)value; return -1; }
        if (fault("append", &value) && ends(fd, ".journal")) { errno = (int)value; return -1; }
        if (fault("short", &value) && size > (size_t)value) size = (size_t)value;
    }
    return real(fd, bytes, size);
}

int fdatasync(int fd) {
    static int (*real)(int);
    long value;
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    if (is_journal(fd) && fault("sync", &value)) usleep((useconds_t)value * 1000);
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
