// Copies, and what CUDA says of them (CUDA runtime API, "API synchronization behavior").
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "copies.h"
#include "runtime.h"

namespace simulated {

namespace {

constexpr size_t SLICE_BYTES = 256 << 10;  // a copy is done in parts of so many bytes, in any order

// One end of a copy that goes on by itself.
struct End {
  const void* address;
  size_t size_bytes;
  bool on_device;
  bool locked;  // a page-locked part of the host, when the copy was asked for

  End(const void* address, size_t size_bytes)
      : address(address),
        size_bytes(size_bytes),
        on_device(runtime().owner(address)),
        locked(!on_device && runtime().host.is_locked(address, size_bytes)) {}
  bool exists() const { return on_device || HostMemory::exists(address, size_bytes); }
  bool is_pageable() const { return !on_device && !locked; }
};

void refuse(Stream& stream, const End& end, const char* what, const char* why) {
  fprintf(stderr, "simulated GPU: %s %p + %zu, %s\n", what, end.address, end.size_bytes, why);
  stream.device.lose(cudaErrorIllegalAddress);
}

// Null, and the device lost, where memory that was there or was locked is so no more.
char* found_late(Stream& stream, const End& end, const char* what) {
  if (end.on_device) return found_by(stream, end.address, end.size_bytes, what);
  if (end.locked && !runtime().host.is_locked(end.address, end.size_bytes)) {
    refuse(stream, end, what, "which was unlocked before the copy was done");
    return nullptr;
  }
  return static_cast<char*>(const_cast<void*>(end.address));
}

void move(char* to, const char* from, size_t size_bytes, Stream& stream) {
  std::vector<size_t> order;
  for (size_t begin = 0; begin < size_bytes; begin += SLICE_BYTES) order.push_back(begin);
  std::shuffle(order.begin(), order.end(), stream.chance);
  for (size_t begin : order) memcpy(to + begin, from + begin, std::min(SLICE_BYTES, size_bytes - begin));
  runtime().copied_bytes += size_bytes;
}

cudaError_t copy(void* to, const void* from, size_t size_bytes, cudaStream_t handle, bool waits) {
  READY();
  if (!size_bytes) return cudaSuccess;
  Stream& stream = runtime().stream(handle);
  End target(to, size_bytes), source(from, size_bytes);
  if (!target.exists() || !source.exists()) return said(cudaErrorInvalidValue);
  if (source.is_pageable()) {
    // read before the call comes back, as the driver's staging does it
    auto begin = static_cast<const char*>(from);
    auto staged = std::make_shared<const std::vector<char>>(begin, begin + size_bytes);
    stream.work([&stream, target, staged, size_bytes] {
      if (char* at = found_late(stream, target, "copy to")) move(at, staged->data(), size_bytes, stream);
    });
  } else {
    stream.work([&stream, target, source, size_bytes] {
      char* at = found_late(stream, target, "copy to");
      const char* read = at ? found_late(stream, source, "copy from") : nullptr;
      if (read) move(at, read, size_bytes, stream);
    });
  }
  if (waits || target.is_pageable()) stream.wait();
  return said(stream.device.lost());
}

}  // namespace

char* found_by(Stream& stream, const void* address, size_t size_bytes, const char* what) {
  Device* device = runtime().owner(address);
  char* found = device ? device->shadow(address, size_bytes) : nullptr;
  if (!found) refuse(stream, End(address, size_bytes), what, "which is no memory of a device");
  return found;
}

}  // namespace simulated

extern "C" {

cudaError_t cudaMemcpy(void* to, const void* from, size_t size_bytes, cudaMemcpyKind) {
  return simulated::copy(to, from, size_bytes, nullptr, true);
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size_bytes, cudaMemcpyKind, cudaStream_t stream) {
  return simulated::copy(to, from, size_bytes, stream, false);
}

cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size_bytes, cudaStream_t stream) {
  return simulated::copy(to, from, size_bytes, stream, false);
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t size_bytes, cudaStream_t handle) {
  READY();
  auto& stream = simulated::runtime().stream(handle);
  stream.work([=, &stream] {
    if (char* target = simulated::found_by(stream, to, size_bytes, "set")) memset(target, value, size_bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaMemset(void* to, int value, size_t size_bytes) { return cudaMemsetAsync(to, value, size_bytes, nullptr); }

}  // extern "C"
