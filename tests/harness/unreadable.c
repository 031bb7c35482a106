/* A disk that does not give one part of one file, whatever the file is called by then: for LD_PRELOAD. UNREADABLE is
 * "inode first end", of bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static int refused(int file, off_t at, size_t count) {
    unsigned long inode;
    long first, end;
    struct stat found;
    const char *text = getenv("UNREADABLE");
    if (text == NULL || sscanf(text, "%lu %ld %ld", &inode, &first, &end) != 3) return 0;
    if (fstat(file, &found) != 0 || found.st_ino != inode) return 0;
    return at < end && at + (off_t)count > first;
}

ssize_t pread64(int file, void *data, size_t count, off_t at) {
    static ssize_t (*real)(int, void *, size_t, off_t);
    if (real == NULL) real = (ssize_t(*)(int, void *, size_t, off_t))dlsym(RTLD_NEXT, "pread64");
    if (refused(file, at, count)) return errno = EIO, -1;
    return real(file, data, count, at);
}

ssize_t pread(int file, void *data, size_t count, off_t at) { return pread64(file, data, count, at); }

ssize_t read(int file, void *data, size_t count) {
    static ssize_t (*real)(int, void *, size_t);
    if (real == NULL) real = (ssize_t(*)(int, void *, size_t))dlsym(RTLD_NEXT, "read");
    off_t at = lseek(file, 0, SEEK_CUR);
    if (at >= 0 && refused(file, at, count)) return errno = EIO, -1;
    return real(file, data, count);
}
