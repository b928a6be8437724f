// float4 and the other vector types, with CUDA's sizes and alignments.

#ifndef CUDASIM_VECTOR_TYPES_H
#define CUDASIM_VECTOR_TYPES_H

#define CUDASIM_VECTORS(T, NAME, ALIGN2, ALIGN4)                                             \
    struct NAME##1 { T x; };                                                                 \
    struct alignas(ALIGN2) NAME##2 { T x, y; };                                              \
    struct alignas(ALIGN4) NAME##4 { T x, y, z, w; };                                        \
    static inline NAME##1 make_##NAME##1(T x) { return {x}; }                                \
    static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                        \
    static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }

CUDASIM_VECTORS(signed char, char, 2, 4)
CUDASIM_VECTORS(unsigned char, uchar, 2, 4)
CUDASIM_VECTORS(short, short, 4, 8)
CUDASIM_VECTORS(unsigned short, ushort, 4, 8)
CUDASIM_VECTORS(int, int, 8, 16)
CUDASIM_VECTORS(unsigned, uint, 8, 16)
CUDASIM_VECTORS(long long, longlong, 16, 16)
CUDASIM_VECTORS(unsigned long long, ulonglong, 16, 16)
CUDASIM_VECTORS(float, float, 8, 16)
CUDASIM_VECTORS(double, double, 16, 16)

#undef CUDASIM_VECTORS

// uint3, the type of threadIdx, is in runtime.h.
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

#define CUDASIM_VECTOR3(T, NAME)                                                             \
    struct NAME##3 { T x, y, z; };                                                           \
    static inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }

CUDASIM_VECTOR3(signed char, char)
CUDASIM_VECTOR3(unsigned char, uchar)
CUDASIM_VECTOR3(short, short)
CUDASIM_VECTOR3(unsigned short, ushort)
CUDASIM_VECTOR3(int, int)
CUDASIM_VECTOR3(long long, longlong)
CUDASIM_VECTOR3(float, float)
CUDASIM_VECTOR3(double, double)
#undef CUDASIM_VECTOR3

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

#endif
