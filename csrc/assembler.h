// Instructions of x86-64 with AVX-512, written as bytes one after the other (Intel's manual, volume
// 2, section 2.7: the EVEX prefix; displacements count in units of what is read).
#pragma once
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

namespace sparsewright {

// The registers that hold the integer arguments of a function (System V), in order, and one that is
// free.
enum Pointer : int { kRdi = 7, kRsi = 6, kRdx = 2, kRcx = 1, kR8 = 8, kR9 = 9, kRax = 0 };

class Assembler {
 public:
  explicit Assembler(int64_t lanes) : lanes_(lanes) {}
  const std::vector<uint8_t>& bytes() const { return bytes_; }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }

  // Of as many floats as there are lanes, 8 or 16; z: one of 32 registers.
  void load(int z, Pointer from, int64_t at) { vector(kOf, kNone, 0x10, z, 0, from, at); }
  void store(int z, Pointer to, int64_t at) { vector(kOf, kNone, 0x11, z, 0, to, at); }
  void add(int z, Pointer from, int64_t at) { vector(kOf, kNone, 0x58, z, z, from, at); }
  // One float to all lanes.
  void broadcast(int z, Pointer from, int64_t at) { number(0x18, z, 0, from, at, false); }
  // z += x * the float there
  void add_product(int z, int x, Pointer from, int64_t at) { number(0xB8, z, x, from, at, true); }
  void zero(int z) { registers(k66, 0xEF, z, z, z); }
  // The greater of zero and z, and z where that is no number.
  void positive(int z, int zero) { registers(kNone, 0x5F, z, zero, z); }

  // p = the pointer that lies there
  void load_pointer(Pointer p, Pointer from, int64_t at) {
    const int rex = 0x48 | (p & 8) >> 1 | (from & 8) >> 3;
    put({static_cast<uint8_t>(rex), 0x8B, static_cast<uint8_t>(0x80 | (p & 7) << 3 | (from & 7))});
    put_32(at);
  }
  // Into the second cache.
  void prefetch(Pointer from, int64_t at) {
    if (from >= 8) put({0x41});
    put({0x0F, 0x18, static_cast<uint8_t>(0x80 | 2 << 3 | (from & 7))});
    put_32(at);
  }
  void advance(Pointer p, int32_t bytes) {
    put({static_cast<uint8_t>(p < 8 ? 0x48 : 0x49), 0x81, static_cast<uint8_t>(0xC0 | (p & 7))});
    put_32(bytes);
  }
  // A jump that is taken where p is null; `land` says where to.
  int64_t jump_if_null(Pointer p) {
    const auto low = static_cast<uint8_t>(p & 7);
    put({static_cast<uint8_t>(p < 8 ? 0x48 : 0x4D), 0x85,
         static_cast<uint8_t>(0xC0 | low << 3 | low)});
    put({0x0F, 0x84});
    put_32(0);
    return size();
  }
  void land(int64_t jump) {
    const auto distance = static_cast<uint32_t>(size() - jump);
    for (int i = 0; i < 4; ++i)
      bytes_[static_cast<size_t>(jump - 4 + i)] = static_cast<uint8_t>(distance >> 8 * i);
  }
  // Zeros up to a multiple of so many bytes.
  void align(size_t bytes) { bytes_.resize((bytes_.size() + bytes - 1) / bytes * bytes); }
  void data(const std::vector<float>& numbers) {
    const auto* const from = reinterpret_cast<const uint8_t*>(numbers.data());
    bytes_.insert(bytes_.end(), from, from + 4 * numbers.size());
  }
  // The upper halves of registers are cleared: code without AVX would wait for them.
  void leave() { put({0xC5, 0xF8, 0x77, 0xC3}); }

 private:
  enum Map : uint8_t { kOf = 1, kOf38 = 2 };
  enum Prefix : uint8_t { kNone = 0, k66 = 1 };

  void put(std::initializer_list<uint8_t> bytes) { bytes_.insert(bytes_.end(), bytes); }
  void put_32(int64_t number) {
    for (int i = 0; i < 4; ++i) bytes_.push_back(static_cast<uint8_t>(number >> 8 * i));
  }
  // Registers beyond seven have inverted bits here: z in R and R', v in vvvv and V', and what
  // ModRM's last field names in B and, where that is a vector, X.
  void prefix(Map map, Prefix pp, int z, int v, bool b, bool x, bool of_float) {
    put({0x62,
         static_cast<uint8_t>((~z >> 3 & 1) << 7 | !x << 6 | !b << 5 | (~z >> 4 & 1) << 4 | map),
         static_cast<uint8_t>((~v & 15) << 3 | 4 | pp),
         static_cast<uint8_t>((lanes_ == 16 ? 2 : 1) << 5 | of_float << 4 | (~v >> 4 & 1) << 3)});
  }
  void registers(Prefix pp, uint8_t code, int z, int v, int last) {
    prefix(kOf, pp, z, v, last & 8, last & 16, false);
    put({code, static_cast<uint8_t>(0xC0 | (z & 7) << 3 | (last & 7))});
  }
  void vector(Map map, Prefix pp, uint8_t code, int z, int v, Pointer from, int64_t at) {
    prefix(map, pp, z, v, from & 8, false, false);
    memory(code, z, from, at, 4 * lanes_);
  }
  void number(uint8_t code, int z, int v, Pointer from, int64_t at, bool of_float) {
    prefix(kOf38, k66, z, v, from & 8, false, of_float);
    memory(code, z, from, at, 4);
  }
  void memory(uint8_t code, int z, Pointer from, int64_t at, int64_t unit) {
    const auto fields = static_cast<uint8_t>((z & 7) << 3 | (from & 7));
    const bool is_short = at % unit == 0 && at / unit >= -128 && at / unit <= 127;
    put({code, static_cast<uint8_t>((is_short ? 0x40 : 0x80) | fields)});
    if (is_short)
      put({static_cast<uint8_t>(at / unit)});
    else
      put_32(at);
  }

  int64_t lanes_;
  std::vector<uint8_t> bytes_;
};

}  // namespace sparsewright
