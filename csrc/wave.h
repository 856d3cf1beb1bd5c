// The order in which the rows of several steps are computed, each step from rows of those before.
//
// Steps one after the other read everything from afar that is larger than the caches, and wait for
// the slowest thread after each. Here a row of a step follows soon after the rows that it needs (a
// wavefront, after Lamport, 1974). Each thread has tiles of its own, next to each other from step
// to step, so that it finds them in its own cache; but one that would have to wait takes another's,
// and what is first of all that is left if none can be computed yet: of a thread that something
// held up, only one tile is waited for.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "barrier.h"
#include "ops.h"

namespace sparsewright {

// Towards minus infinity.
inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

class Wave {
 public:
  // Row r of a step needs rows floor((times * r + from) / by) to floor((times * r + to) / by) of
  // step `of`, as far as there are such.
  struct Need {
    size_t of;
    int64_t times, from, to, by;
  };
  // Of each of `groups`, which need nothing of each other, `rows` of `tiles`.
  struct Step {
    int64_t groups, rows, tiles, work;  // of a tile, as kGrain counts
    std::vector<Need> needs;            // of steps before it
  };
  struct Task {
    size_t step;
    int64_t group, row, tile;
  };

  Wave(std::vector<Step> steps, int64_t threads);

  // make(): what a thread needs; body(it, task, next) computes a tile; next: what the thread is
  // likely to compute after it, or null.
  template <class Make, class Body>
  void run(const Make& make, const Body& body);

 private:
  static constexpr int kPatience = 128;  // looks at what a task needs before another one is taken

  struct alignas(4 * kLine) Count {
    std::atomic<int64_t> done{0};
  };
  // The tasks of one part, of which those before `next` are taken.
  struct alignas(4 * kLine) Queue {
    std::vector<size_t> tasks;
    std::atomic<size_t> next{0};
    // The first task that is left, or kNoTask.
    size_t first() const {
      const size_t at = next.load(std::memory_order_relaxed);
      return at < tasks.size() ? tasks[at] : kNoTask;
    }
    // Whether the task was the first one, and is the caller's now.
    bool take(size_t task) {
      size_t at = next.load(std::memory_order_relaxed);
      return at < tasks.size() && tasks[at] == task &&
             next.compare_exchange_strong(at, at + 1, std::memory_order_relaxed);
    }
  };
  static constexpr size_t kNoTask = ~size_t{0};

  void place_tasks();
  int64_t part_of(const Task& task) const;
  // Of the part's own tasks the first one, if it can be computed now or soon; else another part's
  // that can be; else the first one that is left: some thread is computing what it needs.
  size_t take(Queue& own);
  bool is_ready(const Task& task) const;
  // False where another thread has failed.
  bool wait_for(const Task& task) const;

  std::atomic<int64_t>& done(size_t step, int64_t group, int64_t row) const {
    return done_[static_cast<size_t>(first_[step] + group * steps_[step].rows + row)].done;
  }
  std::pair<int64_t, int64_t> rows_of(const Need& need, int64_t row) const {
    const int64_t last = steps_[need.of].rows - 1;
    return {std::max<int64_t>(floor_div(need.times * row + need.from, need.by), 0),
            std::min(floor_div(need.times * row + need.to, need.by), last)};
  }

