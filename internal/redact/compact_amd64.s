//go:build !purego

#include "textflag.h"

// Of siftBlocks, whose registers are named there:
//
// HASH makes h, a load, its hash, and word the word of it. BIT leaves in to, as bit 0, the bit of word that h rotated by n names.
#define HASH(h, word) \
	ANDQ  R11, h; \
	ORQ   R12, h; \
	IMULQ R13, h; \
	RORXQ $40, h, word; \
	ANDQ  R10, word; \
	MOVQ  (DI)(word*8), word

#define BIT(n, h, word, to) \
	RORXQ n, h, to; \
	SHRXQ to, word, to

// SAMPLE tests two bits and adds the outcome to BX.
#define SAMPLE \
	HASH(AX, DX); \
	BIT($58, AX, DX, R14); \
	BIT($34, AX, DX, AX); \
	ANDQ AX, R14; \
	ORQ  R14, BX

// FIND tests all three bits, writes the place, which counts if they are set, and goes on to the next one.
#define FIND \
	MOVQ (SI), AX; \
	HASH(AX, DX); \
	BIT($58, AX, DX, BX); \
	BIT($34, AX, DX, R14); \
	ANDQ R14, BX; \
	BIT($28, AX, DX, R14); \
	ANDQ R14, BX; \
	ANDL $1, BX; \
	MOVQ SI, AX; \
	SUBQ p+0(FP), AX; \
	MOVL AX, (R15); \
	LEAQ (R15)(BX*4), R15; \
	ADDQ R8, SI

// func cpuid(leaf uint32) (a, b, c uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-20
	MOVL leaf+0(FP), AX
	XORL CX, CX
	CPUID
	MOVL AX, a+8(FP)
	MOVL BX, b+12(FP)
	MOVL CX, c+16(FP)
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

// func siftBlocks(p *byte, i, n, s int, bits *uint64, most, mask uint64, found *uint32) (count, next int)
//
// The last place that is read is 3s after one that is at most n-8-3s, so that eight bytes are left. Four places are written at a time, and only as long as found
// has room for them.
//
// Registers: SI is the place, CX the last one with four samples, R8 and R9 are s and 3s, DI are the bits, R10, R11, R12, R13 the constants of the hash, R15 is
// where the next place is written. SHRX takes a count modulo 64.
TEXT ·siftBlocks(SB), NOSPLIT, $0-80
	MOVQ p+0(FP), SI
	MOVQ n+16(FP), CX
	MOVQ s+24(FP), R8
	MOVQ bits+32(FP), DI
	MOVQ most+40(FP), R10
	MOVQ mask+48(FP), R11
	MOVQ found+56(FP), R15
	MOVQ $0x2020202020202020, R12
	MOVQ $0x9E3779B97F4A7C15, R13
	LEAQ (R8)(R8*2), R9
	SUBQ R9, CX
	SUBQ $8, CX
	ADDQ SI, CX
	ADDQ i+8(FP), SI

four:
	CMPQ  SI, CX
	JHI   end
	XORL  BX, BX
	MOVQ  (SI), AX
	SAMPLE
	MOVQ  (SI)(R8*1), AX
	SAMPLE
	MOVQ  (SI)(R8*2), AX
	SAMPLE
	MOVQ  (SI)(R9*1), AX
	SAMPLE
	TESTL $1, BX
	JNZ   some
	LEAQ  (SI)(R8*4), SI
	JMP   four

some:
	FIND
	FIND
	FIND
	FIND
	MOVQ found+56(FP), AX
	ADDQ $240, AX // room for four of 64
	CMPQ R15, AX
	JLS  four

end:
	SUBQ p+0(FP), SI
	SUBQ found+56(FP), R15
	SHRQ $2, R15
	MOVQ R15, count+64(FP)
	MOVQ SI, next+72(FP)
	RET
