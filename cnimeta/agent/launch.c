/* SPDX-License-Identifier: Apache-2.0
 *
 * The native launcher: hands an invocation to the node agent, as client.py does, without starting Python.
 *
 * One program serves every plugin; `cnimeta install --native` writes the plugin's settings into a copy (native.py). The
 * protocol is wire.py's. Until the agent has accepted, any doubt ends in work_alone(): the Python launcher, whose text is
 * among the settings, is executed with nothing of stdin consumed. After that the work is never done a second time.
 *
 * VERSION is answered here, from the settings, as long as the files that they were taken from are the same.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define HELLO "cnimeta-agent 4\n"
#define HELLO_BYTES 16
#define ACCEPTED 'A'
#define WAITING 'W'
#define DESCRIPTORS 7
#define PATIENCE_S 10       /* for each word of an agent that is not stopped */
#define LARGEST (1u << 26)  /* of an answer */
#define QUERY_BYTES 4096    /* a longer query of VERSION is Python's */
#define OFF "CNIMETA_NATIVE" /* 0: always the Python launcher */
#define SOCKET "CNIMETA_AGENT"

/* native.py finds the mark and puts the settings behind it: strings, each with its NUL, in the order of `enum`; then
 * pairs of a path and what stat(2) said of it, up to an empty path. */
#define MARK "cnimeta-native-settings\n"
#define SETTINGS_BYTES 32768
char settings[SETTINGS_BYTES] = MARK;

enum { INTERPRETER, TEXT, FOLDER, PLUGIN, PATH, CURRENT, VERSION_HEAD, VERSION_TAIL, STAMPS };
static const char *setting[STAMPS + 1];

static const char LOST[] = "{\"cniVersion\":\"1.1.0\",\"code\":5,\"msg\":\"the cnimeta agent ended before it answered\"}\n";

/* Write all of it to stdout. False when nobody reads. */
static int put(const char *data, size_t count) {
    while (count > 0) {
        ssize_t done = write(STDOUT_FILENO, data, count);
        if (done >= 0) {
            data += done;
            count -= (size_t)done;
        } else if (errno == EAGAIN) { /* a pipe that the reader made non-blocking */
            struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
            poll(&out, 1, -1);
        } else if (errno != EINTR) {
            return 0;
        }
    }
    return 1;
}

static _Noreturn void fail(const char *what) {
    char line[512];
    int count = snprintf(line, sizeof line, "{\"cniVersion\":\"1.1.0\",\"code\":5,\"msg\":\"%s\"}\n", what);
    put(line, (size_t)count);
    _exit(1);
}

/* The Python launcher, in this process. `asked`: the agent has been, so it need not. */
static _Noreturn void work_alone(int asked) {
    const char *const words[] = {setting[INTERPRETER], "-IS", "-c", setting[TEXT], asked ? "alone" : NULL, NULL};
    execve(setting[INTERPRETER], (char *const *)words, environ);
    fail(errno == ENOENT ? "the launcher's Python interpreter is gone: run cnimeta install again"
                         : "the launcher cannot start its Python interpreter");
}

static void read_settings(void) {
    const char *at = settings + strlen(MARK), *end = settings + sizeof settings;
    settings[sizeof settings - 1] = '\0';
    for (int i = 0; i <= STAMPS; i++) {
        if (at >= end || (i < PATH && *at == '\0')) fail("this launcher was not written by cnimeta install --native");
        setting[i] = at;
        at += strlen(at) + 1;
    }
}

/* Whether the files that the settings were taken from are the same. */
static int is_current(void) {
    const char *at = setting[STAMPS], *end = settings + sizeof settings;
    while (at < end && *at != '\0') {
        struct stat found;
        char stamp[96];
        if (stat(at, &found) != 0) return 0;
        snprintf(stamp, sizeof stamp, "%ju %jd %jd.%09ld", (uintmax_t)found.st_ino, (intmax_t)found.st_size,
                 (intmax_t)found.st_mtim.tv_sec, found.st_mtim.tv_nsec);
        at += strlen(at) + 1;
        if (at >= end || strcmp(at, stamp) != 0) return 0;
        at += strlen(at) + 1;
    }
    return 1;
}

static size_t skip_space(const char *text, size_t at, size_t count) {
    while (at < count && memchr(" \t\r\n", text[at], 4) != NULL) at++;
    return at;
}

/* The version in {"cniVersion":"1.0.0"}, or the current one when there is no query; NULL for anything else. */
static const char *asked_version(char *query, size_t count) {
    static const char KEY[] = "\"cniVersion\"";
    size_t at = skip_space(query, 0, count), from;
    if (at == count) return setting[CURRENT];
    if (query[at] != '{') return NULL;
    at = skip_space(query, at + 1, count);
    if (count - at < sizeof KEY - 1 || memcmp(query + at, KEY, sizeof KEY - 1) != 0) return NULL;
    at = skip_space(query, at + sizeof KEY - 1, count);
    if (at == count || query[at] != ':') return NULL;
    at = skip_space(query, at + 1, count);
    if (at == count || query[at] != '"') return NULL;
    from = ++at;
    while (at < count && ((query[at] >= '0' && query[at] <= '9') || query[at] == '.')) at++;
    if (at == from || at == count || query[at] != '"') return NULL;
    size_t until = at++;
    at = skip_space(query, at, count);
    if (at == count || query[at] != '}' || skip_space(query, at + 1, count) != count) return NULL;
    query[until] = '\0';
    return query + from;
}

