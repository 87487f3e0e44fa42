#include "runtime.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace simulated {

namespace {

constexpr size_t MIB = 1 << 20;

unsigned long number(const char* name, unsigned long otherwise) {
  const char* value = getenv(name);
  if (!value || !*value) return otherwise;
  char* end;
  unsigned long found = strtoul(value, &end, 10);
  if (*end || *value == '-') {
    fprintf(stderr, "simulated GPU: `%s` is no whole number: %s\n", name, value);
    exit(2);
  }
  return found;
}

thread_local int current_number = 0;
thread_local cudaError_t last = cudaSuccess;

}  // namespace

const Settings& settings() {
  static const Settings found{
      static_cast<int>(number("SIMCUDA_DEVICES", 2)),
      number("SIMCUDA_MIB", 3072) * MIB,
      number("SIMCUDA_LOCKED_MIB", 1 << 20) * MIB,
      number("SIMCUDA_LATE_US", 2000),
      number("SIMCUDA_SEED", 1),
  };
  return found;
}

Runtime::Runtime() : host(settings().lockable_bytes), owner_pid(getpid()) {
  for (int each = 0; each < settings().devices; each++) devices.push_back(std::make_unique<Device>(each, settings().capacity_bytes));
}

Device* Runtime::owner(const void* address) {
  for (auto& device : devices)
    if (device->owns(address)) return device.get();
  return nullptr;
}

Stream* Runtime::add(Device& device) {
  streams_.push_back(new Stream(device, settings().seed * 1000 + streams_.size()));
  return streams_.back();
}

Stream& Runtime::make_stream(Device& device) {
  std::lock_guard held(lock_);
  return *add(device);
}

Stream& Runtime::stream(cudaStream_t handle) {
  if (handle && handle != cudaStreamLegacy && handle != cudaStreamPerThread) return *reinterpret_cast<Stream*>(handle);
  Device& device = current_device();
  std::lock_guard held(lock_);
  Stream*& found = defaults_[&device];
  if (!found) found = add(device);
  return *found;
}

std::vector<Stream*> Runtime::streams_of(const Device& device) {
  std::lock_guard held(lock_);
  std::vector<Stream*> found;
  for (auto* stream : streams_)
    if (&stream->device == &device) found.push_back(stream);
  return found;
}

Runtime& runtime() {
  static Runtime& only = *new Runtime;
  return only;
}

int& current() { return current_number; }
Device& current_device() { return *runtime().devices[current_number]; }

cudaError_t said(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

cudaError_t take_last_error() {
  cudaError_t found = last;
  last = cudaSuccess;
  return found;
}

cudaError_t last_error() { return last; }

bool is_forked() { return getpid() != runtime().owner_pid; }

cudaError_t ready() {
  if (is_forked()) return cudaErrorInitializationError;
  current_device().begun = true;
  return current_device().lost();
}

}  // namespace simulated
