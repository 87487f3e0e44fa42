#include "stream.h"

#include <unistd.h>

#include <ctime>
#include <thread>
#include <utility>

#include "runtime.h"

namespace simulated {

Stream::Stream(Device& device, unsigned long seed) : device(device), chance(seed) {
  std::thread([this] { run(); }).detach();
}

void Stream::run() {
  std::unique_lock held(lock_);
  while (true) {
    changed_.wait(held, [&] { return !queue_.empty(); });
    auto next = std::move(queue_.front());
    queue_.pop_front();
    held.unlock();
    // one in four is not late at all: waits that are only mostly right fail then, too
    if (settings().late_us > 0 && chance() % 4 != 0) usleep(static_cast<useconds_t>(chance() % settings().late_us));
    next();
    next = nullptr;  // what it keeps goes before anybody hears that it is done
    held.lock();
    done_++;
    changed_.notify_all();
  }
}

void Stream::work(std::function<void()> what) {
  put([this, what = std::move(what)] {
    if (device.lost() == cudaSuccess) what();
  });
}

void Stream::put(std::function<void()> what) {
  std::lock_guard held(lock_);
  queue_.push_back(std::move(what));
  asked_++;
  changed_.notify_all();
}

void Stream::wait() {
  std::unique_lock held(lock_);
  long until = asked_;
  changed_.wait(held, [&] { return done_ >= until; });
}

bool Stream::is_idle() {
  std::lock_guard held(lock_);
  return done_ == asked_;
}

void Record::finish() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  std::lock_guard held(lock_);
  done_ = true;
  at_ms_ = static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
  changed_.notify_all();
}

void Record::wait() {
  std::unique_lock held(lock_);
  changed_.wait(held, [&] { return done_; });
}

bool Record::is_done() {
  std::lock_guard held(lock_);
  return done_;
}

double Record::at_ms() {
  std::lock_guard held(lock_);
  return at_ms_;
}

std::shared_ptr<Record> Event::record() {
  std::lock_guard held(lock);
  last = std::make_shared<Record>();
  return last;
}

std::shared_ptr<Record> Event::latest() {
  std::lock_guard held(lock);
  return last;
}

}  // namespace simulated
