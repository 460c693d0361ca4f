#include "team.h"

#include <algorithm>
#include <atomic>

#if defined(__linux__)
#include <dlfcn.h>
#include <pthread.h>
#include <time.h>
#endif

namespace fastgraph::team {

#if defined(__linux__)
namespace {

constexpr int64_t kLookEvery_ns = 50'000;
// What threads that are not ours compute between two looks before a team is looked for. (The system counts in ticks.)
constexpr int64_t kSomebodyComputes_ns = 500'000;
constexpr int kSlowCalls = 2;  // in a row: then the team is left alone for a break
// A team that only our jobs keep awake falls asleep in such a break. The first comes soon; each, had it no effect, doubles the time to the next.
constexpr int64_t kBreak_ns = 20'000'000, kFirstSpell_ns = 200'000'000, kLongestSpell_ns = 10'000'000'000;
// Two readings of a running thread's clock, at the least 300 ns apart, differ by as much.
constexpr int64_t kRuns_ns = 100;

int64_t read(clockid_t clock) {
  timespec t;
  return clock_gettime(clock, &t) == 0 ? int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec : -1;
}

// The functions of libgomp that compilers call for `#pragma omp parallel`.
struct Library {
  void (*parallel)(void (*)(void*), void*, unsigned threads, unsigned flags) = nullptr;
  int (*thread_num)() = nullptr;
  int (*in_parallel)() = nullptr;
  // A child of fork() has none of the threads that its copy of the library believes in.
  std::atomic<bool> forked{false};

  Library() {
    void* library = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return;
    thread_num = reinterpret_cast<int (*)()>(dlsym(library, "omp_get_thread_num"));
    in_parallel = reinterpret_cast<int (*)()>(dlsym(library, "omp_in_parallel"));
    if (thread_num && in_parallel) parallel = reinterpret_cast<decltype(parallel)>(dlsym(library, "GOMP_parallel"));
  }
  bool usable() const { return parallel && !forked.load(std::memory_order_relaxed) && !in_parallel(); }
};

Library& library() {
  static Library* const one = [] {
    static Library made;
    pthread_atfork(nullptr, nullptr, [] { made.forked.store(true, std::memory_order_relaxed); });
    return &made;
  }();
  return *one;
}

// What is known of the calling thread's team.
class Team {
 public:
  bool is_spinning(int threads, int64_t workers_ns) {
    const int64_t now = read(CLOCK_MONOTONIC);
    if (now - looked_ < kLookEvery_ns && (threads == threads_ || threads_ == 0)) return spins_;
    looked_ = now;
    if (!library().usable()) return spins_ = false;
    if (threads_ != threads && workers_ns >= 0 && somebody_computes(workers_ns)) find(threads);
    return spins_ = threads_ == threads && runs() && !takes_break(now);
  }

  void took(int64_t ns, double alone_ns) {
    slow_ = double(ns) < alone_ns ? 0 : slow_ + 1;
    if (slow_ < kSlowCalls) return;
    slow_ = 0;
    spins_ = false;
    seen_ = break_end_ = read(CLOCK_MONOTONIC) + kBreak_ns;
  }

 private:
  // Whether the team's first worker has a core now. It has none where its clock stands as it stood at the last look.
  bool runs() {
    const int64_t before = last_;
    last_ = read(worker_);
    if (last_ < 0) threads_ = 0;  // that thread has ended
    if (last_ < 0 || last_ == before) return false;
    return read(worker_) - last_ >= kRuns_ns;
  }

  bool takes_break(int64_t now) {
    if (now < break_end_) return true;
    if (now - seen_ > kBreak_ns) {  // it had fallen asleep: a new spell
      spell_ = kFirstSpell_ns;
      spell_end_ = now + spell_;
    }
    seen_ = now;
    if (now < spell_end_) return false;
    spell_ = std::min(2 * spell_, kLongestSpell_ns);
    seen_ = break_end_ = now + kBreak_ns;
    spell_end_ = break_end_ + spell_;
    return true;
  }

  bool somebody_computes(int64_t workers_ns) {
    const int64_t others = read(CLOCK_PROCESS_CPUTIME_ID) - read(CLOCK_THREAD_CPUTIME_ID) - workers_ns, before = others_;
    others_ = others;
    return before >= 0 && others - before > kSomebodyComputes_ns;
  }

  // A region in which the workers say who they are. It makes them where there are none, which is why somebody must have computed.
  void find(int threads) {
    clockid_t worker{};
    team::run(threads, [&worker](int thread) {
      if (thread == 1) pthread_getcpuclockid(pthread_self(), &worker);
    });
    worker_ = worker;
    threads_ = threads;
    last_ = -1;
  }

  int threads_ = 0;  // 0: not found yet
  clockid_t worker_{};
  int64_t last_ = -1, others_ = -1, looked_ = 0;
  int64_t spell_ = 0, spell_end_ = 0, break_end_ = 0, seen_ = 0;
  bool spins_ = false;
  int slow_ = 0;  // calls in a row
};

thread_local Team team;

}  // namespace

bool is_spinning(int threads, int64_t workers_ns) { return team.is_spinning(threads, workers_ns); }

void took(int64_t ns, double alone_ns) { team.took(ns, alone_ns); }

void run(int threads, void (*function)(const void*, int), const void* body) {
  struct Region {
    void (*function)(const void*, int);
    const void* body;
  } region{function, body};
  const auto part = [](void* p) {
    const Region& r = *static_cast<const Region*>(p);
    r.function(r.body, library().thread_num());
  };
  library().parallel(part, &region, unsigned(threads), 0);
}

#else

bool is_spinning(int, int64_t) { return false; }
void took(int64_t, double) {}
void run(int, void (*function)(const void*, int), const void* body) { function(body, 0); }

#endif

}  // namespace fastgraph::team
