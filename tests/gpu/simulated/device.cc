#include "device.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace simulated {

namespace {

// What memory holds that nobody wrote yet, and what it holds once it was freed: no test's data is full of either.
constexpr unsigned char FRESH = 0xA7, FREED = 0xDB;
constexpr size_t GRAIN_BYTES =
    512;  // allocations of cudaMalloc are aligned to 256 bytes at least (CUDA C++ Programming Guide); to 512 in fact

// Addresses are not memory: there are more of them, so that a gap after each allocation costs nothing.
constexpr size_t ADDRESSES_PER_BYTE = 4;

[[noreturn]] void stop(const char* what) {
  perror(what);
  abort();
}

char* map(int fd, size_t size_bytes, int protection) {
  void* found = mmap(nullptr, size_bytes, protection, MAP_SHARED, fd, 0);
  if (found == MAP_FAILED) stop("simulated GPU: mmap");
  return static_cast<char*>(found);
}

}  // namespace

Device::Device(int number, size_t capacity_bytes) : number(number), capacity_bytes(capacity_bytes) {
  int fd = memfd_create("simulated-gpu", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(addresses_bytes())) != 0) stop("simulated GPU: memfd_create");
  addresses_ = map(fd, addresses_bytes(), PROT_NONE);
  shadow_ = map(fd, addresses_bytes(), PROT_READ | PROT_WRITE);
  close(fd);
}

size_t Device::addresses_bytes() const { return ADDRESSES_PER_BYTE * capacity_bytes; }

void* Device::allocate(size_t size_bytes) {
  std::lock_guard held(lock_);
  size_bytes = (size_bytes + GRAIN_BYTES - 1) / GRAIN_BYTES * GRAIN_BYTES;
  if (used_bytes_ + size_bytes > capacity_bytes) return nullptr;
  char* begin = addresses_;
  for (const auto& [address, length] : used_) {
    if (address - begin >= static_cast<ptrdiff_t>(size_bytes + GRAIN_BYTES)) break;
    begin = address + length + GRAIN_BYTES;  // a gap, so that who writes past an end is seen
  }
  if (begin + size_bytes > addresses_ + addresses_bytes()) return nullptr;
  used_[begin] = size_bytes;
  used_bytes_ += size_bytes;
  memset(shadow_ + (begin - addresses_), FRESH, size_bytes);
  return begin;
}

bool Device::free(void* address) {
  std::lock_guard held(lock_);
  auto found = used_.find(static_cast<char*>(address));
  if (found == used_.end()) return false;
  memset(shadow_ + (found->first - addresses_), FREED, found->second);
  used_bytes_ -= found->second;
  used_.erase(found);
  return true;
}

bool Device::owns(const void* address) const {
  const char* at = static_cast<const char*>(address);
  return at >= addresses_ && at < addresses_ + addresses_bytes();
}

char* Device::shadow(const void* address, size_t size_bytes) const {
  std::lock_guard held(lock_);
  char* at = static_cast<char*>(const_cast<void*>(address));
  auto found = used_.upper_bound(at);
  if (found == used_.begin()) return nullptr;
  --found;
  return at + size_bytes <= found->first + found->second ? shadow_ + (at - addresses_) : nullptr;
}

size_t Device::used_bytes() const {
  std::lock_guard held(lock_);
  return used_bytes_;
}

void Device::lose(cudaError_t why) {
  cudaError_t none = cudaSuccess;
  lost_.compare_exchange_strong(none, why);  // the first reason is the one that CUDA keeps
}

}  // namespace simulated
