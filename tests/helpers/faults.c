/* Interposes the system calls that change files below one folder: counts them, kills the process at one of them, or lets
 * them fail from one of them on.
 *
 *     gcc -shared -fPIC -O1 -o faults.so faults.c -ldl
 *     LD_PRELOAD=./faults.so python …
 *
 * A program that was started with it calls `faults_arm`. At the call where it is killed, half of what was to be written
 * is written.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static atomic_long count, at;
static int failure;    /* the number of the error; 0 kills */
static int removals;   /* whether removing and renaming fail too, as on a read-only file system */

void faults_arm(const char *folder, long n, int error, int also_removals) {
  snprintf(root, sizeof root, "%s", folder);
  at = n;
  failure = error;
  removals = also_removals;
  count = 0;
}

long faults_count(void) { return count; }

static int below(const char *path) {
  size_t n = strlen(root);
  return n && strncmp(path, root, n) == 0 && (path[n] == '/' || path[n] == 0);
}

static int path_of(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, PATH_MAX - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return 1;
}

static int concerns_fd(int fd) {
  char path[PATH_MAX];
  return root[0] && path_of(fd, path) && below(path);
}

static int concerns(int folder, const char *name) {
  char path[2 * PATH_MAX] = "";
  if (!root[0] || !name) return 0;
  if (name[0] != '/') {
    if (!(folder == AT_FDCWD ? getcwd(path, PATH_MAX) != NULL : path_of(folder, path))) return 0;
    strncat(path, "/", 2);
  }
  strncat(path, name, PATH_MAX - 1);
  return below(path);
}

/* Counts a call; returns whether it fails. `half` is whether the caller does half of the work before it is killed. */
static int reached(int removal, int *half) {
  long n = ++count;
  if (!at || n < at) return 0;
  if (failure) {
    if (removal && !removals) return 0;
    errno = failure;
    return 1;
  }
  if (n > at) return 0;
  if (half) *half = 1;
  else raise(SIGKILL);
  return 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPENS(name, head, folder, call)                                     \
  int name head {                                                           \
    mode_t mode = 0;                                                        \
    if (flags & (O_CREAT | O_TMPFILE)) {                                    \
      va_list rest;                                                         \
      va_start(rest, flags);                                                \
      mode = va_arg(rest, mode_t);                                          \
      va_end(rest);                                                         \
    }                                                                       \
    if ((flags & (O_CREAT | O_TRUNC)) && concerns(folder, path) && reached(0, NULL)) return -1; \
    return call;                                                            \
  }
OPENS(open, (const char *path, int flags, ...), AT_FDCWD, REAL(open)(path, flags, mode))
OPENS(open64, (const char *path, int flags, ...), AT_FDCWD, REAL(open64)(path, flags, mode))
OPENS(openat, (int folder, const char *path, int flags, ...), folder, REAL(openat)(folder, path, flags, mode))
OPENS(openat64, (int folder, const char *path, int flags, ...), folder, REAL(openat64)(folder, path, flags, mode))

#define WRITES(name, head, whole, part)                                     \
  ssize_t name head {                                                       \
    int half = 0;                                                           \
    if (concerns_fd(fd) && reached(0, &half)) return -1;                    \
    if (half) {                                                             \
      part;                                                                 \
      raise(SIGKILL);                                                       \
    }                                                                       \
    return whole;                                                           \
  }
WRITES(write, (int fd, const void *data, size_t n), REAL(write)(fd, data, n), (void)!REAL(write)(fd, data, n / 2))
WRITES(pwrite64, (int fd, const void *data, size_t n, off64_t where), REAL(pwrite64)(fd, data, n, where),
       (void)!REAL(pwrite64)(fd, data, n / 2, where))
WRITES(writev, (int fd, const struct iovec *parts, int n), REAL(writev)(fd, parts, n),
       (void)!REAL(writev)(fd, parts, n / 2))
WRITES(sendfile64, (int fd, int from, off64_t *where, size_t n), REAL(sendfile64)(fd, from, where, n),
       (void)!REAL(sendfile64)(fd, from, where, n / 2))

#define CHANGES(name, head, where, removal, call)                           \
  int name head {                                                           \
    if ((where) && reached(removal, NULL)) return -1;                       \
    return call;                                                            \
  }
ssize_t sendfile64(int, int, off64_t *, size_t);
CHANGES(ftruncate64, (int fd, off64_t n), concerns_fd(fd), 0, REAL(ftruncate64)(fd, n))
CHANGES(fsync, (int fd), concerns_fd(fd), 0, REAL(fsync)(fd))
CHANGES(mkdir, (const char *path, mode_t mode), concerns(AT_FDCWD, path), 0, REAL(mkdir)(path, mode))
CHANGES(rmdir, (const char *path), concerns(AT_FDCWD, path), 1, REAL(rmdir)(path))
CHANGES(unlink, (const char *path), concerns(AT_FDCWD, path), 1, REAL(unlink)(path))
CHANGES(unlinkat, (int folder, const char *path, int flags), concerns(folder, path), 1,
        REAL(unlinkat)(folder, path, flags))
CHANGES(rename, (const char *from, const char *to), concerns(AT_FDCWD, to), 1, REAL(rename)(from, to))
CHANGES(renameat, (int a, const char *from, int b, const char *to), concerns(b, to), 1, REAL(renameat)(a, from, b, to))
