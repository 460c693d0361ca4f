// The OpenMP team of the calling thread: the one whose workers compute ATen's parallel operators.
//
// After such an operator its workers spin for some milliseconds, each on a core that workers of ours would need, and begin
// what comes next at once. So a job that finds them spinning is theirs (see Lease); where they are parked or have lost
// their cores they are left alone, since an OpenMP region waits at its end for all of its threads.
//
// The library is the libgomp that is loaded (torch brings it), found at run time: nothing here is linked to it.
#pragma once

#include <stdint.h>

namespace fastgraph::team {

// Whether the calling thread's team of so many threads is there and spins at this moment. Looks at most every 50 us. Says no for
// a moment now and then, since our own jobs too keep the team spinning, and are cheaper on workers of ours.
// workers_ns: processor time of our own workers so far; negative while one of them is awake.
bool is_spinning(int threads, int64_t workers_ns);

void run(int threads, void (*function)(const void* body, int thread), const void* body);

// body(thread) on every thread of the team, thread 0 being the caller; returns when all are done. For use after is_spinning.
template <class Body>
void run(int threads, const Body& body) {
  run(threads, [](const void* p, int thread) { (*static_cast<const Body*>(p))(thread); }, &body);
}

// Tells how long a call on the team took that takes `alone_ns` on the caller alone. Where one thread would have been as fast, its
// workers lose their cores to others: is_spinning says no for a moment.
void took(int64_t ns, double alone_ns);

}  // namespace fastgraph::team
