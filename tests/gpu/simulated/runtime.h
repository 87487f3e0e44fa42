// What all calls of the simulated runtime share: its settings, its devices and streams, and what a thread has of its own.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "device.h"
#include "host_memory.h"
#include "stream.h"

namespace simulated {

// From the environment, once. README.md lists them.
struct Settings {
  int devices;
  size_t capacity_bytes;
  size_t lockable_bytes;
  unsigned long late_us;
  unsigned long seed;
};
const Settings& settings();

// Never destroyed: streams' threads work until the process has ended.
struct Runtime {
  std::vector<std::unique_ptr<Device>> devices;
  HostMemory host;
  std::atomic<size_t> copied_bytes{0};
  const pid_t owner_pid;  // the process that used CUDA first: a fork of it has none of the threads that streams are

  Runtime();
  Device* owner(const void* address);  // null: memory of the host
  Stream& make_stream(Device& device);
  // The stream of a handle; the default one of the thread's current device for those that mean it.
  Stream& stream(cudaStream_t handle);
  std::vector<Stream*> streams_of(const Device& device);

 private:
  Stream* add(Device& device);

  std::mutex lock_;
  std::vector<Stream*> streams_;
  std::map<const Device*, Stream*> defaults_;
};
Runtime& runtime();

// The number of the thread's current device.
int& current();
Device& current_device();

// Keeps an error as the thread's last one, as every call of CUDA does, and gives it back.
cudaError_t said(cudaError_t error);
cudaError_t take_last_error();
cudaError_t last_error();

// Whether the thread may ask its current device for anything: not in a fork of the process that used CUDA, and not of one that is lost.
cudaError_t ready();
bool is_forked();

// A call that needs a device begins with it.
#define READY()                                                                \
  do {                                                                         \
    if (cudaError_t error = simulated::ready()) return simulated::said(error); \
  } while (0)

}  // namespace simulated