/* Have what was read of stdin, and what is left of it, read again. */
static void unread(const char *data, size_t count) {
    char more[QUERY_BYTES];
    int copy = memfd_create("stdin", MFD_CLOEXEC);
    while (copy >= 0 && count > 0) {
        ssize_t done = write(copy, data, count);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) fail("the launcher has no memory for its stdin");
        data += done;
        count -= (size_t)done;
        if (count == 0) {
            ssize_t next = read(STDIN_FILENO, more, sizeof more);
            while (next < 0 && errno == EINTR) next = read(STDIN_FILENO, more, sizeof more);
            data = more;
            count = next > 0 ? (size_t)next : 0;
        }
    }
    if (copy < 0 || lseek(copy, 0, SEEK_SET) != 0 || dup2(copy, STDIN_FILENO) != STDIN_FILENO)
        fail("the launcher has no memory for its stdin");
}

static _Noreturn void serve_version(void) {
    char query[QUERY_BYTES + 1];
    size_t count = 0;
    ssize_t done = 1;
    while (done > 0 && count < QUERY_BYTES) {
        done = read(STDIN_FILENO, query + count, QUERY_BYTES - count);
        if (done < 0 && errno == EINTR) done = 1;
        else if (done > 0) count += (size_t)done;
    }
    char copy[QUERY_BYTES + 1];
    memcpy(copy, query, count);
    const char *version = done == 0 ? asked_version(copy, count) : NULL;
    if (version == NULL) {
        if (count > 0) unread(query, count);
        work_alone(1);
    }
    signal(SIGPIPE, SIG_IGN);
    int told = put(setting[VERSION_HEAD], strlen(setting[VERSION_HEAD])) && put(version, strlen(version)) &&
               put(setting[VERSION_TAIL], strlen(setting[VERSION_TAIL]));
    _exit(told ? 0 : 1);
}

/* Whether the process is known to be stopped. */
static int is_stopped(pid_t pid) {
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t count = read(file, line, sizeof line - 1);
    close(file);
    if (count <= 0) return 0;
    line[count] = '\0';
    const char *end = strrchr(line, ')'); /* the name may hold anything */
    return end != NULL && end[1] == ' ' && (end[2] == 'T' || end[2] == 't');
}

/* Receive exactly `count` bytes. 1, or 0 when the other side went away, or -1 when it takes much too long (agent > 0: it is
 * asked after each second whether that is stopped; 0: for ever). */
static int receive(int link, char *data, size_t count, pid_t agent) {
    int waited = 0;
    while (count > 0) {
        struct pollfd in = {.fd = link, .events = POLLIN};
        int ready = poll(&in, 1, agent >= 0 ? 1000 : -1);
        if (ready < 0 && errno != EINTR) return 0;
        if (ready == 0 && (++waited >= PATIENCE_S || is_stopped(agent))) return -1;
        if (ready <= 0) continue;
        ssize_t done = recv(link, data, count, MSG_DONTWAIT);
        if (done == 0 || (done < 0 && errno != EAGAIN && errno != EINTR)) return 0;
        if (done > 0) {
            data += done;
            count -= (size_t)done;
        }
    }
    return 1;
}

/* A connection to the agent, or -1. */
static int connect_agent(pid_t *agent) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred owner;
    struct stat found;
    socklen_t size = sizeof owner;
    const char *path = getenv(SOCKET);
    if (path == NULL || *path == '\0') path = setting[PATH];
    const char *slash = strrchr(path, '/');
    if (strlen(path) >= sizeof address.sun_path || slash == NULL || slash == path) return -1;
    memcpy(address.sun_path, path, (size_t)(slash - path));
    if (lstat(address.sun_path, &found) != 0 || !S_ISDIR(found.st_mode) || (found.st_mode & 022) != 0) return -1;
    if (found.st_uid != 0 && found.st_uid != geteuid()) return -1;
    memcpy(address.sun_path, path, strlen(path));
    int link = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (link < 0) return -1;
    if (connect(link, (struct sockaddr *)&address, sizeof address) != 0 ||
        getsockopt(link, SOL_SOCKET, SO_PEERCRED, &owner, &size) != 0 || (owner.uid != 0 && owner.uid != geteuid())) {
        close(link);
        return -1;
    }
    *agent = owner.pid;
    return link;
}

