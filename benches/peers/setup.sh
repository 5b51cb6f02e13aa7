#!/usr/bin/env bash
# Peers that install from the Python index, in DIR (which must be outside the repository):
#   DIR/venv           torch, transformers, openvino-genai, gguf, the llama-cpp-python bindings
#   DIR/venv-export    optimum-intel and nncf, which want an older transformers; used once, to make OpenVINO models
#   DIR/llama/amx      libllama of llama-cpp-python's own source, -march=native, tile configuration repaired
#   DIR/llama/avx512   the same without AMX (AVX-512 with VNNI, BF16 and VBMI)
#   DIR/llama/avx2     the same with AVX2, FMA, F16C, BMI2 only
#   DIR/llama/avx2vnni the same with AVX-VNNI too
#
#   benches/peers/setup.sh DIR
#   SHARE=/path/to/site-packages benches/peers/setup.sh DIR    takes torch and transformers from another environment
#
# Needs python3 with venv and pip, a C++ compiler, an x86-64 machine with AMX for the variant amx. About 15 minutes on
# two cores, 5 GB (1.5 GB with SHARE). Steps whose result exists are skipped: to repeat one, remove its folder.
set -euo pipefail
[ $# -eq 1 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
jobs=${JOBS:-$(nproc)}
LLAMA_CPP_PYTHON=0.3.36

environment() { # name, packages...
  local venv=$dir/$1
  shift
  [ -e "$venv/done" ] && return
  rm -rf "$venv"
  python3 -m venv "$venv"
  if [ -n "${SHARE:-}" ]; then
    echo "$SHARE" >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/share.pth"
  fi
  "$venv/bin/pip" install --quiet "$@"
  touch "$venv/done"
}

environment venv torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 gguf==0.19.0 cmake==4.4.4 ninja scikit-build-core \
  openvino==2026.4.1 openvino-genai==2026.4.1.0 openvino-tokenizers==2026.4.1.0
environment venv-export torch==2.15.0 optimum-intel==2.2.0 nncf==3.4.0 openvino==2026.4.1 openvino-tokenizers==2026.4.1.0

# llama.cpp as llama-cpp-python ships it.
export PATH=$dir/venv/bin:$PATH
source=$dir/llama_cpp_python-$LLAMA_CPP_PYTHON
if [ ! -e "$source" ]; then
  pip download --quiet --no-deps --no-binary :all: --no-build-isolation --dest "$dir" llama-cpp-python==$LLAMA_CPP_PYTHON
  tar -xf "$source.tar.gz" -C "$dir"
fi

# GCC 12's _tile_loadconfig tells the compiler that 8 of the 64 bytes are read, so it drops the other stores and the
# first tile instruction faults with SIGILL. An empty asm that may read all memory keeps them.
mmq=$source/vendor/llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp
repair='__asm__ volatile("" : : "r"(\&tc) : "memory");'
grep -q '"r"(&tc)' "$mmq" || sed -i "s|^\( *\)_tile_loadconfig(&tc);|\1$repair\n&|" "$mmq"
grep -q '"r"(&tc)' "$mmq" || { echo "setup.sh: the tile configuration is not where it was, in $mmq" >&2; exit 1; }

# The bindings alone; the environment variable LLAMA_CPP_LIB_PATH names the variant at run time.
pip show --quiet llama-cpp-python 2>/dev/null || CMAKE_ARGS="-DLLAMA_BUILD=OFF" pip install --quiet "$source"

library() { # variant, cmake options...
  local variant=$1 build=$dir/build-$1
  shift
  [ -e "$dir/llama/$variant/done" ] && return
  cmake -G Ninja -S "$source/vendor/llama.cpp" -B "$build" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF \
    -DCMAKE_INSTALL_RPATH='$ORIGIN' -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON "$@" >"$build.log"
  # Instruction sets concern ggml-cpu only: libllama of the first variant serves all.
  local targets=(llama)
  [ "$variant" = amx ] || targets=(ggml)
  cmake --build "$build" --parallel "$jobs" --target "${targets[@]}" >>"$build.log"
  mkdir -p "$dir/llama/$variant"
  [ "$variant" = amx ] || cp -P "$dir"/llama/amx/libllama* "$dir/llama/$variant/"
  cp -P "$build"/bin/lib* "$dir/llama/$variant/"
  touch "$dir/llama/$variant/done"
}

avx2=(-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON)
avx512=("${avx2[@]}" -DGGML_AVX_VNNI=ON -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON -DGGML_AVX512_VBMI=ON)
library amx -DGGML_NATIVE=ON
library avx512 "${avx512[@]}"
library avx2 "${avx2[@]}"
library avx2vnni "${avx2[@]}" -DGGML_AVX_VNNI=ON

echo "$dir is ready; next: python benches/peers/checkpoint.py $1"
