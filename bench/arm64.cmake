# A toolchain of CMake that builds the native modules for arm64 on another machine; CONTRIBUTING.md says how.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(PYTHON_MODULE_EXTENSION .cpython-311-aarch64-linux-gnu.so)  # of the Python that is to import them
