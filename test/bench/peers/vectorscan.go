//go:build vectorscan

package main

// #cgo pkg-config: libhs
// #include <stdlib.h>
// #include <hs/hs.h>
//
// static unsigned long long found;
//
// static int count(unsigned int id, unsigned long long from, unsigned long long to, unsigned int flags, void *context) {
//	found++;
//	return 0;
// }
//
// static hs_error_t scan(hs_stream_t *stream, const char *data, unsigned int size, hs_scratch_t *scratch) {
//	return hs_scan_stream(stream, data, size, 0, scratch, count, NULL);
// }
import "C"

import (
	"errors"
	"fmt"
	"unsafe"
)

// vectorscan finds literals in one stream across writes and tells where they end. What it finds is counted in C, and nothing is replaced. Its memory lasts
// as long as the program.
func vectorscan(texts []string) (*peer, error) {
	n := len(texts)
	literals := make([]*C.char, n)
	sizes, flags, ids := make([]C.size_t, n), make([]C.uint, n), make([]C.uint, n)
	for i, t := range texts {
		literals[i] = C.CString(t)
		defer C.free(unsafe.Pointer(literals[i]))
		sizes[i], ids[i] = C.size_t(len(t)), C.uint(i)
	}
	table := (**C.char)(C.malloc(C.size_t(n) * C.size_t(unsafe.Sizeof(literals[0])))) // Go pointers to C pointers do not go to C
	defer C.free(unsafe.Pointer(table))
	copy(unsafe.Slice(table, n), literals)
	var db *C.hs_database_t
	var why *C.hs_compile_error_t
	if C.hs_compile_lit_multi(table, &flags[0], &ids[0], &sizes[0], C.uint(n), C.HS_MODE_STREAM, nil, &db, &why) != C.HS_SUCCESS {
		defer C.hs_free_compile_error(why)
		return nil, errors.New("compiling for Vectorscan: " + C.GoString(why.message))
	}
	var scratch *C.hs_scratch_t
	if e := C.hs_alloc_scratch(db, &scratch); e != C.HS_SUCCESS {
		return nil, fmt.Errorf("making room for Vectorscan: error %d", e)
	}
	var stream *C.hs_stream_t
	if e := C.hs_open_stream(db, 0, &stream); e != C.HS_SUCCESS {
		return nil, fmt.Errorf("opening a stream of Vectorscan: error %d", e)
	}
	return &peer{"Vectorscan " + C.GoString(C.hs_version()) + " (finds only)", func(p []byte) error {
		if e := C.scan(stream, (*C.char)(unsafe.Pointer(&p[0])), C.uint(len(p)), scratch); e != C.HS_SUCCESS {
			return fmt.Errorf("scanning with Vectorscan: error %d", e)
		}
		return nil
	}}, nil
}
