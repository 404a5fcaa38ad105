# mypy: disable-error-code="no-untyped-def"
"""Turning packed codes into float16 numbers in registers, about one instruction each.

A code ORed into the mantissa of a power of two is that power plus the code: with the exponent of 2 ** (10 - p) and the
code at bit p of the half word it is 2 ** (10 - p) + code, exactly. One LOP3 masks and ORs two codes at once, those of one
field in two neighbouring words, whose halves a PRMT brings together. What is added goes with the zero point (keys), or by
one subtraction for two codes (values).
"""

import triton
import triton.language as tl

# For each field of half a word: the shift to the right (negative: left), and the bit where the code is after it. Values of
# 2 bits are centred on 1.5, for which bit 0 would be too coarse.
PLACES = {
    8: ((0, 0), (8, 0)),
    4: ((0, 0), (0, 4), (8, 0), (8, 4)),
    2: ((-4, 4), (0, 2), (0, 4), (0, 6), (0, 8), (8, 2), (8, 4), (8, 6)),
}
CENTRES = {8: 128.0, 4: 8.0, 2: 1.5}


@triton.constexpr_function
def centre(bits):
    """The code of a value of 0."""
    return CENTRES[bits]


@triton.constexpr_function
def offset(field, bits):
    """What the assembly adds to an uncentred code."""
    return float(2 ** (10 - PLACES[bits][field % (16 // bits)][1]))


@triton.constexpr_function
def tokens_alike(bits, channels):
    """Does each channel of a word have one offset, whichever token of the word a field belongs to?"""
    return all(offset(field, bits) == offset(field % channels, bits) for field in range(32 // bits))


@triton.constexpr_function
def twice(x):
    """The float16 x >= 1, exact in it, in both halves of a word, in hexadecimal."""
    exponent = len(f"{int(x):b}") - 1
    bits = ((exponent + 15) << 10) + int((x / 2**exponent - 1) * 1024)
    return f"0x{bits * 0x00010001:08x}"


@triton.constexpr_function
def assembly(field, bits, centred):
    """PTX: the codes of one field of the words $1 and $2 as two float16 in $0."""
    upper, place = divmod(field, 16 // bits)
    shift, bit = PLACES[bits][place]
    lines = [f"prmt.b32 m, $1, $2, {'0x7632' if upper else '0x5410'};"]
    if shift:
        lines.append(f"shr.u32 m, m, {shift};" if shift > 0 else f"shl.b32 m, m, {-shift};")
    mask = (2**bits - 1 << bit) * 0x00010001
    lines.append(f"lop3.b32 m, m, 0x{mask:08x}, {twice(offset(field, bits))}, 0xea;")
    if centred:
        lines.append(f"mov.b32 c, {twice(offset(field, bits) + centre(bits))};")
        lines.append("sub.rn.f16x2 m, m, c;")
    return "{ .reg .b32 m, c; " + " ".join(lines) + " mov.b32 $0, m; }"


@triton.jit
def numbers(
    words,
    FIELD: tl.constexpr,
    BITS: tl.constexpr,
    CENTRED: tl.constexpr,
    ASM: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """One field of int32 words as DTYPE: code - centre, or code + (the offset of the assembly, if ASM)."""
    if ASM:
        return tl.inline_asm_elementwise(
            assembly(FIELD, BITS, CENTRED), "=r,r,r", [words], dtype=tl.float16, is_pure=True, pack=2
        )
    else:
        codes = ((words >> (FIELD * BITS)) & ((1 << BITS) - 1)).to(tl.float32)
        return (codes - centre(BITS) if CENTRED else codes).to(DTYPE)


# The approximate instructions without the treatment of denormal numbers, which count for nothing in a softmax.


@triton.jit
def exp2(x, ASM: tl.constexpr):
    if ASM:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit
def log2(x, ASM: tl.constexpr):
    if ASM:
        return tl.inline_asm_elementwise(
            "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.log2(x)


@triton.jit
def inverse(x, ASM: tl.constexpr):
    if ASM:
        return tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return 1.0 / x
