# How llama.cpp is built: the same program on every machine, and no more of it than the tests load. By its own choice it
# takes all that the processor has, AMX too, where what GCC 12 makes of it dies at the first tile instruction.
# Given to CMake for its first values, and again by CMake inside of llama.cpp's own project.

set(CMAKE_PROJECT_llama.cpp_INCLUDE "${CMAKE_CURRENT_LIST_FILE}" CACHE FILEPATH "")
foreach(off GGML_NATIVE LLAVA_BUILD)
    set(${off} OFF CACHE BOOL "")
endforeach()
foreach(on GGML_SSE42 GGML_AVX GGML_AVX2 GGML_FMA GGML_F16C GGML_BMI2)
    set(${on} ON CACHE BOOL "")
endforeach()
set(LLAMA_BUILD_COMMON OFF) # no first value: llama-cpp-python sets one itself
