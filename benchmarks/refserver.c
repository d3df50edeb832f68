/* A paced reference server for benchmarks/load.py: one thread, epoll and a timerfd, compiled, so that it is not
 * the bottleneck. It answers every POST with an OpenAI chat stream on an exact schedule: the first token
 * ttft_ms after the request was read, the others gap_ms apart. It stamps CLOCK_MONOTONIC, the clock of Python's
 * perf_counter, right before each write, and writes its log when it gets SIGTERM.
 *
 *   refserver LOG TTFT_MS GAP_MS TOKENS      prints its port, then serves on 127.0.0.1
 *
 * LOG holds packed records {uint32 request, uint32 token, double due_s, double sent_s}; token 0 is the arrival
 * of the request.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 65536
#define HEAD_MAX 65536

struct __attribute__((packed)) record { uint32_t request, token; double due, sent; };
struct conn { char *in; size_t have; uint32_t request, token; double due; };

static struct conn conns[MAX_FD];
static int heap[MAX_FD], heap_size, heap_at[MAX_FD];
static struct record *records;
static size_t record_count, record_room;
static double ttft, gap;
static uint32_t tokens, requests;
static char head[256], middle[512], last[2048];
static size_t head_len, middle_len, last_len;

static void die(const char *what) { perror(what); exit(1); }

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void note(uint32_t request, uint32_t token, double due, double sent) {
    if (record_count == record_room) {
        record_room = record_room ? record_room * 2 : 1 << 20;
        records = realloc(records, record_room * sizeof *records);
        if (!records) die("realloc");
    }
    records[record_count++] = (struct record){request, token, due, sent};
}

/* A binary heap of connections by the time their next token is due. */
static void place(int at, int fd) { heap[at] = fd; heap_at[fd] = at; }

static void sift(int at) {
    int fd = heap[at];
    while (at > 1 && conns[heap[at / 2]].due > conns[fd].due) { place(at, heap[at / 2]); at /= 2; }
    for (;;) {
        int child = at * 2;
        if (child > heap_size) break;
        if (child < heap_size && conns[heap[child + 1]].due < conns[heap[child]].due) child++;
        if (conns[heap[child]].due >= conns[fd].due) break;
        place(at, heap[child]);
        at = child;
    }
    place(at, fd);
}

static void push(int fd) { place(++heap_size, fd); sift(heap_size); }

static void drop(int fd) {
    int at = heap_at[fd];
    if (!at) return;
    heap_at[fd] = 0;
    int moved = heap[heap_size--];
    if (moved == fd) return;
    place(at, moved);
    sift(at);
}

static void hang_up(int fd) {
    drop(fd);
    free(conns[fd].in);
    conns[fd] = (struct conn){0};
    close(fd);
}

static int put(int fd, const char *data, size_t size) {
    ssize_t n = send(fd, data, size, MSG_NOSIGNAL);
    if (n == (ssize_t)size) return 1;
    if (n >= 0 || errno == EAGAIN) { fprintf(stderr, "refserver: a client stopped reading\n"); exit(1); }
    hang_up(fd);
    return 0;
}

static void chunk(char *out, size_t *len, const char *events) {
    *len += sprintf(out + *len, "%zx\r\n%s\r\n", strlen(events), events);
}

static void prepare(void) {
    const char *form = "data: {\"id\":\"chatcmpl-reference\",\"object\":\"chat.completion.chunk\",\"created\":1,"
        "\"model\":\"ref\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,"
        "\"finish_reason\":%s}]}\n\n";
    char event[1024];
    head_len = sprintf(head, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
        "Transfer-Encoding: chunked\r\n\r\n");
    sprintf(event, form, "null");
    chunk(middle, &middle_len, event);
    sprintf(event, form, "\"length\"");
    chunk(last, &last_len, event);
    sprintf(event, "data: {\"id\":\"chatcmpl-reference\",\"object\":\"chat.completion.chunk\",\"created\":1,"
        "\"model\":\"ref\",\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":%u,"
        "\"total_tokens\":%u}}\n\n", tokens, tokens + 10);
    chunk(last, &last_len, event);
    chunk(last, &last_len, "data: [DONE]\n\n");
    last_len += sprintf(last + last_len, "0\r\n\r\n");
}

