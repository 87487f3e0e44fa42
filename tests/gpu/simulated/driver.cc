// What torch asks of the driver itself (libcuda.so.1).
extern "C" {

int simcuda_begun(int device);

int cuInit(unsigned) { return 0; }

int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  *flags = 0;
  *active = simcuda_begun(device);
  return 0;
}

int cuGetErrorString(int, const char** text) {
  *text = "an error of the simulated GPU's driver";
  return 0;
}

}  // extern "C"
