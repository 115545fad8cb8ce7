module sealed.dev/sealed/test/bench/peers

go 1.26.0

replace sealed.dev/sealed => ../../..

require (
	github.com/BobuSumisu/aho-corasick v1.0.3
	github.com/cloudflare/ahocorasick v0.0.0-20240916140611-054963ec9396
	golang.org/x/sys v0.48.0
	sealed.dev/sealed v0.0.0-00010101000000-000000000000
)
