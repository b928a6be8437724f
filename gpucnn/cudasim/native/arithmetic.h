// CUDA's mathematical and bit functions.  The functions with leading underscores are fast and less
// accurate on a GPU; here they are accurate, so results differ by their documented error.

#ifndef CUDASIM_ARITHMETIC_H
#define CUDASIM_ARITHMETIC_H

#define CUDASIM_INLINE static inline __attribute__((always_inline))

// The bits of one type as another of the same size.
template <class To, class From>
CUDASIM_INLINE To cudasim_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "");
    To result;
    __builtin_memcpy(&result, &value, sizeof result);
    return result;
}

CUDASIM_INLINE int __float_as_int(float x) { return cudasim_bits<int>(x); }
CUDASIM_INLINE unsigned __float_as_uint(float x) { return cudasim_bits<unsigned>(x); }
CUDASIM_INLINE float __int_as_float(int x) { return cudasim_bits<float>(x); }
CUDASIM_INLINE float __uint_as_float(unsigned x) { return cudasim_bits<float>(x); }
CUDASIM_INLINE long long __double_as_longlong(double x) { return cudasim_bits<long long>(x); }
CUDASIM_INLINE double __longlong_as_double(long long x) { return cudasim_bits<double>(x); }

// CUDA has max, min and abs for every pair of arithmetic types, in the global namespace.  Given a
// number and a NaN, max and min return the number.
template <class A, class B>
CUDASIM_INLINE std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
    else return T(a) < T(b) ? T(b) : T(a);
}

template <class A, class B>
CUDASIM_INLINE std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
    else return T(b) < T(a) ? T(b) : T(a);
}

using std::abs;
using std::isfinite;
using std::isinf;
using std::isnan;

CUDASIM_INLINE float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
CUDASIM_INLINE double rsqrt(double x) { return 1.0 / std::sqrt(x); }
CUDASIM_INLINE float __saturatef(float x) { return x >= 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }

// Macros, because the C library has functions with these names.
#define __expf(x) expf(x)
#define __exp10f(x) powf(10.0f, x)
#define exp10f(x) powf(10.0f, x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
CUDASIM_INLINE float __fdividef(float x, float y) { return x / y; }
CUDASIM_INLINE float __frcp_rn(float x) { return 1.0f / x; }
CUDASIM_INLINE float __frsqrt_rn(float x) { return 1.0f / std::sqrt(x); }
CUDASIM_INLINE float __fsqrt_rn(float x) { return std::sqrt(x); }
CUDASIM_INLINE float __fdiv_rn(float x, float y) { return x / y; }
CUDASIM_INLINE float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
CUDASIM_INLINE double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }
CUDASIM_INLINE float sinpif(float x) { return float(std::sin(M_PI * std::fmod(double(x), 2.0))); }
CUDASIM_INLINE float cospif(float x) { return float(std::cos(M_PI * std::fmod(double(x), 2.0))); }
CUDASIM_INLINE void sincospif(float x, float* s, float* c) { *s = sinpif(x); *c = cospif(x); }
CUDASIM_INLINE float normcdff(float x) { return float(0.5 * std::erfc(-double(x) * M_SQRT1_2)); }

// These must not be contracted into multiply-adds: the empty asm hides the value from the
// compiler.
CUDASIM_INLINE float cudasim_opaque(float x) {
    asm("" : "+m"(x));
    return x;
}
CUDASIM_INLINE float __fadd_rn(float x, float y) { return cudasim_opaque(cudasim_opaque(x) + y); }
CUDASIM_INLINE float __fsub_rn(float x, float y) { return cudasim_opaque(cudasim_opaque(x) - y); }
CUDASIM_INLINE float __fmul_rn(float x, float y) { return cudasim_opaque(x * y); }

CUDASIM_INLINE int __float2int_rn(float x) { return int(std::nearbyint(x)); }
CUDASIM_INLINE int __float2int_rz(float x) { return int(x); }
CUDASIM_INLINE int __float2int_rd(float x) { return int(std::floor(x)); }
CUDASIM_INLINE int __float2int_ru(float x) { return int(std::ceil(x)); }
CUDASIM_INLINE unsigned __float2uint_rn(float x) { return unsigned(std::nearbyint(x)); }
CUDASIM_INLINE unsigned __float2uint_rz(float x) { return unsigned(x); }
CUDASIM_INLINE float __int2float_rn(int x) { return float(x); }
CUDASIM_INLINE float __uint2float_rn(unsigned x) { return float(x); }

CUDASIM_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
CUDASIM_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
CUDASIM_INLINE int __clz(int x) { return x ? __builtin_clz(x) : 32; }
CUDASIM_INLINE int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
CUDASIM_INLINE int __ffs(int x) { return __builtin_ffs(x); }
CUDASIM_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
CUDASIM_INLINE unsigned __brev(unsigned x) {
    unsigned result = 0;
    for (int bit = 0; bit < 32; ++bit) result |= (x >> bit & 1) << (31 - bit);
    return result;
}
CUDASIM_INLINE int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
CUDASIM_INLINE unsigned __umulhi(unsigned a, unsigned b) {
    return unsigned((unsigned long long)a * b >> 32);
}
CUDASIM_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
CUDASIM_INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned((((unsigned long long)high << 32 | low) << (shift & 31)) >> 32);
}
CUDASIM_INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((unsigned long long)high << 32 | low) >> (shift & 31));
}
// Byte i of the result is byte (selector >> 4 * i) & 7 of the eight bytes b:a; if bit 3 is set, the
// sign of that byte is replicated instead.
CUDASIM_INLINE unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long long bytes = (unsigned long long)b << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) {
        unsigned choice = selector >> 4 * i & 0xf;
        unsigned byte = unsigned(bytes >> 8 * (choice & 7)) & 0xff;
        if (choice & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << 8 * i;
    }
    return result;
}

// Loads and stores with cache hints.
#define CUDASIM_LOAD(NAME) \
    template <class T> CUDASIM_INLINE T NAME(const T* address) { return *address; }
#define CUDASIM_STORE(NAME) \
    template <class T> CUDASIM_INLINE void NAME(T* address, T value) { *address = value; }
CUDASIM_LOAD(__ldg)
CUDASIM_LOAD(__ldca)
CUDASIM_LOAD(__ldcg)
CUDASIM_LOAD(__ldcs)
CUDASIM_LOAD(__ldlu)
CUDASIM_LOAD(__ldcv)
CUDASIM_STORE(__stwb)
CUDASIM_STORE(__stcg)
CUDASIM_STORE(__stcs)
CUDASIM_STORE(__stwt)
#undef CUDASIM_LOAD
#undef CUDASIM_STORE

#define __builtin_assume(condition) ((void)0)

#endif
