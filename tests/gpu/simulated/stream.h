// Streams and events of a simulated device.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>

#include "device.h"

namespace simulated {

// A thread that does one thing after the other, each of them late by chance: what is put on two streams happens in any order unless an
// event orders it. It takes its chances from a seed, so that a run can be repeated as far as threads' timing allows.
//
// No stream waits for the default one, nor that for any: torch's are made with cudaStreamNonBlocking. A stream is never deleted, for a
// thread may still wait for it; torch takes its own from a pool and keeps them, too.
class Stream {
 public:
  Stream(Device& device, unsigned long seed);
  Stream(const Stream&) = delete;

  // Comes back at once. A device that is lost does nothing of this any more.
  void work(std::function<void()> what);
  // The same for what is no work of the device's, and has to happen though it is lost.
  void put(std::function<void()> what);
  // Until all is done that was put here before.
  void wait();
  bool is_idle();

  Device& device;
  std::mt19937_64 chance;  // of the stream's own thread alone

 private:
  [[noreturn]] void run();

  std::deque<std::function<void()>> queue_;
  long asked_ = 0, done_ = 0;
  std::mutex lock_;
  std::condition_variable changed_;
};

// One record of an event: who waits for an event waits for the record that was the last one then, whatever is recorded afterwards.
class Record {
 public:
  void finish();
  void wait();
  bool is_done();
  // When it was done, by the monotonic clock.
  double at_ms();

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  bool done_ = false;
  double at_ms_ = 0;
};

struct Event {
  Device& device;
  std::mutex lock;
  std::shared_ptr<Record> last;  // null: never recorded, and so nothing to wait for

  explicit Event(Device& device) : device(device) {}
  std::shared_ptr<Record> record();
  std::shared_ptr<Record> latest();
};

}  // namespace simulated
