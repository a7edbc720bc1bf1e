/* Preloaded into a process, this library counts its operations on files under one folder and makes the k-th fail.
 *
 * SQLite's own tests do the same: count in a run that goes well, then let 1, 2, 3, ... fail. It takes the place of the C
 * library's functions and then calls them (dlsym, RTLD_NEXT), so Python, HDF5, torch and Rust are all seen alike.
 * failing_arm() is called by the child of the fork server (server.py) just before its run begins; until then nothing is
 * counted. The counter lies in memory that parent and child share, so it can be read when the child is dead.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ONCE = 0, FROM_THEN_ON = 1, KILL_BEFORE = 2, KILL_AMID = 3 };

struct shared {
    atomic_long count;  /* operations so far */
    long fatal;         /* the number of the one that fails; 0: none */
    int code;           /* what errno becomes */
    int mode;
    int reads;          /* whether reading is counted, instead of what changes files */
    char folder[1024];  /* "" until armed */
    char what[1400];    /* the operation that failed first */
};

static struct shared *state;

/* A counter of its own for this process and its children. */
__attribute__((constructor)) void failing_begin(void) {
    state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (state == MAP_FAILED) abort();
}

void failing_arm(const char *folder, long fatal, int code, int mode, int reads) {
    atomic_store(&state->count, 0);
    state->fatal = fatal, state->code = code, state->mode = mode, state->reads = reads;
    state->what[0] = 0;
    snprintf(state->folder, sizeof state->folder, "%s", folder);
}

long failing_count(void) { return atomic_load(&state->count); }

const char *failing_what(void) { return state->what; }

static int inside(const char *path) {
    char here[3000];
    if (path == NULL || state == NULL || state->folder[0] == 0) return 0;
    if (path[0] != '/') {
        char folder[1500];
        if (getcwd(folder, sizeof folder) == NULL) return 0;
        snprintf(here, sizeof here, "%s/%.1400s", folder, path);
        path = here;
    }
    size_t length = strlen(state->folder);
    return strncmp(path, state->folder, length) == 0 && (path[length] == 0 || path[length] == '/');
}

