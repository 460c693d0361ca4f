#include "thread_pool.h"

#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "team.h"

namespace fastgraph {
namespace {

using Clock = std::chrono::steady_clock;

// Measured on two cores: a parked worker begins 30 to 50 us after its wake-up (beside a busy process later: the pool measures
// it), which itself takes the caller about 5; a spinning one begins after 0.2. Calls from Python in a row are 10 to 25 us apart.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int64_t kNotify_ns = 5'000, kWaking_ns = 50'000, kLongestWaking_ns = 400'000;
// A job this long is worth waking for, whatever its own time has not been measured to be yet.
constexpr double kLong_ns = 1e6;
// Shorter ones are measured again, each so many wake-ups.
constexpr double kDoubtless_ns = 300e3;
constexpr int kRetry = 16;
constexpr int kSlowCalls = 2, kAloneCalls = 64;

int64_t thread_ns() {
#if defined(__linux__)
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return int64_t(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
#else
  return 0;
#endif
}
int64_t now_ns() { return std::chrono::nanoseconds(Clock::now().time_since_epoch()).count(); }
constexpr int kMaxThreads = 256;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Rounding and denormal modes follow the caller into the workers: a row's bits must not depend on its thread.
inline unsigned float_mode() {
#if defined(__x86_64__)
  return _mm_getcsr();
#else
  return 0;
#endif
}
inline void set_float_mode(unsigned mode) {
#if defined(__x86_64__)
  if (_mm_getcsr() != mode) _mm_setcsr(mode);
#else
  (void)mode;
#endif
}

// generation, chunks and next chunk in one word, so that a worker which comes late cannot draw
// a chunk of one job under the count of another, and has all to look at in one cache line.
struct Ticket {
  static constexpr int kBits = 21;
  static_assert(Lease::kMaxChunks == (int64_t(1) << kBits) - 1, "a job's chunks must fit the ticket");
  static constexpr uint64_t kMask = (uint64_t(1) << kBits) - 1;
  static uint64_t make(uint64_t generation, uint64_t chunks) { return generation << (2 * kBits) | chunks << kBits; }
  static uint64_t generation(uint64_t t) { return t >> (2 * kBits); }
  static uint64_t chunks(uint64_t t) { return t >> kBits & kMask; }
  static uint64_t next(uint64_t t) { return t & kMask; }
};

}  // namespace

// Where a job stands: whoever looks at it draws chunks and computes them.
class Board {
 public:
  using Function = void (*)(const void*, int64_t);
  virtual ~Board() = default;

  uint64_t generation(std::memory_order order = std::memory_order_acquire) const { return Ticket::generation(ticket_.load(order)); }