static void emit(int fd) {
    struct conn *c = &conns[fd];
    int final = ++c->token == tokens;
    note(c->request, c->token, c->due, now_s());
    if (!put(fd, final ? last : middle, final ? last_len : middle_len)) return;
    if (final) { drop(fd); return; }
    c->due += gap;
    sift(heap_at[fd]);
}

/* Take a whole request out of the buffer, if there is one, and start its answer. */
static void answer(int fd) {
    struct conn *c = &conns[fd];
    char *end = c->have ? memmem(c->in, c->have, "\r\n\r\n", 4) : NULL;
    if (!end) return;
    char *length = strcasestr(c->in, "content-length:");
    size_t size = end + 4 - c->in + (length && length < end ? strtoul(length + 15, NULL, 10) : 0);
    if (c->have < size) return;
    double now = now_s();
    c->have -= size;
    memmove(c->in, c->in + size, c->have);
    c->request = requests++;
    c->token = 0;
    c->due = now + ttft;
    note(c->request, 0, now, now);
    if (put(fd, head, head_len)) push(fd);
}

static void receive(int fd) {
    struct conn *c = &conns[fd];
    if (!c->in && !(c->in = calloc(1, HEAD_MAX + 1))) die("calloc");
    ssize_t n = recv(fd, c->in + c->have, HEAD_MAX - c->have, 0);
    if (n <= 0) { if (n == 0 || errno != EAGAIN) hang_up(fd); return; }
    c->have += n;
    c->in[c->have] = 0;
    answer(fd);
}

static void welcome(int epoll, int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        if (fd >= MAX_FD) { close(fd); continue; }
        int one = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
    }
}

static void set_timer(int timer) {
    double due = heap_size ? conns[heap[1]].due : 0;
    struct itimerspec at = {.it_value = {.tv_sec = (time_t)due, .tv_nsec = (long)((due - (time_t)due) * 1e9)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static int listen_anywhere(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(fd, (struct sockaddr *)&address, size) || listen(fd, 4096)) die("listen");
    getsockname(fd, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static void save(const char *path) {
    FILE *log = fopen(path, "wb");
    if (!log || fwrite(records, sizeof *records, record_count, log) != record_count || fclose(log)) die(path);
}

int main(int argc, char **argv) {
    if (argc != 5) { fprintf(stderr, "refserver LOG TTFT_MS GAP_MS TOKENS\n"); return 2; }
    ttft = atof(argv[2]) / 1e3, gap = atof(argv[3]) / 1e3, tokens = (uint32_t)atoi(argv[4]);
    prepare();
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    int listener = listen_anywhere(), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int signals = signalfd(-1, &stop, 0), epoll = epoll_create1(0);
    int watched[] = {listener, timer, signals};
    for (int i = 0; i < 3; i++) {
        struct epoll_event e = {.events = EPOLLIN, .data.fd = watched[i]};
        epoll_ctl(epoll, EPOLL_CTL_ADD, watched[i], &e);
    }
    struct epoll_event ready[512];
    for (;;) {
        int n = epoll_wait(epoll, ready, 512, -1);
        for (int i = 0; i < n; i++) {
            int fd = ready[i].data.fd;
            if (fd == signals) { save(argv[1]); return 0; }
            if (fd == listener) welcome(epoll, listener);
            else if (fd != timer) receive(fd);
            /* tokens that came due meanwhile go first */
            while (heap_size && conns[heap[1]].due <= now_s()) emit(heap[1]);
        }
        set_timer(timer);
    }
}