/* Where a descriptor leads; -1 if not into the folder. */
static int inside_fd(int fd, char *path, size_t size) {
    char link[64];
    if (state == NULL || state->folder[0] == 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, size - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}

/* Count one operation; whether it shall fail (then errno is set). Only the first failure is written down. */
static int fails(const char *name, const char *path, int reads) {
    if (reads != state->reads) return 0;
    long number = atomic_fetch_add(&state->count, 1) + 1;
    if (state->fatal == 0 || number < state->fatal || (state->mode == ONCE && number > state->fatal)) return 0;
    if (number == state->fatal) snprintf(state->what, sizeof state->what, "%s %s", name, path);
    if (state->mode == KILL_BEFORE || (state->mode == KILL_AMID && strcmp(name, "write") != 0)) kill(getpid(), SIGKILL);
    errno = state->code;
    return 1;
}

static int fails_at(const char *name, const char *path, int reads) {
    return inside(path) && fails(name, path, reads);
}

static int fails_fd(const char *name, int fd, int reads) {
    char path[1024];
    int before = errno;
    if (!inside_fd(fd, path, sizeof path)) {
        errno = before;
        return 0;
    }
    errno = before;
    return fails(name, path, reads);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int changes(int flags) { return (flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) != 0; }

#define OPEN(name)                                                                                                  \
    int name(const char *path, int flags, ...) {                                                                    \
        mode_t mode = 0;                                                                                            \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                        \
            va_list rest;                                                                                           \
            va_start(rest, flags);                                                                                  \
            mode = va_arg(rest, mode_t);                                                                            \
            va_end(rest);                                                                                           \
        }                                                                                                           \
        return fails_at("open", path, !changes(flags)) ? -1 : REAL(name)(path, flags, mode);                        \
    }
OPEN(open)
OPEN(open64)

#define OPEN_2(name)                                                                                                \
    int name(const char *path, int flags);                                                                          \
    int name(const char *path, int flags) {                                                                         \
        return fails_at("open", path, !changes(flags)) ? -1 : REAL(name)(path, flags);                              \
    }
OPEN_2(__open_2)
OPEN_2(__open64_2)

#define OPENAT(name)                                                                                                \
    int name(int at, const char *path, int flags, ...) {                                                            \
        mode_t mode = 0;                                                                                            \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                        \
            va_list rest;                                                                                           \
            va_start(rest, flags);                                                                                  \
            mode = va_arg(rest, mode_t);                                                                            \
            va_end(rest);                                                                                           \
        }                                                                                                           \
        return fails_at("open", path, !changes(flags)) ? -1 : REAL(name)(at, path, flags, mode);                    \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                                                                 \
    FILE *name(const char *path, const char *mode) {                                                                \
        return fails_at("open", path, mode[0] == 'r' && strchr(mode, '+') == NULL) ? NULL : REAL(name)(path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

/* A kill in the middle of a write leaves half of it. */
static void half(ssize_t written) {
    (void)written;
    kill(getpid(), SIGKILL);
}

ssize_t write(int fd, const void *bytes, size_t size) {
    if (fails_fd("write", fd, 0)) {
        if (state->mode != KILL_AMID) return -1;
        half(REAL(write)(fd, bytes, size / 2));
    }
    return REAL(write)(fd, bytes, size);
}

ssize_t writev(int fd, const struct iovec *parts, int number) {
    if (fails_fd("write", fd, 0)) {
        if (state->mode != KILL_AMID) return -1;
        half(REAL(writev)(fd, parts, number / 2));
    }
    return REAL(writev)(fd, parts, number);
}

#define PWRITE(name, offset_type)                                                                                   \
    ssize_t name(int fd, const void *bytes, size_t size, offset_type offset) {                                      \
        if (fails_fd("write", fd, 0)) {                                                                             \
            if (state->mode != KILL_AMID) return -1;                                                                    \
            half(REAL(name)(fd, bytes, size / 2, offset));                                                              \
        }                                                                                                           \
        return REAL(name)(fd, bytes, size, offset);                                                                 \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define ON_DESCRIPTOR(name, word, failure, parameters, ...)                                                         \
    int name parameters {                                                                                           \
        if (fails_fd(word, fd, 0)) return failure;                                                                  \
        return REAL(name)(__VA_ARGS__);                                                                             \
    }
ON_DESCRIPTOR(fsync, "fsync", -1, (int fd), fd)
ON_DESCRIPTOR(fdatasync, "fsync", -1, (int fd), fd)
ON_DESCRIPTOR(ftruncate, "truncate", -1, (int fd, off_t size), fd, size)
ON_DESCRIPTOR(ftruncate64, "truncate", -1, (int fd, off64_t size), fd, size)
ON_DESCRIPTOR(posix_fallocate, "fallocate", errno, (int fd, off_t from, off_t size), fd, from, size)
ON_DESCRIPTOR(posix_fallocate64, "fallocate", errno, (int fd, off64_t from, off64_t size), fd, from, size)

#define ON_PATH(name, word, parameters, ...)                                                                        \
    int name parameters {                                                                                           \
        if (fails_at(word, path, 0)) return -1;                                                                     \
        return REAL(name)(__VA_ARGS__);                                                                             \
    }
ON_PATH(truncate, "truncate", (const char *path, off_t size), path, size)
ON_PATH(truncate64, "truncate", (const char *path, off64_t size), path, size)
ON_PATH(rename, "rename", (const char *path, const char *to), path, to)
ON_PATH(mkdir, "mkdir", (const char *path, mode_t mode), path, mode)
ON_PATH(unlink, "unlink", (const char *path), path)
ON_PATH(renameat, "rename", (int at, const char *path, int to_at, const char *to), at, path, to_at, to)
ON_PATH(mkdirat, "mkdir", (int at, const char *path, mode_t mode), at, path, mode)
ON_PATH(unlinkat, "unlink", (int at, const char *path, int flags), at, path, flags)

#define READS(name, parameters, ...)                                                                                \
    ssize_t name parameters { return fails_fd("read", fd, 1) ? -1 : REAL(name)(__VA_ARGS__); }
READS(read, (int fd, void *bytes, size_t size), fd, bytes, size)
READS(pread, (int fd, void *bytes, size_t size, off_t offset), fd, bytes, size, offset)
READS(pread64, (int fd, void *bytes, size_t size, off64_t offset), fd, bytes, size, offset)

#define MAPS(name, offset_type)                                                                                     \
    void *name(void *at, size_t size, int protection, int flags, int fd, offset_type offset) {                      \
        if (state != NULL && fd >= 0 && !(flags & MAP_ANONYMOUS) && fails_fd("read", fd, 1)) return MAP_FAILED;     \
        return REAL(name)(at, size, protection, flags, fd, offset);                                                 \
    }
MAPS(mmap, off_t)
MAPS(mmap64, off64_t)