  std::vector<Step> steps_;
  std::vector<int64_t> first_;  // count of every step
  std::vector<Task> tasks_;     // in an order in which each could follow the other
  int64_t parts_ = 1;
  std::unique_ptr<Queue[]> queues_;
  std::unique_ptr<Count[]> done_;
  std::atomic<bool> failed_{false};
};

inline Wave::Wave(std::vector<Step> steps, int64_t threads) : steps_(std::move(steps)) {
  int64_t counts = 0, work = 0;
  for (const Step& step : steps_) {
    first_.push_back(counts);
    counts += step.groups * step.rows;
    work += step.groups * step.rows * step.tiles * step.work;
  }
  done_.reset(new Count[static_cast<size_t>(counts)]);
  place_tasks();
  const auto most = std::min<int64_t>(threads, static_cast<int64_t>(tasks_.size()));
  parts_ = parts_of(work, most);
  queues_.reset(new Queue[static_cast<size_t>(parts_)]);
  for (size_t i = 0; i < tasks_.size(); ++i)
    queues_[static_cast<size_t>(part_of(tasks_[i]))].tasks.push_back(i);
}

inline void Wave::place_tasks() {
  struct Row {
    int64_t group;
    double when;  // the part of the first steps' rows that is computed before
    size_t step;
    int64_t row;
  };
  std::vector<Row> rows;
  std::vector<std::vector<double>> when(steps_.size());
  for (size_t s = 0; s < steps_.size(); ++s) {
    const Step& step = steps_[s];
    for (int64_t r = 0; r < step.rows; ++r) {
      double at = static_cast<double>(r) / static_cast<double>(step.rows);
      for (const Need& need : step.needs) {
        // One row more than it needs: those last ones may still be on their way.
        const int64_t last = std::min(rows_of(need, r).second + 1, steps_[need.of].rows - 1);
        if (last >= 0) at = std::max(at, when[need.of][static_cast<size_t>(last)]);
      }
      if (r > 0) at = std::max(at, when[s].back());
      when[s].push_back(at);
      for (int64_t g = 0; g < step.groups; ++g) rows.push_back({g, at, s, r});
    }
  }
  std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
    return std::tie(a.group, a.when, a.step, a.row) < std::tie(b.group, b.when, b.step, b.row);
  });
  for (const Row& row : rows)
    for (int64_t t = 0; t < steps_[row.step].tiles; ++t)
      tasks_.push_back({row.step, row.group, row.row, t});
}

// Of one step alone each part has rows that follow one another; of several, columns of tiles.
inline int64_t Wave::part_of(const Task& task) const {
  const Step& step = steps_[task.step];
  const int64_t row = task.group * step.rows + task.row, number = row * step.tiles + task.tile;
  if (steps_.size() == 1) return number * parts_ / (step.groups * step.rows * step.tiles);
  return step.tiles >= parts_ ? task.tile * parts_ / step.tiles : number % parts_;
}

inline size_t Wave::take(Queue& own) {
  for (;;) {
    const size_t mine = own.first();
    bool ready = false;
    for (int looks = 0; mine != kNoTask && !ready && looks < kPatience; ++looks) {
      if (looks > 0) relax();
      ready = is_ready(tasks_[mine]);
    }
    Queue* of = &own;
    size_t task = mine;
    for (int64_t p = 0; !ready && p < parts_; ++p) {
      Queue& other = queues_[static_cast<size_t>(p)];
      const size_t first = other.first();
      if (first == kNoTask) continue;
      if (is_ready(tasks_[first]))
        of = &other, task = first, ready = true;
      else if (first < task)
        of = &other, task = first;
    }
    if (task == kNoTask || of->take(task)) return task;
  }
}

inline bool Wave::is_ready(const Task& task) const {
  for (const Need& need : steps_[task.step].needs) {
    const auto [first, last] = rows_of(need, task.row);
    for (int64_t r = first; r <= last; ++r)
      if (done(need.of, task.group, r).load(std::memory_order_acquire) < steps_[need.of].tiles)
        return false;
  }
  return true;
}

inline bool Wave::wait_for(const Task& task) const {
  for (int spins = 0; !is_ready(task); ++spins) {
    if (failed_.load(std::memory_order_relaxed)) return false;
    if (spins < kSpins)
      relax();
    else
      std::this_thread::yield();
  }
  return true;
}

template <class Make, class Body>
void Wave::run(const Make& make, const Body& body) {
  torch::stable::parallel_for(0, parts_, 1, [&](int64_t from, int64_t to) {
    try {
      auto mine = make();
      for (int64_t part = from; part < to; ++part) {
        Queue& own = queues_[static_cast<size_t>(part)];
        for (size_t i; (i = take(own)) != kNoTask;) {
          const Task& task = tasks_[i];
          if (!wait_for(task)) return;
          const size_t next = own.first();
          body(mine, task, next == kNoTask ? nullptr : &tasks_[next]);
          done(task.step, task.group, task.row).fetch_add(1, std::memory_order_release);
        }
      }
    } catch (...) {
      failed_.store(true);
      throw;
    }
  });
}

}  // namespace sparsewright
