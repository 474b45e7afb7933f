// Shares work between this thread and those of XLA's pool.
#ifndef FUNCTIONAL_ADAM_POOL_H_
#define FUNCTIONAL_ADAM_POOL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <type_traits>
#include <utility>

namespace functional_adam {

// Runs f(0) to f(count - 1), each once, on this thread and on others of the pool. Pool has
// num_threads() and Schedule(function).
//
// This thread may belong to the pool, and its other threads may be busy. So it waits only for work
// that has begun, never for a thread that has not started. A thread that starts later finds nothing
// left to do. Until then the function and the counters outlive this call, but not what they point
// to. Nothing is thrown once work has begun: with too little memory there are fewer helpers.
template <class Pool, class Function>
void parallel(Pool& pool, int64_t count, Function f) {
  static_assert(std::is_nothrow_invocable_v<Function&, int64_t>, "a thread of the pool cannot catch");
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < count; ++i) f(i);
    return;
  }
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto progress = std::make_shared<Progress>();
  auto work = [progress, count, f] {
    int64_t mine = 0;
    for (int64_t i; (i = progress->next.fetch_add(1)) < count; ++mine) f(i);
    if (mine > 0 && progress->done.fetch_add(mine) + mine == count) {
      std::lock_guard<std::mutex> lock(progress->mutex);
      progress->finished.notify_one();
    }
  };
  for (int64_t i = 0; i < helpers; ++i) {
    try {
      auto copy = work;
      pool.Schedule(std::move(copy));
    } catch (const std::bad_alloc&) {
      break;
    }
  }
  work();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->finished.wait(lock, [&] { return progress->done.load() == count; });
}

}  // namespace functional_adam

#endif  // FUNCTIONAL_ADAM_POOL_H_
