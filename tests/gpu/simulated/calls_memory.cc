// Calls that give memory out, take it back and say whose it is.
#include <cuda_runtime_api.h>

#include <cstring>

#include "runtime.h"

using simulated::current_device;
using simulated::Device;
using simulated::HostMemory;
using simulated::runtime;
using simulated::said;

namespace {

void wait_for(const Device& device) {
  for (auto* stream : runtime().streams_of(device)) stream->wait();
}

}  // namespace

extern "C" {

cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  READY();
  *total_bytes = current_device().capacity_bytes;
  *free_bytes = *total_bytes - current_device().used_bytes();
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** found, size_t size_bytes) {
  READY();
  *found = current_device().allocate(size_bytes);
  return *found ? cudaSuccess : said(cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* address) {
  READY();
  if (!address) return cudaSuccess;
  Device* device = runtime().owner(address);
  if (!device) return said(cudaErrorInvalidValue);
  wait_for(*device);  // as CUDA's does: torch's allocator counts on it
  return device->free(address) ? cudaSuccess : said(cudaErrorInvalidValue);
}

cudaError_t cudaHostAlloc(void** found, size_t size_bytes, unsigned) {
  READY();
  *found = runtime().host.allocate(size_bytes);
  return *found ? cudaSuccess : said(cudaErrorMemoryAllocation);
}

cudaError_t cudaFreeHost(void* address) {
  READY();
  for (auto& device : runtime().devices) wait_for(*device);
  return runtime().host.free(address) == HostMemory::Answer::DONE ? cudaSuccess : said(cudaErrorInvalidValue);
}

cudaError_t cudaHostRegister(void* address, size_t size_bytes, unsigned) {
  READY();
  switch (runtime().host.lock(address, size_bytes)) {
    case HostMemory::Answer::DONE:
      return cudaSuccess;
    case HostMemory::Answer::ALREADY_LOCKED:
      return said(cudaErrorHostMemoryAlreadyRegistered);
    case HostMemory::Answer::NO_ROOM:
      return said(cudaErrorMemoryAllocation);
    default:
      return said(cudaErrorInvalidValue);
  }
}

// Waits for nothing: a copy from there that comes later finds it unlocked.
cudaError_t cudaHostUnregister(void* address) {
  READY();
  return runtime().host.unlock(address) == HostMemory::Answer::DONE ? cudaSuccess : said(cudaErrorHostMemoryNotRegistered);
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* address) {
  READY();
  memset(found, 0, sizeof *found);
  void* at = const_cast<void*>(address);
  if (Device* device = runtime().owner(address)) {
    found->type = cudaMemoryTypeDevice;
    found->device = device->number;
    found->devicePointer = at;
  } else if (runtime().host.is_locked(address, 1)) {
    found->type = cudaMemoryTypeHost;
    found->hostPointer = found->devicePointer = at;
  } else {
    found->type = cudaMemoryTypeUnregistered;
    found->device = cudaInvalidDeviceId;
    found->hostPointer = at;
  }
  return cudaSuccess;
}

}  // extern "C"
