// Worker threads for kernels of a few microseconds to a few milliseconds.
//
// * A job is a range of chunks. Caller and workers draw chunks from one ticket; the caller
//   waits only for chunks that somebody has begun, so a worker that the system has not
//   scheduled yet costs nothing (an OpenMP region would wait for it).
// * Workers spin for 50 us after a job, then park; an idle process uses no CPU time.
// * Waking a parked worker costs more than it brings for a very small job: such a job runs
//   on the caller alone unless calls follow each other closely. Both are measured (see OneThreadTime).
// * Where ATen's workers spin after an operator of theirs, the job is given to them (see team.h).
// * One job at a time. A second Python thread that finds the pool taken computes alone.
// * After fork() the child starts with a fresh pool.
#pragma once

#include <stdint.h>

#include "work.h"

namespace fastgraph {

class Board;

// The right to use threads for one call, which may be several jobs in a row.
class Lease {
 public:
  // Calls call(lease). threads: at most so many, the caller included. estimate_ns: one thread's time for the whole call, roughly, of
  // which `time` knows, and learns, how far it is off.
  template <class Call>
  static void hold(int threads, OneThreadTime& time, double estimate_ns, const Call& call) {
    hold(threads, time, estimate_ns, [](const void* p, Lease& lease) { (*static_cast<const Call*>(p))(lease); }, &call);
  }

  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  // 1 where this call runs on the caller alone.
  int threads() const { return threads_; }

  // For a job of the call that is too small to be handed out.
  Lease alone() const { return Lease(1, nullptr); }

  static constexpr int64_t kMaxChunks = (int64_t(1) << 21) - 1;

  // Calls body(chunk) for every chunk in [0, chunks), on this thread and the others; returns when all are done.
  // Where a chunk throws, the others are computed all the same (on one thread: those before it) and the caller gets one exception.
  template <class Body>
  void run(int64_t chunks, const Body& body) {
    if (threads_ == 1 || chunks < 2) {
      for (int64_t c = 0; c < chunks; c++) body(c);
      return;
    }
    for (int64_t first = 0; first < chunks; first += kMaxChunks) {
      const int64_t count = chunks - first < kMaxChunks ? chunks - first : kMaxChunks;
      const auto part = [&body, first](int64_t c) { body(first + c); };
      run_shared(count, [](const void* p, int64_t c) { (*static_cast<const decltype(part)*>(p))(c); }, &part);
    }
  }

 private:
  using Function = void (*)(const void* body, int64_t chunk);
  using Call = void (*)(const void* call, Lease& lease);

  Lease(int threads, Board* board) : threads_(threads), board_(board) {}
  static void hold(int threads, OneThreadTime& time, double estimate_ns, Call call, const void* body);
  static void hold_team(int threads, Call call, const void* body);
  void run_shared(int64_t chunks, Function function, const void* body);

  int threads_;
  Board* board_;  // null where threads_ is 1
};

}  // namespace fastgraph
