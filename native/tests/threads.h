// A pool of threads as XLA's: tasks wait in a queue until a thread is free.
#ifndef FUNCTIONAL_ADAM_TESTS_THREADS_H_
#define FUNCTIONAL_ADAM_TESTS_THREADS_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace functional_adam {

class Threads {
 public:
  // `pause` runs before each task: of slow threads.
  explicit Threads(int count, std::function<void()> pause = [] {}) : pause_(std::move(pause)) {
    for (int i = 0; i < count; ++i) threads_.emplace_back([this] { serve(); });
  }

  ~Threads() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  int64_t num_threads() const { return static_cast<int64_t>(threads_.size()); }

  template <class F>
  void Schedule(F&& f) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      tasks_.emplace_back(std::forward<F>(f));
    }
    changed_.notify_one();
  }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return closed_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      pause_();
      task();
      lock.lock();
    }
  }

  std::function<void()> pause_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace functional_adam

#endif  // FUNCTIONAL_ADAM_TESTS_THREADS_H_
