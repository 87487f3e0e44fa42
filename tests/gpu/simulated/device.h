// The memory of one simulated device.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <map>
#include <mutex>

namespace simulated {

// Each device has its memory twice: at addresses which the program gets and where the host may neither read nor write, as with memory
// of a GPU; and at others, the shadow, where streams' threads find it. A device that is lost stays so: every later call says why.
class Device {
 public:
  Device(int number, size_t capacity_bytes);

  // Null: there is no room. What it holds is FRESH.
  void* allocate(size_t size_bytes);
  // False: nothing was allocated there.
  bool free(void* address);
  // Whether it is an address of this device, allocated or not.
  bool owns(const void* address) const;
  // Where streams' threads find this part of one allocation; null where there is none (any more).
  char* shadow(const void* address, size_t size_bytes) const;
  size_t used_bytes() const;

  void lose(cudaError_t why);
  cudaError_t lost() const { return lost_; }

  const int number;
  const size_t capacity_bytes;
  std::atomic<bool> begun{false};  // whether anybody asked it for something: then it has a context, as CUDA calls it

 private:
  size_t addresses_bytes() const;

  char* addresses_;
  char* shadow_;
  mutable std::mutex lock_;
  std::map<char*, size_t> used_;
  size_t used_bytes_ = 0;
  std::atomic<cudaError_t> lost_{cudaSuccess};
};

}  // namespace simulated
