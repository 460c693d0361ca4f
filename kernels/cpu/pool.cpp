#include "pool.h"

#include <pthread.h>

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

namespace fastgraph {
namespace {

using Clock = std::chrono::steady_clock;

// Measured on two cores: a parked worker begins 30 to 50 us after its wake-up, which itself takes the
// caller about 5; a spinning one begins after 0.2. Calls from Python in a row are 10 to 25 us apart.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr double kWorthWaking_ns = 60e3;
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

class Pool {
 public:
  using Function = void (*)(const void*, int64_t);

  bool try_take() { return !taken_.exchange(true, std::memory_order_acquire); }

  void give_back() {
    last_end_ = Clock::now();
    taken_.store(false, std::memory_order_release);
  }

  // Starts missing workers; says how many threads there are for this call, the caller included.
  int prepare(int threads, double work_ns) {
    threads = threads < kMaxThreads ? threads : kMaxThreads;
    try {
      while (workers_ < threads - 1) {
        std::thread(&Pool::work, this, workers_, Ticket::generation(ticket_.load())).detach();
        workers_++;
      }
    } catch (const std::system_error&) {  // no more threads to be had: fewer will do
    }
    const bool parked = asleep_.load(std::memory_order_relaxed) > 0;
    const bool in_a_row = Clock::now() - last_end_ < kSpin;
    if (parked && work_ns < kWorthWaking_ns && !in_a_row) return 1;
    return threads < workers_ + 1 ? threads : workers_ + 1;
  }

  void run(int threads, uint64_t chunks, Function function, const void* body) {
    function_ = function;
    body_ = body;
    mode_ = float_mode();
    helpers_.store(threads - 1, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint64_t generation = (Ticket::generation(ticket_.load(std::memory_order_relaxed)) + 1) & (~uint64_t(0) >> (2 * Ticket::kBits));
    ticket_.store(Ticket::make(generation, chunks) + 1, std::memory_order_seq_cst);  // the first chunk is drawn already
    if (asleep_.load(std::memory_order_seq_cst) > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
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

 private:
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

  void work(int index, uint64_t seen) {
    for (;;) {
      seen = next_generation(seen);
      if (index >= helpers_.load(std::memory_order_relaxed)) continue;
      while (draw(seen)) {
      }
    }
  }

  // Waits, first spinning and then parked, for a generation other than `seen`.
  uint64_t next_generation(uint64_t seen) {
    const auto start = Clock::now();
    for (int spins = 1;; spins++) {
      if (const uint64_t g = generation(std::memory_order_acquire); g != seen) return g;
      pause();
      if (spins % 64 == 0 && Clock::now() - start > kSpin) break;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return generation(std::memory_order_seq_cst) != seen; });
    asleep_.fetch_sub(1, std::memory_order_seq_cst);
    return generation(std::memory_order_acquire);
  }

  uint64_t generation(std::memory_order order) const { return Ticket::generation(ticket_.load(order)); }

  // Cache lines go from core to core once a step: what changes as chunks are drawn and done, which workers watch; and the job.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  std::atomic<uint64_t> done_{0};
  alignas(64) std::atomic<Function> function_{nullptr};
  std::atomic<const void*> body_{nullptr};
  std::atomic<unsigned> mode_{0};
  std::atomic<int> helpers_{0};
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;  // the first one: written once a job, read when all of it is done
  alignas(64) std::atomic<int> asleep_{0};
  std::atomic<bool> taken_{false};
  int workers_ = 0;                    // read and written under taken_
  Clock::time_point last_end_{};       // likewise
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

}  // namespace

Lease::Lease(int threads, double work_ns) {
  if (threads < 2 || !get_pool().try_take()) return;
  held_ = true;
  threads_ = get_pool().prepare(threads, work_ns);
}

Lease::~Lease() {
  if (held_) get_pool().give_back();
}

void Lease::run_shared(int64_t chunks, Function function, const void* body) {
  get_pool().run(threads_, uint64_t(chunks), function, body);
}

}  // namespace fastgraph
