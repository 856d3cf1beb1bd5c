// One stored value as a float; part of every Simd, so included inside of it.
static float widen(float v) { return v; }
static float widen(Bf16 v) { return std::bit_cast<float>(uint32_t{v.bits} << 16); }
static float widen(int8_t v) { return static_cast<float>(v); }
