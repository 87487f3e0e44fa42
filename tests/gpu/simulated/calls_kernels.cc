// Kernels: torch registers thousands of them, and two can be done here. What else torch would compute on a device, plugin.py does.
#include <cuda_runtime_api.h>
#include <cxxabi.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "copies.h"
#include "runtime.h"

using simulated::runtime;
using simulated::said;
using simulated::Stream;

namespace {

constexpr unsigned long CYCLES_PER_US = 2000;  // a GPU's clock is near 2 GHz

// By the address that the host calls it by. Never destroyed: torch's libraries register theirs while they are loaded, before main.
struct Kernels {
  std::mutex lock;
  std::map<const void*, std::string> names;
};

Kernels& kernels() {
  static Kernels& only = *new Kernels;
  return only;
}

std::string name_of(const void* host) {
  std::lock_guard held(kernels().lock);
  return kernels().names[host];
}

// 0: no such type is filled here.
size_t width_of(const std::string& type) {
  static const std::map<std::string, size_t> widths = {
      {"bool", 1}, {"signed char", 1},  {"unsigned char", 1}, {"short", 2}, {"unsigned short", 2}, {"c10::Half", 2}, {"c10::BFloat16", 2},
      {"int", 4},  {"unsigned int", 4}, {"float", 4},         {"long", 8},  {"unsigned long", 8},  {"double", 8},
  };
  auto found = widths.find(type);
  return found == widths.end() ? 0 : found->second;
}

// torch.cuda._sleep(cycles)
void spin(Stream& stream, void** args) {
  auto cycles = *static_cast<unsigned long*>(args[0]);
  stream.work([=] { usleep(static_cast<useconds_t>(cycles / CYCLES_PER_US)); });
}

// torch's fill of contiguous memory: vectorized_elementwise_kernel<…, FillFunctor<T>, …>(int count, FillFunctor<T> value, array<char*, 1>
// to)
void fill(Stream& stream, void** args, size_t width) {
  auto* first = static_cast<char*>(args[1]);
  std::vector<char> value(first, first + width);
  size_t count = static_cast<size_t>(*static_cast<int*>(args[0]));
  void* to = *static_cast<void**>(args[2]);
  stream.work([=, &stream] {
    char* target = simulated::found_by(stream, to, count * width, "fill");
    for (size_t each = 0; target && each < count; each++) memcpy(target + each * width, value.data(), width);
  });
}

cudaError_t launch(const void* host, void** args, cudaStream_t handle) {
  READY();
  static const std::string functor = "FillFunctor<";
  std::string name = name_of(host);
  Stream& stream = runtime().stream(handle);
  if (name.find("spin_kernel") != std::string::npos) {
    spin(stream, args);
    return cudaSuccess;
  }
  size_t found = name.find("vectorized_elementwise_kernel") == std::string::npos ? std::string::npos : name.find(functor);
  if (found != std::string::npos) {
    size_t begin = found + functor.size();
    if (size_t width = width_of(name.substr(begin, name.find('>', begin) - begin))) {
      fill(stream, args, width);
      return cudaSuccess;
    }
  }
  // the beginning says which: names go on for thousands of characters
  fprintf(stderr, "simulated GPU: no such kernel here; plugin.py may compute it on the host: %.300s\n", name.c_str());
  return said(cudaErrorInvalidDeviceFunction);
}

struct Configuration {
  dim3 grid, block;
  size_t shared_bytes;
  CUstream_st* stream;
};
thread_local Configuration pushed;

}  // namespace

extern "C" {

// What nvcc puts around kernels, in the names and order that it gives it (crt/host_runtime.h).
void** __cudaRegisterFatBinary(void*) {
  static void* only;
  return &only;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
  int status;
  char* plain = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::lock_guard held(kernels().lock);
  kernels().names[host] = plain ? plain : name;
  free(plain);
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, CUstream_st* stream) {
  pushed = {grid, block, shared_bytes, stream};
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
  *grid = pushed.grid;
  *block = pushed.block;
  *shared_bytes = pushed.shared_bytes;
  *static_cast<CUstream_st**>(stream) = pushed.stream;
  return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t* found, const void* host) {
  *found = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void** args, size_t, cudaStream_t stream) {
  return launch(kernel, args, stream);
}

cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3, void** args, size_t, cudaStream_t stream) {
  return launch(kernel, args, stream);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** args) {
  return launch(kernel, args, config->stream);
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
  memset(found, 0, sizeof *found);
  found->binaryVersion = found->ptxVersion = 90;
  found->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}

}  // extern "C"