  // Computes a job, of which others may draw: helpers of index below threads - 1.
  void run(int threads, uint64_t chunks, Function function, const void* body) {
    function_ = function;
    body_ = body;
    mode_ = float_mode();
    helpers_.store(threads - 1, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint64_t generation = (this->generation(std::memory_order_relaxed) + 1) & (~uint64_t(0) >> (2 * Ticket::kBits));
    ticket_.store(Ticket::make(generation, chunks) + 1, std::memory_order_seq_cst);  // the first chunk is drawn already
    call_helpers();
    compute(0);
    while (draw(generation)) {
    }
    // What is left has been begun by a worker. If it takes long, that worker may have lost its core: offer this one.
    for (int64_t spins = 0; done_.load(std::memory_order_acquire) < chunks; spins++) {
      if (spins < 2000) pause();
      else std::this_thread::yield();
    }
    if (failed_.load(std::memory_order_relaxed)) {
      failed_.store(false, std::memory_order_relaxed);
      std::rethrow_exception(std::exchange(failure_, nullptr));
    }
  }

  // Takes part in the job `generation` as a helper.
  void help(int index, uint64_t generation) {
    if (index >= helpers_.load(std::memory_order_relaxed)) return;
    while (draw(generation)) {
    }
  }

 private:
  virtual void call_helpers() {}

  // Draws one chunk of the job `generation` and computes it; false when none is left.
  bool draw(uint64_t generation) {
    uint64_t t = ticket_.load(std::memory_order_acquire);
    do {
      if (Ticket::generation(t) != generation || Ticket::next(t) >= Ticket::chunks(t)) return false;
    } while (!ticket_.compare_exchange_weak(t, t + 1, std::memory_order_acq_rel, std::memory_order_acquire));
    set_float_mode(mode_);  // the ticket drawn holds the job, and so these three, in place
    compute(int64_t(Ticket::next(t)));
    return true;
  }

  void compute(int64_t chunk) {
    try {
      function_(body_, chunk);
    } catch (...) {  // no memory, say: the caller throws it when every chunk is done
      if (!failed_.exchange(true, std::memory_order_relaxed)) failure_ = std::current_exception();
    }
    done_.fetch_add(1, std::memory_order_release);
  }

  // Cache lines go from core to core once a step: what changes as chunks are drawn and done, which workers watch; and the job.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  std::atomic<uint64_t> done_{0};
  alignas(64) std::atomic<Function> function_{nullptr};
  std::atomic<const void*> body_{nullptr};
  std::atomic<unsigned> mode_{0};
  std::atomic<int> helpers_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;  // the first one: written once a job, read when all of it is done
};

namespace {

// The board of our own workers.
class Pool : public Board {
 public:
  // Tells how long a call took that takes `alone_ns` on the caller alone. Where waking did not help, as from deep sleep, the next
  // calls that would wake are the caller's own.
  void took(int64_t ns, double alone_ns) {
    if (!std::exchange(woke_, false)) return;
    slow_ = double(ns) < 1.1 * alone_ns ? 0 : slow_ + 1;
    if (slow_ == kSlowCalls) slow_ = 0, alone_calls_ = kAloneCalls;
  }

  bool try_take() { return !taken_.exchange(true, std::memory_order_acquire); }

  void give_back() {
    last_end_ = Clock::now();
    taken_.store(false, std::memory_order_release);
  }

  // Processor time that the workers have used; -1 while one of them is awake.
  int64_t workers_ns() const { return asleep_.load() == workers_ ? used_ns_.load() : -1; }

  // Starts missing workers; says how many threads there are for this call, the caller included.
  int prepare(int threads, const OneThreadTime& time, double estimate_ns) {
    threads = threads < kMaxThreads ? threads : kMaxThreads;
    try {
      while (workers_ < threads - 1) {
        std::thread(&Pool::work, this, workers_.load(), generation()).detach();
        workers_++;
      }
    } catch (const std::system_error&) {  // no more threads to be had: fewer will do
    }
    const bool in_a_row = Clock::now() - last_end_ < kSpin;
    if (asleep_.load(std::memory_order_relaxed) > 0 && !in_a_row && !is_worth_waking(time, estimate_ns)) return 1;
    return threads < workers_ + 1 ? threads : workers_ + 1;
  }

 private:
  void call_helpers() override {
    if (asleep_.load(std::memory_order_seq_cst) == 0) return;
    woken_ns_.store(now_ns(), std::memory_order_relaxed);
    std::lock_guard<std::mutex> lock(mutex_);
    wake_.notify_all();
  }

  // With two threads, of which the second begins late: half the work and half of that delay, and the call that wakes.
  bool is_worth_waking(const OneThreadTime& time, double estimate_ns) {
    if (estimate_ns > kLong_ns) return true;
    if (time.unknown(estimate_ns)) return false;
    if (alone_calls_ > 0) {
      alone_calls_--;
      return false;
    }
    const int64_t waking = waking_ns_.load(std::memory_order_relaxed);
    // What was slow once, beside another process, is tried again some time: a job on one thread, or waking.
    const double alone = time.ns(estimate_ns);
    if (alone > double(waking + 2 * kNotify_ns)) return woke_ = alone > kDoubtless_ns || ++woken_ % kRetry != 0;
    if (waking > kWaking_ns) waking_ns_.store(waking - waking / 256, std::memory_order_relaxed);
    return false;
  }

  void work(int index, uint64_t seen) {
#if defined(__linux__)
    pthread_setname_np(pthread_self(), "fastgraph");  // for profilers
#endif
    for (;;) {
      seen = next_generation(seen);
      help(index, seen);
    }
  }

