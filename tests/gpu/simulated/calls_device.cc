// Calls about devices and a thread's last error.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>

#include "runtime.h"

using simulated::current;
using simulated::current_device;
using simulated::is_forked;
using simulated::runtime;
using simulated::said;
using simulated::settings;

namespace {

bool exists(int number) { return number >= 0 && number < settings().devices; }

// cuGetProcAddress's answer for whatever torch asks of the driver: a function that says CUDA_ERROR_NOT_SUPPORTED.
int refused() { return 801; }

cudaError_t entry_point(void** found, cudaDriverEntryPointQueryResult* how) {
  *found = reinterpret_cast<void*>(refused);
  if (how) *how = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

}  // namespace

extern "C" {

cudaError_t cudaGetLastError() { return simulated::take_last_error(); }
cudaError_t cudaPeekAtLastError() { return simulated::last_error(); }

const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "an error of the simulated GPU";
}

// CUDA's own words: our errors quote them.
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInitializationError:
      return "initialization error";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    case cudaErrorNotReady:
      return "device not ready";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorHostMemoryAlreadyRegistered:
      return "part or all of the requested memory range is already mapped";
    case cudaErrorHostMemoryNotRegistered:
      return "pointer does not correspond to a registered memory region";
    case cudaErrorNotSupported:
      return "operation not supported";
    default:
      return "an error of the simulated GPU";
  }
}

cudaError_t cudaGetDeviceCount(int* count) {
  if (is_forked()) return said(cudaErrorInitializationError);
  *count = settings().devices;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* number) {
  *number = current();
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int number) {
  if (!exists(number)) return said(cudaErrorInvalidDevice);
  current() = number;
  READY();  // since CUDA 12 it makes the device's context
  return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize() {
  READY();
  for (auto* stream : runtime().streams_of(current_device())) stream->wait();
  return said(current_device().lost());
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

// An H100's, where torch looks at one.
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int number) {
  if (!exists(number)) return said(cudaErrorInvalidDevice);
  memset(found, 0, sizeof *found);
  strcpy(found->name, "simulated GPU");
  found->totalGlobalMem = settings().capacity_bytes;
  found->major = 9;
  found->multiProcessorCount = 132;
  found->maxThreadsPerMultiProcessor = 2048;
  found->maxThreadsPerBlock = 1024;
  found->maxThreadsDim[0] = found->maxThreadsDim[1] = 1024;
  found->maxThreadsDim[2] = 64;
  found->maxGridSize[0] = 2147483647;
  found->maxGridSize[1] = found->maxGridSize[2] = 65535;
  found->warpSize = 32;
  found->sharedMemPerBlock = 48 << 10;
  found->sharedMemPerMultiprocessor = 228 << 10;
  found->regsPerMultiprocessor = 65536;
  found->l2CacheSize = 50 << 20;
  found->unifiedAddressing = found->hostRegisterSupported = found->canMapHostMemory = found->canUseHostPointerForRegisteredMem = 1;
  found->asyncEngineCount = 3;
  found->pciBusID = number + 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int number) {
  if (!exists(number)) return said(cudaErrorInvalidDevice);
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 132;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrHostRegisterSupported:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
      *value = 1;
      break;
    default:
      *value = 0;
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int number) {
  if (!exists(number)) return said(cudaErrorInvalidDevice);
  snprintf(id, static_cast<size_t>(size), "0000:%02x:00.0", number + 1);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 0;
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPoint(const char*, void** found, unsigned long long, cudaDriverEntryPointQueryResult* how) {
  return entry_point(found, how);
}

cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** found, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* how) {
  return entry_point(found, how);
}

cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

}  // extern "C"
