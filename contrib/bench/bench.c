/* The measure of all things: what the machine can do without a supervisor, and a program that tells when it runs.
 *
 * bench program FILE INDEX      stamps the moment at which it runs into its slot of FILE, and waits to be killed
 * bench bare FILE COUNT ROUNDS  starts COUNT programs with posix_spawn, kills one ROUNDS times and starts it again,
 *                               kills all; prints start, restart (median) and stop in nanoseconds
 */
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static volatile long long *slots(const char *file, size_t count) {
    int fd = open(file, O_RDWR);
    void *p = mmap(NULL, count * sizeof(long long), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return p;
}

static int compare(const void *a, const void *b) {
    long long x = *(const long long *)a, y = *(const long long *)b;
    return x < y ? -1 : x > y;
}

static pid_t start(const char *self, const char *file, int index) {
    char number[16];
    snprintf(number, sizeof number, "%d", index);
    char *argv[] = {(char *)self, "program", (char *)file, number, NULL};
    pid_t pid;
    if (posix_spawn(&pid, self, NULL, NULL, argv, environ) != 0) exit(1);
    return pid;
}

static void until_stamped(volatile long long *slot) {
    while (*slot == 0) {
        struct timespec moment = {0, 20000};
        nanosleep(&moment, NULL);
    }
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "program") == 0) {
        int index = atoi(argv[3]);
        slots(argv[2], index + 1)[index] = now();
        for (;;) pause();
    }
    if (argc != 5) return 2;
    int count = atoi(argv[3]), rounds = atoi(argv[4]);
    volatile long long *stamps = slots(argv[2], count);
    pid_t *pids = calloc(count, sizeof *pids);
    long long begun = now(), last = 0;
    for (int i = 0; i < count; i++) pids[i] = start(argv[0], argv[2], i);
    for (int i = 0; i < count; i++) {
        until_stamped(&stamps[i]);
        if (stamps[i] > last) last = stamps[i];
    }
    printf("%lld ", last - begun);
    long long *restarts = calloc(rounds + 1, sizeof *restarts);
    for (int r = 0; r < rounds; r++) {
        int i = r % count;
        stamps[i] = 0;
        long long killed = now();
        kill(pids[i], SIGKILL);
        waitpid(pids[i], NULL, 0);
        pids[i] = start(argv[0], argv[2], i);
        until_stamped(&stamps[i]);
        restarts[r] = stamps[i] - killed;
    }
    qsort(restarts, rounds, sizeof *restarts, compare);
    printf("%lld ", rounds ? restarts[rounds / 2] : 0);
    begun = now();
    for (int i = 0; i < count; i++) kill(pids[i], SIGTERM);
    for (int i = 0; i < count; i++) waitpid(pids[i], NULL, 0);
    printf("%lld\n", now() - begun);
    return 0;
}
