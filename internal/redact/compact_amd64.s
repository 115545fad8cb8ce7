//go:build !purego

#include "textflag.h"

// func cpuFeatures() uint32
TEXT ·cpuFeatures(SB), NOSPLIT, $0-4
	MOVL $1, AX
	XORL CX, CX
	CPUID
	MOVL CX, ret+0(FP)
	RET

// PUSH pushes the bytes of X0 that AX names together, each half by itself, and
// writes them.
#define PUSH \
	MOVBLZX AX, R10; \
	SHRL    $8, AX; \
	MOVOA   X0, X1; \
	PSRLDQ  $8, X0; \
	MOVQ    96(BX)(R10*8), X2; \
	MOVQ    96(BX)(AX*8), X3; \
	POPCNTL R10, R10; \
	POPCNTL AX, AX; \
	PSHUFB  X2, X1; \
	PSHUFB  X3, X0; \
	MOVQ    X1, (DI); \
	ADDQ    R10, DI; \
	MOVQ    X0, (DI); \
	ADDQ    AX, DI

// func compactBlocks(dst, src *byte, n int, t *compactTables) (read, kept int)
//
// A block is read only if n has 16 bytes more, and leaves 16 characters at most, so that dst needs no more than n bytes: what a block writes too much is where
// the next one begins, or within these 16.
//
// Registers: SI reads, DI writes, CX is what is left to read, BX are the tables.
// X8 to X13 are constants: low nibbles, bit 5, and the four tables of classes.
TEXT ·compactBlocks(SB), NOSPLIT, $0-48
	MOVQ  dst+0(FP), DI
	MOVQ  src+8(FP), SI
	MOVQ  n+16(FP), CX
	MOVQ  t+24(FP), BX
	MOVOU 0(BX), X10
	MOVOU 16(BX), X11
	MOVOU 32(BX), X12
	MOVOU 48(BX), X13
	MOVOU 64(BX), X8
	MOVOU 80(BX), X9
	PXOR  X14, X14

block:
	CMPQ CX, $16
	JLT  done
	MOVOU (SI), X0

	// X1 and X2 are the high and the low nibbles.
	MOVOA  X0, X1
	MOVOA  X0, X2
	PSRLW  $4, X1
	PAND   X8, X1
	PAND   X8, X2

	// A byte is of a set if the entries of its nibbles have a bit in common.
	MOVOA    X10, X3
	MOVOA    X11, X4
	MOVOA    X12, X5
	MOVOA    X13, X6
	PSHUFB   X2, X3
	PSHUFB   X1, X4
	PSHUFB   X2, X5
	PSHUFB   X1, X6
	PAND     X4, X3
	PAND     X6, X5
	PCMPEQB  X14, X3
	PCMPEQB  X14, X5
	POR      X9, X0 // lower case
	PMOVMSKB X3, AX
	PMOVMSKB X5, DX
	XORL     $0xFFFF, AX // kept bytes
	XORL     $0xFFFF, DX // special bytes
	JNZ      special

	PUSH
	ADDQ    $16, SI
	SUBQ    $16, CX
	JMP     block

special:
	// The same with what is before the first special byte.
	BSFL    DX, R11
	MOVL    DX, R12
	DECL    R12
	NOTL    DX
	ANDL    DX, R12
	ANDL    R12, AX
	PUSH
	ADDQ    R11, SI

done:
	SUBQ src+8(FP), SI
	SUBQ dst+0(FP), DI
	MOVQ SI, read+32(FP)
	MOVQ DI, kept+40(FP)
	RET

// func sampleBlocks(p *byte, n, s int, bits *uint64, most, mask uint64) int
//
// The last place that is read is 3s after one that is at most n-8-3s, so that eight bytes are left.
//
// Registers: SI is the place, CX the last one with four samples, R8 and R9 are s and 3s, DI are the bits, R10, R11, R12, R13 the constants of the hash.
// BT takes a bit number modulo 64.
#define SAMPLE(h, word, yes) \
	ANDQ R11, h;            \
	ORQ  R12, h;            \
	IMULQ R13, h;           \
	MOVQ h, word;           \
	SHRQ $40, word;         \
	ANDQ R10, word;         \
	MOVQ (DI)(word*8), word; \
	MOVQ h, yes;            \
	SHRQ $58, yes;          \
	SHRQ $34, h;            \
	BTQ  yes, word;         \
	SBBQ yes, yes;          \
	BTQ  h, word;           \
	SBBQ h, h;              \
	ANDQ h, yes

TEXT ·sampleBlocks(SB), NOSPLIT, $0-56
	MOVQ p+0(FP), SI
	MOVQ n+8(FP), CX
	MOVQ s+16(FP), R8
	MOVQ bits+24(FP), DI
	MOVQ most+32(FP), R10
	MOVQ mask+40(FP), R11
	MOVQ $0x2020202020202020, R12
	MOVQ $0x9E3779B97F4A7C15, R13
	LEAQ (R8)(R8*2), R9
	SUBQ R9, CX
	SUBQ $8, CX
	ADDQ SI, CX

four:
	CMPQ SI, CX
	JHI  end
	MOVQ (SI), AX
	SAMPLE(AX, DX, BX)
	MOVQ (SI)(R8*1), AX
	SAMPLE(AX, DX, R14)
	ORQ  R14, BX
	MOVQ (SI)(R8*2), AX
	SAMPLE(AX, DX, R14)
	ORQ  R14, BX
	MOVQ (SI)(R9*1), AX
	SAMPLE(AX, DX, R14)
	ORQ  R14, BX
	JNZ  end
	LEAQ (SI)(R8*4), SI
	JMP  four

end:
	SUBQ p+0(FP), SI
	MOVQ SI, ret+48(FP)
	RET
