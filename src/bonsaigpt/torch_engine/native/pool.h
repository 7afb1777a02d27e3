// Threads that claim chunks of work one by one. A helper that the system gives no core costs nothing: the others take
// its chunks. Shares of fixed size with a barrier fell from 20,000 tokens/s to 400 when a neighbour wanted the core.

#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

class Pool {
  public:
    explicit Pool(int threads) {
        for (int t = 1; t < threads; t++) helpers_.emplace_back([this, t] { help(t); });
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> guard(lock_);
            leaving_ = true;
        }
        bell_.notify_all();
        for (auto& helper : helpers_) helper.join();
    }

    int threads() const { return 1 + static_cast<int>(helpers_.size()); }

    // Whether ``share`` shares from now on. Helpers that fell asleep are woken; nobody waits for them.
    void use_helpers(bool use) {
        sharing_ = use && !helpers_.empty();
        if (!sharing_ || asleep_.load() == 0) return;
        {
            std::lock_guard<std::mutex> guard(lock_);
            calls_++;
        }
        bell_.notify_all();
    }

    // ``work(chunk, thread)`` for every chunk; returns when all are done.
    template <typename Work>
    void share(int64_t chunks, const Work& work) {
        if (!sharing_ || chunks < 2) {
            for (int64_t chunk = 0; chunk < chunks; chunk++) work(chunk, 0);
            return;
        }
        work_ = &work, chunks_ = chunks;
        call_ = [](const void* w, int64_t chunk, int thread) { (*static_cast<const Work*>(w))(chunk, thread); };
        done_.store(0, std::memory_order_relaxed);
        open_.store(++phase_ << 32 | static_cast<uint64_t>(chunks), std::memory_order_release);
        while (take(0)) {
        }
        for (int spins = 0; done_.load(std::memory_order_acquire) != chunks; spins++) {
            if (spins < 4000) relax();
            else std::this_thread::yield();  // the helper may need this very core
        }
    }

  private:
    static constexpr uint64_t LEFT = 0xffffffff;
    static constexpr int PATIENCE = 8000;  // pauses, some 0.1 ms: the next token usually comes within that

    // Claim a chunk and do it. Only who has claimed one may read ``call_``, ``work_`` and ``chunks_``: until it is done
    // they stay as they are. The number of the phase keeps a late helper from claiming in a phase that it did not see.
    bool take(int thread) {
        uint64_t open = open_.load(std::memory_order_acquire);
        while (open & LEFT) {
            if (!open_.compare_exchange_weak(open, open - 1, std::memory_order_acq_rel, std::memory_order_acquire))
                continue;
            call_(work_, chunks_ - static_cast<int64_t>(open & LEFT), thread);
            done_.fetch_add(1, std::memory_order_release);
            return true;
        }
        return false;
    }

    void help(int thread) {
        uint64_t seen = 0;
        for (;;) {
            for (int spins = 0; spins < PATIENCE; spins++) {
                if (take(thread)) spins = 0;
                else relax();
            }
            std::unique_lock<std::mutex> guard(lock_);
            asleep_++;
            bell_.wait(guard, [&] { return leaving_ || calls_ != seen; });
            asleep_--;
            seen = calls_;
            if (leaving_) return;
        }
    }

    std::vector<std::thread> helpers_;
    bool sharing_ = false;
    uint64_t phase_ = 0;
    int64_t chunks_ = 0;
    const void* work_ = nullptr;
    void (*call_)(const void*, int64_t, int) = nullptr;
    alignas(64) std::atomic<uint64_t> open_{0};  // number of the phase, and how many of its chunks nobody has claimed
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<int> asleep_{0};
    std::mutex lock_;
    std::condition_variable bell_;
    uint64_t calls_ = 0;
    bool leaving_ = false;
};

// Whether helpers pay at this moment, by the clock: they never do for a model of a few microseconds a layer, and for
// no model while others use their cores. Some steps are tried each way, now and then, more rarely while nothing changes.
class Pace {
  public:
    // ``pays``: take it for granted at first, and try later.
    explicit Pace(bool pays) : trial_(pays ? TRIALS : 0), left_(SHORTEST), pays_(pays) {}

    bool shared() const { return trial_ < TRIALS ? trial_ % 2 == 0 : pays_; }

    void note(double seconds) {
        if (trial_ < TRIALS) {
            spent_[trial_ % 2] += seconds;
            trial_++;
            bool hopeless = trial_ % 2 == 0 && spent_[0] > 4 * spent_[1];
            if (trial_ < TRIALS && !hopeless) return;
            bool pays = spent_[0] < spent_[1];
            rest_ = pays == pays_ && rest_ < LONGEST ? rest_ * 2 : SHORTEST;
            pays_ = pays, trial_ = TRIALS, left_ = rest_;
        } else if (--left_ == 0) {
            trial_ = 0, spent_[0] = spent_[1] = 0;
        }
    }

    bool pays() const { return pays_; }

  private:
    static constexpr int TRIALS = 12, SHORTEST = 256, LONGEST = 8192;
    int trial_, left_, rest_ = SHORTEST;
    bool pays_;
    double spent_[2] = {0, 0};
};