  // Waits, first spinning and then parked, for a generation other than `seen`.
  uint64_t next_generation(uint64_t seen) {
    const auto start = Clock::now();
    for (int spins = 1;; spins++) {
      if (const uint64_t g = generation(); g != seen) return g;
      pause();
      if (spins % 64 == 0 && Clock::now() - start > kSpin) break;
    }
    static thread_local int64_t counted = 0;
    const int64_t used = thread_ns();
    used_ns_.fetch_add(used - std::exchange(counted, used));
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return generation(std::memory_order_seq_cst) != seen; });
    asleep_.fetch_sub(1, std::memory_order_seq_cst);
    const int64_t waking = waking_ns_.load(std::memory_order_relaxed);
    const int64_t took = std::min(now_ns() - woken_ns_.load(std::memory_order_relaxed), kLongestWaking_ns);
    waking_ns_.store(waking + (took - waking) / 8, std::memory_order_relaxed);
    return generation();
  }

  alignas(64) std::atomic<int> asleep_{0};
  std::atomic<bool> taken_{false};
  std::atomic<int> workers_{0};        // written under taken_
  std::atomic<int64_t> used_ns_{0};
  std::atomic<int64_t> waking_ns_{kWaking_ns}, woken_ns_{0};  // from a wake-up to the first draw, smoothed; and the last one's time
  Clock::time_point last_end_{};       // likewise
  unsigned woken_ = 0;                 // likewise
  bool woke_ = false;                  // likewise: in this call
  int slow_ = 0, alone_calls_ = 0;     // likewise
  std::mutex mutex_;
  std::condition_variable wake_;
};

// Never destroyed: workers may outlive every static object.
std::atomic<Pool*> pool{nullptr};

Pool& get_pool() {
  static const bool once = [] {
    pool.store(new Pool);
    // The child has none of the parent's workers, and its copy of the state may be mid-job.
    pthread_atfork(nullptr, nullptr, [] { pool.store(new Pool); });
    return true;
  }();
  (void)once;
  return *pool.load(std::memory_order_acquire);
}

// The board of one call on the calling thread's OpenMP team.
class TeamCall : public Board {
 public:
  // On every other thread of the team, until the caller's call has ended.
  void serve(int index) {
    const unsigned mode = float_mode();
    for (uint64_t seen = 0; !ended_.load(std::memory_order_acquire);) {
      const uint64_t g = generation();
      if (g == seen) pause();
      else help(index, seen = g);
    }
    set_float_mode(mode);  // the thread is ATen's
  }
  void end() { ended_.store(true, std::memory_order_release); }

 private:
  std::atomic<bool> ended_{false};
};

}  // namespace

void Lease::hold(int threads, OneThreadTime& time, double estimate_ns, Call call, const void* body) {
  const bool known = !time.unknown(estimate_ns);
  if (threads > 1 && (known || estimate_ns > kLong_ns) && team::is_spinning(threads, get_pool().workers_ns())) {
    const int64_t start = now_ns();
    hold_team(threads, call, body);
    if (known) team::took(now_ns() - start, time.ns(estimate_ns));
    return;
  }
  if (threads < 2 || !get_pool().try_take()) {
    Lease alone(1, nullptr);
    return call(body, alone);
  }
  struct Taken {
    ~Taken() { get_pool().give_back(); }
  } taken;
  Lease lease(get_pool().prepare(threads, time, estimate_ns), &get_pool());
  const int64_t start = now_ns();
  call(body, lease);
  const int64_t took = now_ns() - start;
  if (lease.threads() == 1) time.measured(estimate_ns, double(took));
  else if (known) get_pool().took(took, time.ns(estimate_ns));
}

void Lease::hold_team(int threads, Call call, const void* body) {
  TeamCall board;
  Lease lease(threads, &board);
  std::exception_ptr failure;  // not to be thrown through the region
  const auto part = [&](int thread) {
    if (thread > 0) return board.serve(thread - 1);
    try {
      call(body, lease);
    } catch (...) {
      failure = std::current_exception();
    }
    board.end();
  };
  team::run(threads, part);
  if (failure) std::rethrow_exception(failure);
}

void Lease::run_shared(int64_t chunks, Function function, const void* body) { board_->run(threads_, uint64_t(chunks), function, body); }

}  // namespace fastgraph