/* HELLO, umask, lengths, identity, environment: one block, `count` bytes. NULL when there is no memory. */
static char *request(size_t *count) {
    size_t folder = strlen(setting[FOLDER]) + 1, plugin = strlen(setting[PLUGIN]), environment = 0;
    for (char **one = environ; *one != NULL; one++) environment += strlen(*one) + 1;
    if (environment > 0) environment--; /* NUL between them, none at the end */
    *count = HELLO_BYTES + 3 * sizeof(uint32_t) + folder + plugin + environment;
    if (environment > LARGEST) return NULL;
    char *block = malloc(*count + 1), *at = block;
    if (block == NULL) return NULL;
    mode_t mask = umask(0);
    umask(mask);
    const uint32_t numbers[] = {mask, (uint32_t)(folder + plugin), (uint32_t)environment};
    at = mempcpy(at, HELLO, HELLO_BYTES);
    at = mempcpy(at, numbers, sizeof numbers);
    at = mempcpy(at, setting[FOLDER], folder);
    at = mempcpy(at, setting[PLUGIN], plugin);
    for (char **one = environ; *one != NULL; one++) at = mempcpy(at, *one, strlen(*one) + 1);
    return block;
}

/* Send the block, and with its first byte the descriptors. */
static int send_all(int link, const char *block, size_t count, const int *descriptors) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(DESCRIPTORS * sizeof(int))];
    } control;
    memset(&control, 0, sizeof control);
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(DESCRIPTORS * sizeof(int));
    memcpy(CMSG_DATA(&control.header), descriptors, DESCRIPTORS * sizeof(int));
    int first = 1;
    while (count > 0) {
        struct iovec part = {.iov_base = (char *)block, .iov_len = count};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        if (first) {
            message.msg_control = &control;
            message.msg_controllen = sizeof control.space;
        }
        ssize_t done = sendmsg(link, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (done < 0 && errno == EAGAIN) {
            struct pollfd out = {.fd = link, .events = POLLOUT};
            if (poll(&out, 1, PATIENCE_S * 1000) == 0) return 0;
        } else if (done < 0 && errno != EINTR) {
            return 0;
        } else if (done > 0) {
            block += done;
            count -= (size_t)done;
            first = 0;
        }
    }
    return 1;
}

/* Hand everything over. False when the agent has not accepted, and cannot any more. */
static int accepted(int link, pid_t agent) {
    static const char *const places[] = {"/proc/self/ns/net", "/proc/self/ns/mnt", ".", "/"};
    char hello[HELLO_BYTES], answer = 0;
    int descriptors[DESCRIPTORS], lifeline[2];
    size_t count;
    if (receive(link, hello, HELLO_BYTES, agent) != 1 || memcmp(hello, HELLO, HELLO_BYTES) != 0) return 0;
    for (int i = 0; i < 4; i++)
        if ((descriptors[i] = open(places[i], O_RDONLY | O_CLOEXEC)) < 0) return 0;
    if (pipe2(lifeline, O_CLOEXEC) != 0) return 0; /* lifeline[1] closes with this process, however that ends */
    descriptors[4] = STDIN_FILENO;
    descriptors[5] = STDERR_FILENO;
    descriptors[6] = lifeline[0];
    char *block = request(&count);
    if (block == NULL || !send_all(link, block, count, descriptors)) return 0;
    for (int i = 0; i < 4; i++) close(descriptors[i]);
    close(lifeline[0]);
    free(block);
    int heard = 1;
    for (answer = WAITING; heard == 1 && answer == WAITING;) heard = receive(link, &answer, 1, agent);
    if (heard != 1) { /* from the shutdown on it cannot accept; it may have done so just before */
        shutdown(link, SHUT_RD);
        do heard = recv(link, &answer, 1, MSG_DONTWAIT) == 1;
        while (heard == 1 && answer == WAITING);
    }
    return heard == 1 && answer == ACCEPTED;
}

/* Pass the answer on. The exit status. */
static int pass_on(int link) {
    struct {
        int32_t status;
        uint32_t length;
    } head;
    char *answer = NULL;
    signal(SIGPIPE, SIG_IGN);
    if (receive(link, (char *)&head, sizeof head, -1) != 1 || head.length > LARGEST ||
        (answer = malloc((size_t)head.length + 1)) == NULL || receive(link, answer, head.length, -1) != 1) {
        put(LOST, sizeof LOST - 1);
        return 1;
    }
    if (!put(answer, head.length) && head.status == 0) return 1;
    return head.status;
}

int main(void) {
    pid_t agent = 0;
    read_settings();
    const char *off = getenv(OFF), *verb = getenv("CNI_COMMAND");
    for (int stream = 0; stream < 3; stream++)
        if (fcntl(stream, F_GETFD) < 0) work_alone(1); /* it cannot be handed over */
    if ((off != NULL && strcmp(off, "0") == 0) || verb == NULL || *verb == '\0') work_alone(0);
    if (strcmp(verb, "VERSION") == 0) {
        if (is_current()) serve_version();
        work_alone(1);
    }
    int link = connect_agent(&agent);
    if (link < 0 || !accepted(link, agent)) work_alone(1);
    _exit(pass_on(link) & 0xff);
}
