// What tests ask of the simulation itself, by ctypes; no CUDA has these.
#include <cstddef>

#include "runtime.h"

using simulated::Device;
using simulated::runtime;

extern "C" {

unsigned long simcuda_seed() { return simulated::settings().seed; }
size_t simcuda_copied_bytes() { return runtime().copied_bytes; }
size_t simcuda_locked_bytes() { return runtime().host.locked_bytes(); }
size_t simcuda_used_bytes(int device) { return runtime().devices.at(static_cast<size_t>(device))->used_bytes(); }
// Whether anybody asked this device for anything.
int simcuda_begun(int device) { return runtime().devices.at(static_cast<size_t>(device))->begun; }
// As after an illegal access.
void simcuda_lose(int device) { runtime().devices.at(static_cast<size_t>(device))->lose(cudaErrorIllegalAddress); }
// Where the host can look at memory of a device; null where there is none.
void* simcuda_shadow(void* address) {
  Device* device = runtime().owner(address);
  return device ? device->shadow(address, 1) : nullptr;
}

}  // extern "C"
