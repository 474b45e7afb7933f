// Each piece of work is done once and before the call returns, whatever the pool does.
#include "pool.h"

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "check.h"
#include "problem.h"
#include "threads.h"

namespace {

thread_local int64_t allocations_left = INT64_MAX;  // of this thread, before there is no memory

}  // namespace

void* operator new(std::size_t size) {
  if (allocations_left-- <= 0) throw std::bad_alloc();
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

using namespace functional_adam;

namespace {

// Counts in memory that is gone once the call has returned, as XLA's is.
template <class Pool>
void check(Pool& pool, int64_t count, const std::function<void()>& slowly = [] {}) {
  std::unique_ptr<int[]> done(new int[static_cast<size_t>(count)]());
  int* const at = done.get();
  parallel(pool, count, [at, &slowly](int64_t i) noexcept {
    slowly();
    ++at[i];
  });
  for (int64_t i = 0; i < count; ++i) CHECK(at[i] == 1, i << " of " << count << ": " << at[i]);
}

// Runs what it is given at once.
struct Inside {
  int64_t threads;
  int64_t num_threads() const { return threads; }
  template <class F>
  void Schedule(F&& f) {
    f();
  }
};

// Runs what it is given when all is over.
struct Late {
  std::vector<std::function<void()>> tasks;
  int64_t num_threads() const { return 5; }
  template <class F>
  void Schedule(F&& f) {
    tasks.emplace_back(std::forward<F>(f));
  }
  ~Late() {
    for (const auto& task : tasks) task();
  }
};

// Has no memory for more than `room` tasks.
struct Full {
  Threads* threads;
  int room;
  int64_t num_threads() const { return threads->num_threads(); }
  template <class F>
  void Schedule(F&& f) {
    if (room-- <= 0) throw std::bad_alloc();
    threads->Schedule(std::forward<F>(f));
  }
};

void sleep(int microseconds) { std::this_thread::sleep_for(std::chrono::microseconds(microseconds)); }

// All threads are busy with calls that want threads, too.
void check_nested() {
  Threads pool(3);
  std::atomic<int> done{0};
  for (int n = 0; n < 40; ++n) {
    pool.Schedule([&pool, &done] {
      check(pool, 50, [] { sleep(1); });
      ++done;
    });
  }
  while (done < 40) sleep(100);
}

void check_memory_runs_out() {
  const Config config{Moments::kCodes, Rounding::kSplit, true, true, false, false, false};
  const Types types{Type::kFloat32, Type::kBFloat16, Type::kFloat32, Type::kFloat32, Type::kFloat32};
  const Problem p = make_problem(config, types, std::vector<Tiles>(40, Tiles{3, 2, 900, 8, 128, 0, 900, 1800}), true, 2);
  const std::vector<Array> arguments = p.argument_arrays(), results = p.result_arrays();
  Threads threads(3);
  bool worked = false;
  for (int64_t n = 0; !worked; ++n) {
    CHECK(n < 2000, "allocations have no end");
    std::unique_ptr<int[]> done(new int[4000]());
    int* const at = done.get();
    size_t count = 0;
    allocations_left = n;
    try {
      Call call;
      CHECK(read_call(config, p.tiles, arguments, results, call).empty(), n);
      count = pieces(call.leaves, 3).size();
      parallel(threads, static_cast<int64_t>(count), [at](int64_t i) noexcept { ++at[i]; });
      worked = allocations_left > 0;
      allocations_left = INT64_MAX;
      for (size_t i = 0; i < count; ++i) CHECK(at[i] == 1, i);
    } catch (const std::bad_alloc&) {
      allocations_left = INT64_MAX;
      for (size_t i = 0; i < count; ++i) CHECK(at[i] == 0, "work had begun");
    }
  }
}

}  // namespace

int main() {
  for (int64_t count : {0, 1, 2, 3, 17, 1000}) {
    for (int64_t threads : {-1, 0, 1, 2, 5}) {
      Inside inside{threads};
      check(inside, count);
    }
    for (int n : {1, 2, 7}) {
      Threads quick(n), slow(n, [] { sleep(300); });
      for (int repeat = 0; repeat < 20; ++repeat) {
        check(quick, count);
        check(slow, count);
        if (count < 20) check(quick, count, [] { sleep(20); });
      }
    }
    Late late;
    check(late, count);
    Threads threads(4);
    for (int room = 0; room < 4; ++room) {
      Full full{&threads, room};
      check(full, count);
    }
  }
  check_nested();
  check_memory_runs_out();
  return 0;
}
