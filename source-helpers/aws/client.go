package aws

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"net/http"

	"sealed.dev/sealed/internal/source"
)

// A bounded round tripper gives the SDK whole answers of a limited size and of
// one declared type. It follows nothing and decompresses nothing.
type bounded struct {
	next http.RoundTripper
	typ  string
}

var errAnswer = errors.New("the answer is too large, compressed, or of another type")

// client makes the SDK's HTTP client.
func client(ca, typ string) (*http.Client, error) {
	transport, err := source.NewTransport(ca, true)
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Timeout: source.Timeout, Transport: bounded{transport, typ},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := source.ReadLimited(resp.Body)
	if err != nil {
		return nil, err
	}
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if e := resp.Header.Get("Content-Encoding"); (e != "" && e != "identity") || (resp.StatusCode < 300 && media != b.typ) {
		clear(body)
		return nil, errAnswer
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return resp, nil
}
