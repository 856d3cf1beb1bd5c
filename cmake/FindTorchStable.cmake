# Finds the headers and the library of an installed torch without importing it, so that
# it also works in pip's isolated build environment, whose Python is that of the
# environment being installed into. Sets why_not when it cannot.
set(torch_dir "${SPARSEWRIGHT_TORCH_DIR}")
if(NOT torch_dir)
  # Built through scikit-build-core, Python_EXECUTABLE is given; by hand, PATH decides.
  find_package(Python COMPONENTS Interpreter QUIET)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
      "import importlib.util as u, os, site, sysconfig; s = u.find_spec('torch'); d = [os.path.dirname(s.origin)] if s and s.origin else []; d += [os.path.join(p, 'torch') for p in [sysconfig.get_path('purelib'), sysconfig.get_path('platlib'), *site.getsitepackages()]]; print(next((p for p in d if os.path.isdir(os.path.join(p, 'include', 'torch', 'csrc', 'stable'))), ''))"
    OUTPUT_VARIABLE torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()

find_library(TORCH_CPU_LIBRARY NAMES torch_cpu PATHS "${torch_dir}/lib" NO_DEFAULT_PATH)
if(NOT torch_dir OR NOT TORCH_CPU_LIBRARY)
  set(why_not "no torch >= 2.10 was installed when sparsewright was built (install torch first, then sparsewright)")
  return()
endif()

file(STRINGS "${torch_dir}/version.py" version_line REGEX "__version__ *= *'")
string(REGEX MATCH "[0-9]+\\.[0-9]+" torch_version "${version_line}")
if(torch_version VERSION_LESS 2.10)
  set(why_not "torch ${torch_version} was installed when sparsewright was built; the kernels need torch >= 2.10")
  return()
endif()
message(STATUS "sparsewright: stable ABI headers of torch ${torch_version} in ${torch_dir}")

add_library(TorchStable::TorchStable INTERFACE IMPORTED)
target_include_directories(TorchStable::TorchStable SYSTEM INTERFACE "${torch_dir}/include")
target_compile_definitions(TorchStable::TorchStable INTERFACE
  TORCH_TARGET_VERSION=0x020a000000000000)   # 2.10: the oldest torch that the binary serves
# Only the name is recorded: torch is always loaded first, so no path is needed.
target_link_libraries(TorchStable::TorchStable INTERFACE "${TORCH_CPU_LIBRARY}")
